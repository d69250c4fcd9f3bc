"""The header area of a sealed file: magic, header, MAC, padding."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from strongroom.crypto.derive import BUNDLE_SIZE, MAC_SIZE
from strongroom.errors import LimitExceeded, Malformed, NotSealed, Truncated, UnsupportedVersion
from strongroom.format.encoding import b64url, dump_json, load_json, unb64url
from strongroom.format.limits import (
    DEFAULT_SEGMENT,
    HEADER_ALIGNMENT,
    MAX_HEADER_AREA,
    MAX_SEGMENT,
    MIN_SEGMENT,
)
from strongroom.format.paths import check_path

__all__ = ["FIXED_SIZE", "MAGIC", "VERSION", "Header", "HeaderArea", "area_size", "check_segment_size"]

MAGIC: Final = b"\x89SRM\r\n\x1a\n"
VERSION: Final = 1
FIXED_SIZE: Final = 16
"""Bytes before the header: magic, size of the area, size of the header."""

_MEMBERS: Final = ("v", "bundle", "path", "segment", "recipients", "meta")


def check_segment_size(segment: object) -> int:
    """Return ``segment`` if it is a power of two between 64 KiB and 16 MiB.

    Raises:
        Malformed: anything else.
    """
    if type(segment) is not int or segment.bit_count() != 1:
        raise Malformed("segment", "is not a power of two")
    if not MIN_SEGMENT <= segment <= MAX_SEGMENT:
        raise Malformed("segment", f"is not between {MIN_SEGMENT} and {MAX_SEGMENT}")
    return segment


def _check_recipient(entry: object, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise Malformed(where, "is not an object")
    for name in ("alg", "kid", "uri"):
        if (name == "alg" or name in entry) and not isinstance(entry.get(name), str):
            raise Malformed(f"{where}.{name}", "is not a string")
    if "encrypted_key" in entry:
        unb64url(entry["encrypted_key"], f"{where}.encrypted_key")
    return entry


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed file says of itself. ``recipients`` are JSON objects with at least ``alg``."""

    bundle: bytes
    path: str
    segment: int = DEFAULT_SEGMENT
    recipients: Sequence[Mapping[str, Any]] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes) -> Header:
        """Parse and check the JSON.

        Raises:
            UnsupportedVersion: ``v`` is not 1.
            Malformed: any other rule is broken; ``field`` says which member.
        """
        members = load_json(raw, "header")
        version = members.get("v")
        if type(version) is not int:
            raise Malformed("v", "is not an integer")
        if version != VERSION:
            raise UnsupportedVersion(
                f"The file has format version {version}; this release reads version {VERSION}.",
                hint="Upgrade strongroom.",
            )
        for name in members:
            if name not in _MEMBERS:
                raise Malformed("header", f"has an unknown member {name!r}")
        for name in _MEMBERS:
            if name not in members:
                raise Malformed(name, "is missing")
        recipients, meta = members["recipients"], members["meta"]
        if not isinstance(recipients, list):
            raise Malformed("recipients", "is not an array")
        if not isinstance(meta, dict):
            raise Malformed("meta", "is not an object")
        return cls(
            bundle=unb64url(members["bundle"], "bundle", BUNDLE_SIZE),
            path=check_path(members["path"]),
            segment=check_segment_size(members["segment"]),
            recipients=tuple(
                _check_recipient(entry, f"recipients[{index}]")
                for index, entry in enumerate(recipients)
            ),
            meta=meta,
        )

    def encode(self) -> bytes:
        """The JSON that a writer puts in the file."""
        return dump_json(
            {
                "v": VERSION,
                "bundle": b64url(self.bundle),
                "path": self.path,
                "segment": self.segment,
                "recipients": [dict(entry) for entry in self.recipients],
                "meta": dict(self.meta),
            }
        )


def area_size(fixed: bytes) -> int:
    """A, from the first 16 bytes of a file.

    Raises:
        NotSealed: the magic is missing.
        Truncated: fewer than 16 bytes.
        Malformed, LimitExceeded: sizes that no writer makes.
    """
    if fixed[:8] != MAGIC[: len(fixed[:8])] or not fixed:
        raise NotSealed("This is not a sealed file.")
    if len(fixed) < FIXED_SIZE:
        raise Truncated("The file ends inside its header.")
    area, header = struct.unpack(">II", fixed[8:16])
    if area > MAX_HEADER_AREA:
        raise LimitExceeded(f"The header area has {area} bytes; at most {MAX_HEADER_AREA} are read.")
    if area < HEADER_ALIGNMENT or area % HEADER_ALIGNMENT:
        raise Malformed("header area", "is not a multiple of 4096")
    if FIXED_SIZE + header + MAC_SIZE > area:
        raise Malformed("header", "is larger than its area")
    return int(area)


@dataclass(frozen=True, slots=True)
class HeaderArea:
    """A parsed header area: the header, the bytes that the MAC covers, the MAC, the area's size."""

    header: Header
    signed: bytes
    mac: bytes
    size: int

    @classmethod
    def parse(cls, raw: bytes) -> HeaderArea:
        """Parse ``raw``, the whole area (or the beginning of a file that is cut inside it).

        The header is not authentic before its MAC has been checked.

        Raises:
            FormatError, Truncated: as the rules of the format say.
        """
        size = area_size(raw[:FIXED_SIZE])
        if len(raw) < size:
            raise Truncated("The file ends inside its header.")
        end = FIXED_SIZE + int.from_bytes(raw[12:16], "big")
        header = Header.parse(raw[FIXED_SIZE:end])
        if any(raw[end + MAC_SIZE : size]):
            raise Malformed("padding", "is not zero")
        return cls(header, raw[:end], raw[end : end + MAC_SIZE], size)

    @staticmethod
    def build(header: Header, mac: Callable[[bytes], bytes], minimum: int = HEADER_ALIGNMENT) -> bytes:
        """The bytes of the area, at least ``minimum`` of them.

        Raises:
            LimitExceeded: the header needs more than 1 MiB.
        """
        encoded = header.encode()
        needed = FIXED_SIZE + len(encoded) + MAC_SIZE
        size = max(minimum, -(-needed // HEADER_ALIGNMENT) * HEADER_ALIGNMENT)
        if size > MAX_HEADER_AREA:
            raise LimitExceeded(
                f"The header would have {needed} bytes; at most {MAX_HEADER_AREA} are allowed.",
                hint="Use fewer recipients or less metadata.",
            )
        signed = MAGIC + struct.pack(">II", size, len(encoded)) + encoded
        return (signed + mac(signed)).ljust(size, b"\x00")
