"""The attestation document of an AWS Nitro enclave: bytes to fields; nothing is verified here.

COSE_Sign1 (RFC 9052) around a CBOR map, as AWS describes it under "Verifying the root of trust". CBOR can
say one thing in many ways: the outer structure must be in its shortest form, every key in it once, and
nothing behind its end. The map inside has no definite length in real documents.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Final

from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.errors import MalformedEvidence, MissingExtra

__all__ = ["PCR_SIZE", "Document", "parse_document"]

PCR_SIZE: Final = 48
_MAX_PCRS: Final = 32
_SIGNATURE_SIZE: Final = 96
_PROTECTED: Final = {1: -35}
"""The algorithm, ES384."""

_TAGS: Final = (b"", b"\xd2")
"""The tag of COSE_Sign1 may be there or not; the Nitro security module leaves it out."""

_MAX_USER_DATA: Final = 512
_MAX_PUBLIC_KEY: Final = 1024
_MAX_CERTIFICATE: Final = 1024
_MODULE: Final = re.compile(r"(i-[0-9a-f]{8,32})-enc[0-9a-f]{8,32}")
_END_OF_TIME: Final = 253_402_300_799_000
"""Milliseconds: the last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        module_id: of the enclave, ``i-…-enc…``.
        instance_id: of the virtual machine that has it, ``i-…``.
        time: when it was made.
        pcrs: index → 48 bytes.
        certificate: of the key that signed it, DER.
        cabundle: root first, DER.
        public_key: that the enclave has put into it, or None; as are the next two.
        user_data: at most 512 bytes.
        nonce: at most 512 bytes.
        signed: what the signature covers.
        signature: r and s, 48 bytes each.
    """

    module_id: str
    instance_id: str
    time: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes = field(repr=False)
    cabundle: Sequence[bytes] = field(repr=False)
    public_key: bytes | None = field(repr=False)
    user_data: bytes | None
    nonce: bytes | None
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def _cbor() -> ModuleType:
    try:
        import cbor2
    except ImportError:
        raise MissingExtra("Verifying documents of Nitro enclaves", "attest") from None
    return cbor2


def parse_document(data: bytes) -> Document:
    """Parse a document.

    Raises:
        MalformedEvidence: it is something else, or breaks a limit of AWS.
        MissingExtra: there is no package for CBOR.
    """
    cbor = _cbor()
    try:
        protected, payload, signature = _envelope(cbor, data)
        members = _decode(cbor, payload)
        if not isinstance(members, dict):
            raise ValueError("it holds no map")
        module_id = _text(members, "module_id")
        module = _MODULE.fullmatch(module_id)
        if module is None:
            raise ValueError("module_id is not that of an enclave")
        if members.get("digest") != "SHA384":
            raise ValueError("digest is not SHA384")
        return Document(
            module_id=module_id,
            instance_id=module[1],
            time=_time(members.get("timestamp")),
            pcrs=_pcrs(members.get("pcrs")),
            certificate=_octets(members.get("certificate"), "certificate", 1, _MAX_CERTIFICATE),
            cabundle=_cabundle(members.get("cabundle")),
            public_key=_optional(members, "public_key", _MAX_PUBLIC_KEY),
            user_data=_optional(members, "user_data", _MAX_USER_DATA),
            nonce=_optional(members, "nonce", _MAX_USER_DATA),
            signed=cbor.dumps(["Signature1", protected, b"", payload]),
            signature=signature,
        )
    except (ValueError, TypeError, RecursionError, cbor.CBORError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise MalformedEvidence(f"This is no document of a Nitro enclave: {reason}.") from None


def _envelope(cbor: ModuleType, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of the COSE_Sign1."""
    tag = _TAGS[data[:1] == _TAGS[1]]
    parts = _decode(cbor, data.removeprefix(tag))
    if not isinstance(parts, list) or len(parts) != 4:
        raise ValueError("it is no COSE_Sign1")
    protected, unprotected, payload, signature = parts
    if unprotected != {} or not all(
        isinstance(part, bytes) for part in (protected, payload, signature)
    ):
        raise ValueError("it is no COSE_Sign1")
    # In any other spelling the same document would be other bytes.
    if cbor.dumps(parts) != data.removeprefix(tag):
        raise ValueError("its CBOR is not in the shortest form")
    if protected != cbor.dumps(_PROTECTED):
        raise ValueError("it is signed by another algorithm than ES384")
    if len(signature) != _SIGNATURE_SIZE:
        raise ValueError("its signature has a wrong size")
    return protected, payload, signature


def _decode(cbor: ModuleType, data: bytes) -> Any:
    """One item, and nothing behind it."""
    decoder = cbor.CBORDecoder(io.BytesIO(data), allow_duplicate_keys=False, max_depth=3)
    value = decoder.decode()
    try:
        decoder.decode()
    except cbor.CBORDecodeEOF:
        return value
    raise ValueError("something follows its end")


def _text(members: dict[Any, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _octets(value: Any, name: str, least: int, most: int) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise ValueError(f"{name} does not have {least} to {most} bytes")
    return value


def _optional(members: dict[Any, Any], name: str, most: int) -> bytes | None:
    value = members.get(name)
    return None if value is None else _octets(value, name, 0, most)


def _time(value: Any) -> datetime:
    if type(value) is not int or not 0 < value <= _END_OF_TIME:
        raise ValueError("timestamp is no time")
    return datetime.fromtimestamp(value / 1000, UTC)


def _pcrs(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 0 < len(value) <= _MAX_PCRS:
        raise ValueError(f"pcrs does not have 1 to {_MAX_PCRS} registers")
    for index, register in value.items():
        if type(index) is not int or not 0 <= index < _MAX_PCRS:
            raise ValueError("a PCR has a number that is none")
        _octets(register, f"PCR {index}", PCR_SIZE, PCR_SIZE)
    if not {0, 1, 2} <= set(value):
        raise ValueError("one of the PCRs 0, 1 and 2 is missing")
    return value


def _cabundle(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CERTIFICATES:
        raise ValueError(f"cabundle does not have 1 to {MAX_CERTIFICATES} certificates")
    return tuple(_octets(one, "a certificate of cabundle", 1, _MAX_CERTIFICATE) for one in value)
