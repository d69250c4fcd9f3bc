"""Large tensors in gRPC messages without protobuf's copies.

protobuf copies contents when it reads a message and once more for each access, and when it writes one,
twice: with 600 KB in and out six copies in all. Here the contents stay where they came, and are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["LARGE", "LargeRequest", "LargeResponse", "reader", "writer"]

LARGE: Final = 64 << 10
"""Bytes from which looking at the fields here, some microseconds, costs less than the copies."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW_INPUT: Final = 7 << 3 | _BYTES
_RAW_OUTPUT: Final = bytes([6 << 3 | _BYTES])


class LargeRequest:
    """A ``ModelInferRequest``.

    Attributes:
        raw_input_contents: views of the bytes that came.
    """

    def __init__(self, message: Any, raw: Sequence[memoryview], size: int) -> None:
        self.raw_input_contents = raw
        self._message = message
        self._size = size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def ByteSize(self) -> int:  # noqa: N802  as of messages
        """The bytes that came."""
        return self._size


class LargeResponse:
    """A ``ModelInferResponse``.

    Args:
        message: without raw contents.
        pieces: the raw contents.
    """

    def __init__(self, message: Any, pieces: Sequence[bytes | memoryview]) -> None:
        self._message = message
        self._pieces = pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def SerializeToString(self) -> bytes:  # noqa: N802  as of messages
        """The bytes of the whole message."""
        parts: list[bytes | memoryview] = [self._message.SerializeToString()]
        for piece in self._pieces:
            parts += (_RAW_OUTPUT, _varint(len(piece)), piece)
        return b"".join(parts)


def reader(kind: Any, large: int = LARGE) -> Callable[[bytes], Any]:
    """What makes a message of this kind, or a :class:`LargeRequest` of so many bytes at least."""

    def read(data: bytes) -> Any:
        found = _split(data) if len(data) >= large else None
        if found is None:
            return kind.FromString(data)
        rest, raw = found
        return LargeRequest(kind.FromString(rest), raw, len(data))

    return read


def writer(response: Any) -> bytes:
    """The bytes of a message, or of a :class:`LargeResponse`."""
    data: bytes = response.SerializeToString()
    return data


def _split(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """The message without its raw contents, and these; None leaves it, and its faults, to protobuf."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at, end = 0, len(data)
    try:
        while at < end:
            begin = at
            key, at = _read_varint(data, at)
            kind = key & 7
            if kind == _BYTES:
                length, at = _read_varint(data, at)
                at += length
            elif kind == _VARINT:
                _, at = _read_varint(data, at)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                return None
            if at > end:
                return None
            if key == _RAW_INPUT:
                raw.append(view[at - length : at])
            else:
                rest.append(view[begin:at])
    except IndexError:
        return None
    return b"".join(rest), raw


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
