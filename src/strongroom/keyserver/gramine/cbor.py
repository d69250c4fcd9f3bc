"""CBOR (RFC 8949) as strict as evidence needs it: one encoding for each value, nothing twice, nothing left over.

Only unsigned numbers, byte strings, texts, arrays, maps with texts as keys, and tags: Gramine's evidence
has nothing else. Libraries take indefinite lengths, longer encodings than necessary and duplicate keys,
with which two parsers read two different things.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

__all__ = ["Tagged", "decode"]

_DEPTH: Final = 4
_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = 0, 2, 3, 4, 5, 6


class Tagged(NamedTuple):
    """A value under a tag."""

    tag: int
    value: Any


def decode(data: bytes) -> Any:
    """The one value that is all of ``data``.

    Raises:
        ValueError: it is not, or not in the one encoding that is taken.
    """
    value, end = _item(data, 0, _DEPTH)
    if end != len(data):
        raise ValueError("something stands behind its end")
    return value


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type, argument, and where what follows begins."""
    if at >= len(data):
        raise ValueError("it is cut")
    kind, small = data[at] >> 5, data[at] & 0x1F
    if small < 24:
        return kind, small, at + 1
    if small > 27:
        raise ValueError("it has a length that is not definite")
    size = 1 << (small - 24)
    argument = int.from_bytes(data[at + 1 : at + 1 + size], "big")
    if at + 1 + size > len(data):
        raise ValueError("it is cut")
    if argument < (24 if size == 1 else 1 << (4 * size)):
        raise ValueError("a number is longer than it needs to be")
    return kind, argument, at + 1 + size


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind, argument, at = _head(data, at)
    if kind == _UNSIGNED:
        return argument, at
    if kind in (_BYTES, _TEXT):
        end = at + argument
        if end > len(data):
            raise ValueError("it is cut")
        return (data[at:end] if kind == _BYTES else data[at:end].decode()), end
    if not depth:
        raise ValueError("it is nested too deeply")
    if kind == _TAG:
        value, at = _item(data, at, depth - 1)
        return Tagged(argument, value), at
    # Each entry has a byte at least: no count makes this run longer than the data are.
    if kind == _ARRAY:
        values = []
        for _ in range(argument):
            value, at = _item(data, at, depth - 1)
            values.append(value)
        return values, at
    if kind != _MAP:
        raise ValueError(f"it has a value of the type {kind}")
    members: dict[str, Any] = {}
    for _ in range(argument):
        name, at = _item(data, at, 0)
        if not isinstance(name, str) or name in members:
            raise ValueError("a map has a key twice, or one that is no text")
        members[name], at = _item(data, at, depth - 1)
    return members, at
