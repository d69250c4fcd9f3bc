"""Vectors about the payload of a sealed file: sizes, order, ends, authenticity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from strongroom.testing.raw import (
    SEGMENT,
    Vector,
    area,
    b64,
    header,
    pattern,
    sealed,
    segments,
)

__all__ = ["vectors"]

FIRST = SEGMENT - 56
OTHER = SEGMENT - 16
AREA = area(header())


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _valid()
    yield from _sizes()
    yield from _order()
    yield from _authenticity()


def _valid() -> Iterator[Vector]:
    for name, size in (
        ("empty-file", 0),
        ("one-byte", 1),
        ("first-segment-full-less-one", FIRST - 1),
        ("first-segment-full", FIRST),
        ("first-segment-full-and-one", FIRST + 1),
        ("two-segments-full", FIRST + OTHER),
        ("two-segments-full-and-one", FIRST + OTHER + 1),
    ):
        plain = pattern(name, size)
        yield Vector(f"valid-{name}", sealed(plain), plain={"model.bin": plain})
    for segment in (131072, 1048576, 16777216):
        plain = pattern(f"segment {segment}", 1000)
        content = sealed(plain, segment=segment)
        yield Vector(f"valid-segment-{segment}", content, plain={"model.bin": plain})
    plain = pattern("segment 131072, two of them", 131072 - 56 + 10)
    content = sealed(plain, segment=131072)
    yield Vector("valid-segment-131072-two", content, plain={"model.bin": plain})


def _bad(name: str, payload: bytes, error: str, *, inspect: bool = False, **detail: Any) -> Vector:
    return Vector(name, AREA + payload, expect=error, detail=detail, inspect=inspect)


def _changed(name: str, payload: bytes, *wrong: int) -> Vector:
    """Refused at one of the segments ``wrong``: which is met first depends on the reader."""
    return _bad(name, payload, "PayloadTampered", path="model.bin", segments=list(wrong))


def _sizes() -> Iterator[Vector]:
    short = b"".join(segments(b""))
    for size in (0, 1, 40, 55):
        yield _bad(f"payload-of-{size}-bytes", short[:size], "Truncated", inspect=True)
    yield _bad("preamble-length", b"\x27" + short[1:], "Malformed", field="payload")
    one = segments(pattern("plaintext", 100))[0]
    yield _changed("truncated-by-one-byte", one[:-1], 0)
    yield _changed("truncated-by-a-tag", one[:-16], 0)
    yield _changed("appended-one-byte", one + b"\0", 0)
    yield _changed("appended-a-tag", one + bytes(16), 0)
    first, last = segments(pattern("two segments", FIRST + 10))
    yield _bad("truncated-at-a-segment", first, "Truncated")
    yield _bad("truncated-inside-the-last-tag", first + last[:15], "Truncated", inspect=True)
    yield _changed("truncated-inside-the-last-segment", first + last[:20], 1)
    empty = b"".join(segments(pattern("two segments", FIRST), empty_last=True))
    yield _bad("empty-last-segment", empty, "Malformed", inspect=True, field="payload")
    yield _bad(
        "truncated-to-an-empty-last-segment",
        first + last[:16],
        "Malformed",
        inspect=True,
        field="payload",
    )


def _order() -> Iterator[Vector]:
    first, second, third, last = segments(pattern("four segments", FIRST + 2 * OTHER + 10))
    yield _changed("segments-swapped", first + third + second + last, 1, 2)
    yield _changed("segment-repeated", first + second + second + third + last, 2, 3, 4)
    yield _changed("segment-dropped", first + third + last, 1, 2)
    yield _bad("last-segment-dropped", first + second + third, "Truncated")
    one = segments(pattern("plaintext", 100))[0]
    yield _changed("payload-twice", one + one, 0)


def _flip(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]


def _authenticity() -> Iterator[Vector]:
    first, second, last = segments(pattern("three segments", FIRST + OTHER + 10))
    yield _changed("first-segment-changed", _flip(first, 1000) + second + last, 0)
    yield _changed("middle-segment-changed", first + _flip(second, 0) + last, 1)
    yield _changed("middle-segment-tag-changed", first + _flip(second, -1) + last, 1)
    yield _changed("last-segment-changed", first + second + _flip(last, 0), 2)
    yield _changed("last-segment-tag-changed", first + second + _flip(last, -1), 2)
    one = segments(pattern("plaintext", 100))[0]
    yield _changed("file-salt-changed", _flip(one, 1), 0)
    yield _changed("nonce-prefix-changed", _flip(one, 33), 0)
    plain = pattern("plaintext", 100)
    other_bundle = segments(plain, bundle=pattern("another bundle", 16))[0]
    yield _changed("payload-of-another-bundle", other_bundle, 0)
    yield _changed("payload-of-another-path", segments(plain, "other.bin")[0], 0)
    yield _changed("payload-of-another-key", segments(plain, dek=pattern("DEK 2", 32))[0], 0)
    # The same DEK, but the header's own bundle is another: its MAC then fails first.
    moved = area(header(bundle=b64(pattern("another bundle", 16)))) + one
    yield Vector("header-of-another-bundle", moved, expect="HeaderTampered")
    wider = area(header(segment=2 * SEGMENT)) + first + second + last
    yield Vector(
        "segment-size-of-another-writer",
        wider,
        expect="PayloadTampered",
        detail={"path": "model.bin", "segments": [0, 1]},
    )
