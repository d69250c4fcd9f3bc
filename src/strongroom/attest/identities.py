"""Who asks, where no hardware vouches for the machine: a client certificate, an OIDC token, a
Kubernetes service account. They come with the connection and are bound to nothing in it but that.

A policy has to name such an identity to let it in; nothing here says what it may do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from strongroom.attest.certificates import check_crl, check_not_revoked, load_certificates, load_crl
from strongroom.attest.chains import chain_to
from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.evidence import Claims
from strongroom.attest.jws import Token, verify_token
from strongroom.attest.roots import Issuer
from strongroom.errors import NotAuthentic

__all__ = ["kubernetes", "mtls", "oidc"]


def mtls(
    certificate: bytes,
    authorities: Sequence[bytes],
    now: datetime,
    *,
    intermediates: bytes = b"",
    crls: Sequence[bytes] = (),
) -> Claims:
    """A client certificate, whose key the TLS handshake has proved.

    Args:
        certificate: DER.
        authorities: roots that are believed, PEM each.
        now: with a time zone.
        intermediates: what the client sent with it, PEM; leaf's issuer first.
        crls: revocation lists; where there are any, one must be of the certificate's issuer.

    Raises:
        MalformedEvidence: something is not a certificate or a revocation list.
        NotAuthentic: no authority leads to it, it is not for clients, not valid now, or revoked.
    """
    (leaf,) = load_certificates(certificate)
    above = list(load_certificates(intermediates)) if intermediates.strip() else []
    chain, until = _chain([leaf, *above], authorities, now)
    try:
        usage = leaf.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise NotAuthentic("The certificate does not say that it is for clients.") from None
    if not isinstance(usage, x509.ExtendedKeyUsage) or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise NotAuthentic("The certificate is not for clients.")
    until = min([until, *_check_revoked(chain, crls, now)])
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Claims(
        kind="mtls",
        values={
            "subject": leaf.subject.rfc4514_string(),
            "issuer": leaf.issuer.rfc4514_string(),
            "san": _alternative_names(leaf),
            "sha256": hashlib.sha256(certificate).hexdigest(),
        },
        bound=b"",
        debug=False,
        platform="mtls:" + hashlib.sha256(spki).hexdigest(),
        not_after=until,
    )


def _chain(
    certificates: Sequence[x509.Certificate], authorities: Sequence[bytes], now: datetime
) -> tuple[list[x509.Certificate], datetime]:
    refusal = NotAuthentic("No authority is believed that could have issued the certificate.")
    for authority in authorities:
        try:
            return chain_to(
                certificates,
                authority,
                now,
                known=frozenset(
                    {ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME}
                ),
            )
        except NotAuthentic as error:
            refusal = error
    raise refusal


def _check_revoked(
    chain: Sequence[x509.Certificate], crls: Sequence[bytes], now: datetime
) -> list[datetime]:
    lists = [load_crl(one) for one in crls]
    until = []
    for index, (certificate, issuer) in enumerate(pairwise(chain)):
        of_issuer = [one for one in lists if one.issuer == issuer.subject]
        if lists and not of_issuer and index == 0:
            raise NotAuthentic("There is no revocation list of the authority of this certificate.")
        for one in of_issuer:
            until.append(check_crl(one, issuer, now))
            check_not_revoked(certificate, one)
    return until


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    """``dns:…``, ``uri:…``, ``ip:…``, ``email:…``; others are left out."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    kinds = {
        "dns": x509.DNSName,
        "uri": x509.UniformResourceIdentifier,
        "ip": x509.IPAddress,
        "email": x509.RFC822Name,
    }
    return [
        f"{kind}:{name.value}" for name in names for kind, one in kinds.items() if isinstance(name, one)
    ]


def oidc(
    token: bytes,
    audience: str,
    issuers: Sequence[Issuer],
    now: datetime,
    endorsements: EndorsementSource | None = None,
) -> Claims:
    """A token of an OpenID provider.

    Args:
        token: as it stands after ``Bearer``.
        audience: the id of this server; the token must be meant for it, whatever the issuers'
            entries say.
        issuers: who is believed.
        now: with a time zone.
        endorsements: where to ask for key sets that are not configured.

    Raises:
        MalformedEvidence: it is no token.
        NotAuthentic: issuer, audience, algorithm, key, signature or a date speaks against it, or it
            does not say whose it is.
        MissingEndorsement: the issuer's key set is not at hand.
        Unavailable: it could not be fetched.
    """
    verified = _verify(token, audience, issuers, now, endorsements)
    subject = verified.claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise NotAuthentic("The token does not say whose it is.")
    return _claims("oidc", verified, {"subject": subject, "claims": verified.claims}, subject)


def kubernetes(
    token: bytes,
    audience: str,
    issuers: Sequence[Issuer],
    now: datetime,
    endorsements: EndorsementSource | None = None,
) -> Claims:
    """A projected token of a Kubernetes service account, that is one with audience and end.

    Args:
        token: as it stands after ``Bearer``.
        audience: the id of this server, as for :func:`oidc`.
        issuers: of the clusters that are believed.
        now: with a time zone.
        endorsements: where to ask for key sets that are not configured.

    Raises:
        MalformedEvidence: it is no token.
        NotAuthentic: as for :func:`oidc`, or its parts name different accounts.
        MissingEndorsement: the issuer's key set is not at hand.
        Unavailable: it could not be fetched.
    """
    verified = _verify(token, audience, issuers, now, endorsements)
    said = verified.claims.get("kubernetes.io")
    namespace, account = _name(said, "namespace"), _name(said, "serviceaccount", "name")
    if namespace is None or account is None:
        raise NotAuthentic("The token is not of a Kubernetes service account.")
    subject = f"system:serviceaccount:{namespace}:{account}"
    if verified.claims.get("sub") != subject:
        raise NotAuthentic("The token names one service account in one place and another elsewhere.")
    pod = _name(said, "pod", "name")
    values = {
        "namespace": namespace,
        "service_account": account,
        "pod": pod,
        "node": _name(said, "node", "name"),
        "subject": subject,
        "claims": verified.claims,
    }
    # A pod is the nearest there is to a machine; its uid is never used again.
    return _claims("kubernetes", verified, values, _name(said, "pod", "uid") or subject)


def _verify(
    token: bytes,
    audience: str,
    issuers: Sequence[Issuer],
    now: datetime,
    endorsements: EndorsementSource | None,
) -> Token:
    if not audience:
        raise NotAuthentic("A token without an audience is not accepted.")
    meant = [replace(issuer, audience=audience) for issuer in issuers]
    return verify_token(token, meant, now, endorsements)


def _claims(kind: str, token: Token, values: Mapping[str, Any], holder: str) -> Claims:
    audience = token.claims.get("aud")
    named = f"{token.issuer.issuer}\x00{holder}".encode()
    return Claims(
        kind=kind,
        values={
            "issuer": token.issuer.issuer,
            "audience": audience if isinstance(audience, list) else [audience],
            **{name: value for name, value in values.items() if value is not None},
        },
        bound=b"",
        debug=False,
        platform=f"{kind}:" + hashlib.sha256(named).hexdigest(),
        not_after=token.not_after,
    )


def _name(value: object, *path: str) -> str | None:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None
