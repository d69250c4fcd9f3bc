"""Endorsements from those who make them: Intel, AMD, NVIDIA, and issuers of tokens.

Base URLs are arguments, so that a mirror or a test can stand in. Everything but a key set is
authenticated by the verifier; key sets are authenticated by TLS alone, and come only from issuers
that are configured.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources.web import Answer, Web, check_url
from strongroom.errors import MissingEndorsement, Unavailable, UsageError
from strongroom.format.encoding import parse_json

__all__ = ["AmdKds", "IntelPcs", "IssuerKeys", "NvidiaServices"]

_SAFE: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")


def _members(wanted: Wanted, what: frozenset[str], vendor: str) -> Mapping[str, str]:
    if wanted.what not in what:
        raise MissingEndorsement(f"{vendor} is not asked for the kind {wanted.what}.")
    return wanted.members


class IntelPcs:
    """Intel's Provisioning Certification Service, version 4: collateral for SGX and TDX.

    Args:
        url: of the service.
        root_crl: URL of the revocation list of Intel's root.
        web: the client.
    """

    def __init__(
        self,
        url: str = "https://api.trustedservices.intel.com",
        root_crl: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
        web: Web | None = None,
    ) -> None:
        self._url = check_url(url)
        self._root_crl = check_url(root_crl)
        self._web = web or Web()

    def fetch(self, wanted: Wanted) -> bytes:
        """Five answers, as one QuoteCollateralV3 in JSON.

        Raises:
            MissingEndorsement: Intel does not know the platform, or it is another kind.
            Unavailable: an answer fails, or is in another form.
        """
        members = _members(wanted, frozenset({"intel"}), "Intel")
        tee, fmspc, ca = (members[name] for name in ("tee", "fmspc", "ca"))
        if tee not in {"sgx", "tdx"} or ca not in {"processor", "platform"} or len(fmspc) != 12:
            raise MissingEndorsement("Intel has no collateral of this name.")
        tcb = self._get(f"{tee}/certification/v4/tcb", fmspc=fmspc)
        qe = self._get(f"{tee}/certification/v4/qe/identity")
        crl = self._get("sgx/certification/v4/pckcrl", ca=ca, encoding="der")
        tcb_info, tcb_signature = _signed_part(tcb.body, "tcbInfo")
        identity, identity_signature = _signed_part(qe.body, "enclaveIdentity")
        collateral = {
            "pck_crl_issuer_chain": _issuer_chain(crl, "sgx-pck-crl-issuer-chain"),
            "root_ca_crl": self._web.get(self._root_crl).body.hex(),
            "pck_crl": crl.body.hex(),
            "tcb_info_issuer_chain": _issuer_chain(
                tcb, "tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"
            ),
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature,
            "qe_identity_issuer_chain": _issuer_chain(qe, "sgx-enclave-identity-issuer-chain"),
            "qe_identity": identity,
            "qe_identity_signature": identity_signature,
        }
        return json.dumps(collateral).encode()

    def _get(self, path: str, **query: str) -> Answer:
        return self._web.get(f"{self._url}/{path}" + (f"?{urlencode(query)}" if query else ""))


def _signed_part(body: bytes, name: str) -> tuple[str, str]:
    """The exact text that Intel signed, which no parser may write anew, and the signature."""
    try:
        text = body.decode("utf-8")
        head = f'{{"{name}":'
        end = text.rindex(',"signature":"')
        signature = json.loads(text)["signature"]
        if not text.startswith(head) or not isinstance(signature, str):
            raise ValueError
        parse_json(text[len(head) : end].encode())
        bytes.fromhex(signature)
    except (ValueError, KeyError, TypeError):
        raise Unavailable("Intel's service answered in a form that is not known.") from None
    return text[len(head) : end], signature


def _issuer_chain(answer: Answer, *names: str) -> str:
    for name in names:
        if name in answer.headers:
            return unquote(answer.headers[name])
    raise Unavailable("Intel's service did not send the certificates of an answer.")


class AmdKds:
    """AMD's Key Distribution Service: keys of processors, their authorities, revocation lists.

    Args:
        url: of the service.
        web: the client.
    """

    def __init__(self, url: str = "https://kdsintf.amd.com", web: Web | None = None) -> None:
        self._url = check_url(url)
        self._web = web or Web()

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement, as AMD sends it.

        Raises:
            MissingEndorsement: AMD does not have it, or it is another kind.
            Unavailable: AMD does not answer; it limits how often it may be asked.
        """
        members = _members(wanted, frozenset({"amd-vcek", "amd-chain", "amd-crl"}), "AMD")
        if not all(map(_SAFE.fullmatch, members.values())):
            raise MissingEndorsement("AMD has no endorsement of this name.")
        product = members["product"]
        if wanted.what == "amd-vcek":
            levels = {f"{name}SPL": members[name] for name in _AMD_LEVELS if name in members}
            path = f"vcek/v1/{product}/{members['hwid']}?{urlencode(levels)}"
        else:
            name = "cert_chain" if wanted.what == "amd-chain" else "crl"
            path = f"{members['signer']}/v1/{product}/{name}"
        return self._web.get(f"{self._url}/{path}").body


