"""One name for each endorsement: a path in a directory, and under the URL of a proxy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

from strongroom.attest.endorsements import Wanted
from strongroom.errors import MissingEndorsement

__all__ = ["path_of"]

_LAYOUT: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "intel": (("tee", "fmspc", "ca"), "json"),
    "amd-vcek": (("product", "hwid", "fmc", "bl", "tee", "snp", "ucode"), "der"),
    "amd-chain": (("product", "signer"), "pem"),
    "amd-crl": (("product", "signer"), "crl"),
    "nvidia-rim": (("id",), "xml"),
    "nvidia-ocsp": (("request",), "der"),
    "jwks": (("issuer",), "json"),
}
_OPTIONAL: Final = frozenset({"fmc"})
_MAX_NAME: Final = 180


def path_of(wanted: Wanted) -> str:
    """``what/member_member.suffix``, the members in the order of the table in :mod:`..endorsements`.

    Letters and digits stay, the rest is percent-encoded, hexadecimal is lower case; a name of more than
    180 characters, such as an OCSP request, is the SHA-256 of it. No name leads out of a directory.

    Raises:
        MissingEndorsement: nothing is known by this name.
    """
    if wanted.what not in _LAYOUT:
        raise MissingEndorsement(f"Endorsements of the kind {wanted.what!r} are not known.")
    members, suffix = _LAYOUT[wanted.what]
    lacking = [name for name in members if name not in wanted.members and name not in _OPTIONAL]
    if lacking or not set(wanted.members) <= set(members) or not all(wanted.members.values()):
        raise MissingEndorsement(f"An endorsement of the kind {wanted.what} has other members.")
    values = [
        wanted.members[name].lower() if name in {"fmspc", "hwid", "request"} else wanted.members[name]
        for name in members
        if name in wanted.members
    ]
    name = "_".join(quote(value, safe="") for value in values)
    if len(name) > _MAX_NAME:
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"{wanted.what}/{name}.{suffix}"
