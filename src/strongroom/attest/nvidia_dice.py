"""What the firmware of a GPU says of itself in its own certificate: the TCG's DICE extensions, DER.

Hopper writes a composite device id (2.23.133.5.4.1: a number, a key, one FWID), Blackwell a
DiceTcbInfo (2.23.133.5.4.1.1: members with context tags, of which 6 are FWIDs and 7 are flags).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from strongroom.errors import NotAuthentic

__all__ = ["Dice", "dice_of"]

_OIDS: Final = (x509.ObjectIdentifier("2.23.133.5.4.1.1"), x509.ObjectIdentifier("2.23.133.5.4.1"))
_SHA384: Final = bytes.fromhex("06096086480165030402020430")
"""The object identifier, and the head of an octet string of 48 bytes."""

_FWID_SIZE: Final = 48
_SEQUENCE: Final = 0x30
_BIT_STRING: Final = 0x87
_FWIDS: Final = 0xA6
_FLAGS: Final = ("", "not secure", "in recovery", "debug")
"""By bit. The first means "not configured", and a GB100 in regular service says so of itself."""


@dataclass(frozen=True, slots=True)
class Dice:
    """The extension of one certificate.

    Attributes:
        fwid: SHA-384 of the firmware that holds the key.
        flags: what speaks against it, of "not secure", "in recovery" and "debug".
    """

    fwid: bytes
    flags: tuple[str, ...]


def dice_of(certificate: x509.Certificate) -> Dice:
    """The extension of ``certificate``.

    Raises:
        NotAuthentic: it has none, two, or one in another form: it is not a key of GPU firmware.
    """
    found = [one.value for one in certificate.extensions if one.oid in _OIDS]
    try:
        if len(found) != 1 or not isinstance(found[0], x509.UnrecognizedExtension):
            raise ValueError
        return _parse(found[0].value)
    except (ValueError, IndexError):
        raise NotAuthentic(
            "The certificate of the GPU does not say what firmware holds its key."
        ) from None


def _parse(data: bytes) -> Dice:
    ((tag, body),) = _members(data)
    if tag != _SEQUENCE:
        raise ValueError
    members = list(_members(body))
    tagged = dict(members)
    if _FWIDS not in tagged:
        tag, last = members[-1]
        return Dice(_fwid(tag, last), ())
    if len(tagged) != len(members):
        raise ValueError
    (tag, first), *_ = _members(tagged[_FWIDS])
    flags = tagged.get(_BIT_STRING, b"\x00\x00")
    if len(flags) < 2:
        raise ValueError
    return Dice(
        _fwid(tag, first),
        tuple(name for bit, name in enumerate(_FLAGS) if name and flags[1] & (0x80 >> bit)),
    )


def _fwid(tag: int, body: bytes) -> bytes:
    if tag != _SEQUENCE or not body.startswith(_SHA384) or len(body) != len(_SHA384) + _FWID_SIZE:
        raise ValueError
    return body[len(_SHA384) :]


def _members(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value; lengths in their shortest form, one byte for the tag."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            raw = data[at : at + count]
            size = int.from_bytes(raw)
            if not 1 <= count <= 2 or len(raw) != count or size < 0x80 or (count == 2 and size < 0x100):
                raise ValueError
            at += count
        if tag & 0x1F == 0x1F or at + size > len(data):
            raise ValueError
        yield tag, data[at : at + size]
        at += size