_AMD_LEVELS: Final = ("fmc", "bl", "tee", "snp", "ucode")


class NvidiaServices:
    """NVIDIA's reference manifests, and the revocation of its certificates.

    Args:
        rim: URL of the RIM service.
        ocsp: URL of the OCSP responder; None asks it nothing.
        web: the client.
    """

    def __init__(
        self,
        rim: str = "https://rim.attestation.nvidia.com",
        ocsp: str | None = "https://ocsp.ndis.nvidia.com",
        web: Web | None = None,
    ) -> None:
        self._rim = check_url(rim)
        self._ocsp = None if ocsp is None else check_url(ocsp)
        self._web = web or Web()

    def fetch(self, wanted: Wanted) -> bytes:
        """The manifest, or the response of the responder.

        Raises:
            MissingEndorsement: NVIDIA does not have it, or it is another kind.
            Unavailable: NVIDIA does not answer, or in another form.
        """
        members = _members(wanted, frozenset({"nvidia-rim", "nvidia-ocsp"}), "NVIDIA")
        if wanted.what == "nvidia-ocsp":
            if self._ocsp is None:
                raise MissingEndorsement("NVIDIA is not asked for revocation.")
            request = bytes.fromhex(members["request"])
            return self._web.post(self._ocsp, request, "application/ocsp-request").body
        if not _SAFE.fullmatch(members["id"]):
            raise MissingEndorsement("NVIDIA has no manifest of this name.")
        body = self._web.get(f"{self._rim}/v1/rim/{quote(members['id'])}").body
        try:
            return base64.b64decode(parse_json(body)["rim"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise Unavailable("NVIDIA's service answered in a form that is not known.") from None


class IssuerKeys:
    """Key sets of issuers, by OpenID Connect discovery or from a URL of their own; https only.

    Args:
        issuers: issuer → URL of its key set, or None to ask
            ``ISSUER/.well-known/openid-configuration`` for it. Nobody else is asked for anything.
        web: the client, with the authorities that vouch for the issuers.

    Raises:
        UsageError: an issuer or URL is not https.
    """

    def __init__(self, issuers: Mapping[str, str | None], web: Web | None = None) -> None:
        self._issuers = dict(issuers)
        self._web = web or Web()
        for issuer, url in self._issuers.items():
            check_url(url or issuer, tls=True)

    def fetch(self, wanted: Wanted) -> bytes:
        """The key set.

        Raises:
            MissingEndorsement: this issuer is not configured, or it is another kind.
            Unavailable: the issuer does not answer, or in another form.
        """
        issuer = _members(wanted, frozenset({"jwks"}), "An issuer")["issuer"]
        if issuer not in self._issuers:
            raise MissingEndorsement("The key set of this issuer is not asked for.")
        return self._web.get(self._issuers[issuer] or self._discover(issuer)).body

    def _discover(self, issuer: str) -> str:
        body = self._web.get(check_url(issuer) + "/.well-known/openid-configuration").body
        try:
            found: dict[str, Any] = parse_json(body)
            if found.get("issuer") != issuer or not isinstance(found.get("jwks_uri"), str):
                raise ValueError
            return check_url(found["jwks_uri"], tls=True)
        except (ValueError, UsageError):
            raise Unavailable("An issuer's configuration is not in the known form.") from None
