"""Open a sealed file that comes through a pipe, front to back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time

from strongroom.crypto.derive import ModelKeys
from strongroom.crypto.segments import TAG_SIZE, SegmentCipher
from strongroom.errors import HeaderTampered, Truncated, UsageError, os_errors
from strongroom.format.header import FIXED_SIZE, HeaderArea, area_size
from strongroom.format.layout import PREAMBLE_SIZE, Layout, parse_preamble
from strongroom.format.paths import MANIFEST
from strongroom.keys.base import Identity, unwrap
from strongroom.model.memory import allocate
from strongroom.model.payload import explain

__all__ = ["unseal_stream"]


def _read(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the stream."""
    parts = []
    with os_errors("standard input"):
        while size and (part := stream.read(size)):
            parts.append(part)
            size -= len(part)
    return b"".join(parts)


def unseal_stream(
    stream: IO[bytes],
    identities: Callable[[], Sequence[Identity]],
    write: Callable[[memoryview | bytes], None],
) -> None:
    """Decrypt a single sealed file from a pipe, segment by segment.

    Every segment that is written has been authenticated; that the file is complete is known only
    at its end. Write to something that an exception takes back.

    Raises:
        StrongroomError: as for an open model.
    """
    fixed = _read(stream, FIXED_SIZE)
    area = HeaderArea.parse(fixed + _read(stream, area_size(fixed) - FIXED_SIZE))
    if area.header.path == MANIFEST:
        raise UsageError("This is the manifest of a sealed directory.", hint="Open the directory.")
    keys = ModelKeys(unwrap(area.header, identities()), area.header.bundle)
    try:
        if not constant_time.bytes_eq(keys.header_mac(area.signed), area.mac):
            raise HeaderTampered("The header does not authenticate.")
        preamble = _read(stream, PREAMBLE_SIZE)
        if len(preamble) < PREAMBLE_SIZE:
            raise Truncated("The payload ends before its first segment.")
        salt, prefix = parse_preamble(preamble)
        with keys.file_key(area.header.path, salt) as key:
            cipher = SegmentCipher(key, prefix)
    finally:
        keys.wipe()
    _unseal_segments(stream, cipher, area, write)


def _unseal_segments(
    stream: IO[bytes],
    cipher: SegmentCipher,
    area: HeaderArea,
    write: Callable[[memoryview | bytes], None],
) -> None:
    path, size = area.header.path, area.header.segment
    out = allocate(size)
    number, total = 0, PREAMBLE_SIZE
    current = _read(stream, size - PREAMBLE_SIZE)
    while True:
        total += len(current)
        following = _read(stream, size)
        last = not following
        if last:
            Layout.of_payload(size, total)  # refuses a payload that ends where none can
        plaintext = out[: len(current) - TAG_SIZE]
        try:
            cipher.decrypt_into(number, last, memoryview(current), plaintext)
        except InvalidTag:
            out[:] = bytes(size)
            raise explain(cipher, path, number, last, memoryview(current)) from None
        write(plaintext)
        if last:
            return
        number, current = number + 1, following
