"""What a file of endorsements is, by its own words: the names under which it would be asked for.

Nothing is authenticated: a file that lies is handed out, and refused by the verifier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from strongroom.attest.certificates import UNREADABLE, is_crl, load_certificates, load_crl, name_of
from strongroom.attest.endorsements import Wanted
from strongroom.attest.nvidia_rim import parse_rim, version_of
from strongroom.attest.sources.naming import path_of
from strongroom.errors import StrongroomError
from strongroom.format.encoding import parse_json

__all__ = ["fits", "names_of"]

_AMD: Final = "1.3.6.1.4.1.3704.1."
_LEVELS: Final = {"9": "fmc", "1": "bl", "2": "tee", "3": "snp", "8": "ucode"}
_MANIFEST: Final = "manifest "
_NOT_THAT: Final = (StrongroomError, AttributeError, LookupError, *UNREADABLE)


def names_of(data: bytes) -> frozenset[str]:
    """Names as :func:`~.naming.path_of` gives them; for a manifest its version. None for what is not known."""
    try:
        return frozenset(_names(data))
    except _NOT_THAT:
        return frozenset()


def fits(wanted: Wanted, names: frozenset[str]) -> bool:
    """Whether something of these names is what is wanted."""
    if wanted.what != "nvidia-rim":
        return path_of(wanted) in names
    # A manifest does not say its board, which its name does, before the version.
    asked = wanted.members.get("id", "").upper()
    versions = [name.removeprefix(_MANIFEST) for name in names if name.startswith(_MANIFEST)]
    return any(asked.endswith((f"_{one}", f"_{one.replace('.', '')}")) for one in versions)


def _names(data: bytes) -> Iterator[str]:
    start = data.lstrip()[:1]
    if start == b"<":
        yield _MANIFEST + version_of(parse_rim(data))
    elif start == b"{":
        yield path_of(_collateral(data))
    elif is_crl(data):
        (issuer,) = load_crl(data).issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        for signer in ("vcek", "vlek"):
            product = str(issuer.value).removeprefix("ARK-")
            yield path_of(Wanted("amd-crl", {"product": product, "signer": signer}))
    else:
        for certificate in load_certificates(data):
            wanted = _of_amd(certificate)
            if wanted is not None:
                yield path_of(wanted)


def _collateral(data: bytes) -> Wanted:
    members = parse_json(data)
    statement = json.loads(members["tcb_info"])
    issuer = name_of(load_certificates(members["pck_crl_issuer_chain"].encode())[0])
    ca = "platform" if "Platform" in issuer else "processor"
    return Wanted(
        "intel", {"tee": statement["id"].lower(), "fmspc": statement["fmspc"].lower(), "ca": ca}
    )


def _of_amd(certificate: x509.Certificate) -> Wanted | None:
    name = name_of(certificate)
    if name == "SEV-VCEK":
        said = {
            one.oid.dotted_string.removeprefix(_AMD): one.value.value
            for one in certificate.extensions
            if isinstance(one.value, x509.UnrecognizedExtension)
        }
        product = said["2"][2:].decode("ascii").split("-")[0]
        levels = {
            level: str(int.from_bytes(said[f"3.{number}"][2:]))
            for number, level in _LEVELS.items()
            if f"3.{number}" in said
        }
        # Old certificates hold the chip's id alone, newer ones as an octet string.
        hwid = said["4"] if len(said["4"]) in {8, 64} else said["4"][2:]
        return Wanted("amd-vcek", {"product": product, "hwid": hwid.hex(), **levels})
    for signer, prefix in (("vlek", "SEV-VLEK-"), ("vcek", "SEV-")):
        if name.startswith(prefix):
            product = name.removeprefix(prefix)
            return Wanted("amd-chain", {"product": product, "signer": signer})
    return None
