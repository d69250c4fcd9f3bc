"""A foreign file through a cipher of ``cryptography``, front to back, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import CipherContext

from strongroom.compat.base import Write
from strongroom.errors import ForeignTampered, FormatError
from strongroom.model.memory import allocate
from strongroom.model.parallel import in_order
from strongroom.model.payload import Content
from strongroom.model.storage import Source

__all__ = ["BLOCK", "decipher", "decipher_padded", "encipher", "pieces", "read_range"]

BLOCK: Final = 16
"""Bytes of an AES block."""

_PIECE: Final = 1 << 20
# They read while the cipher runs in the caller's thread; more help only where requests wait.
_READERS: Final = 2


def read_range(source: Source, start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end`` (exclusive), for ranges that are small."""
    out = memoryview(bytearray(end - start))
    source.read_into(start, out)
    return bytes(out)


def pieces(
    source: Source, start: int, end: int, consume: Callable[[memoryview], None], size: int = 0
) -> None:
    """Hand the bytes from ``start`` to ``end`` to ``consume`` in order, reading ahead.

    Args:
        size: of a piece; by default what the source likes to be asked for. A piece is valid
            until ``consume`` returns.
    """
    size = size or max(_PIECE, source.request)

    def produce(number: int, out: memoryview) -> int:
        at = start + number * size
        part = out[: min(size, end - at)]
        source.read_into(at, part)
        return len(part)

    count = -(-(end - start) // size)
    # A file of one or two pieces is read before a thread has started.
    threads = 1 if count <= 2 else (source.threads or _READERS)
    in_order(count, min(size, max(1, end - start)), produce, consume, threads)


def decipher(source: Source, start: int, end: int, cipher: CipherContext, write: Write) -> None:
    """Put the bytes from ``start`` to ``end`` through a stream cipher mode (CTR, GCM).

    The caller finalizes ``cipher``.
    """
    out = memoryview(bytearray())

    def consume(piece: memoryview) -> None:
        nonlocal out
        if len(out) < len(piece) + BLOCK:
            out = allocate(len(piece) + BLOCK)  # update_into asks for room for a block more
        write(out[: cipher.update_into(piece, out)])

    pieces(source, start, end, consume)


def decipher_padded(source: Source, start: int, cipher: CipherContext, write: Write) -> None:
    """Put a file from ``start`` to its end through a block mode (CBC, ECB) and take PKCS#7 off.

    Raises:
        FormatError: there are no whole blocks.
        ForeignTampered: the padding is wrong. That it is right says next to nothing: it is for
            one wrong key in 256.
    """
    size = source.size - start
    if size < BLOCK or size % BLOCK:
        raise FormatError(
            f"{source.name} does not consist of AES blocks: it has {source.size} bytes.",
            hint="It is cut short, or is of another format.",
        )
    decipher(source, start, source.size - BLOCK, cipher, write)
    last = memoryview(bytearray(2 * BLOCK))
    last = last[: cipher.update_into(read_range(source, source.size - BLOCK, source.size), last)]
    cipher.finalize()
    padding = last[-1]
    if not 1 <= padding <= BLOCK or last[-padding:] != bytes([padding]) * padding:
        raise ForeignTampered(
            f"{source.name} does not end as it should under this key.",
            hint="It was encrypted under another key, or is damaged.",
        )
    if padding < BLOCK:
        write(last[: BLOCK - padding])


def encipher(content: Content, cipher: CipherContext, write: Write) -> None:
    """Put the content of a file through ``cipher``; the caller finalizes it."""
    out = allocate(_PIECE + BLOCK)

    def consume(plaintext: memoryview) -> None:
        for start in range(0, len(plaintext), _PIECE):
            write(out[: cipher.update_into(plaintext[start : start + _PIECE], out)])

    content.copy_to(consume)
