"""Where each segment of a payload lies, in the payload and in the plaintext. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from strongroom.crypto.segments import PREFIX_SIZE, SALT_SIZE, TAG_SIZE
from strongroom.errors import LimitExceeded, Malformed, Truncated
from strongroom.format.limits import MAX_SEGMENTS

__all__ = ["PREAMBLE_SIZE", "Layout", "Segment", "build_preamble", "parse_preamble"]

PREAMBLE_SIZE: Final = 1 + SALT_SIZE + PREFIX_SIZE
"""Length byte, file salt and nonce prefix before the first segment: 40 bytes."""


def build_preamble(salt: bytes, prefix: bytes) -> bytes:
    """The 40 bytes before the first segment."""
    return bytes([PREAMBLE_SIZE]) + salt + prefix


def parse_preamble(raw: bytes) -> tuple[bytes, bytes]:
    """File salt and nonce prefix.

    Raises:
        Malformed: the length byte is not 0x28.
    """
    if raw[0] != PREAMBLE_SIZE:
        raise Malformed("payload", "does not start with 0x28")
    return raw[1 : 1 + SALT_SIZE], raw[1 + SALT_SIZE : PREAMBLE_SIZE]


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its number, whether it is the last, where its ciphertext (offset in the
    payload) and its plaintext (offset in the file's plaintext) start, and the plaintext's size.
    """

    number: int
    last: bool
    ciphertext: int
    plaintext: int
    size: int

    @property
    def ciphertext_size(self) -> int:
        return self.size + TAG_SIZE


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a payload of ``payload`` bytes with segment size ``segment``."""

    segment: int
    payload: int

    @classmethod
    def of_payload(cls, segment: int, payload: int) -> Layout:
        """Check a payload's size.

        Raises:
            Truncated: no payload of this size exists, because its end is missing.
            Malformed: it would end in an empty segment.
            LimitExceeded: more than 2³² segments.
        """
        if payload < PREAMBLE_SIZE + TAG_SIZE:
            raise Truncated(f"The payload has {payload} bytes; the smallest one has 56.")
        layout = cls(segment, payload)
        if layout.count > MAX_SEGMENTS:
            raise LimitExceeded("The payload has more than 2³² segments.")
        tail = payload - (layout.count - 1) * segment
        if layout.count > 1 and tail < TAG_SIZE:
            raise Truncated("The payload ends inside the tag of its last segment.")
        if layout.count > 1 and tail == TAG_SIZE:
            raise Malformed("payload", "ends in an empty segment")
        return layout

    @classmethod
    def of_plaintext(cls, segment: int, size: int) -> Layout:
        """The layout that a plaintext of ``size`` bytes gets.

        Raises:
            LimitExceeded: more than 2³² segments.
        """
        first = segment - PREAMBLE_SIZE - TAG_SIZE
        if size <= first:
            return cls(segment, PREAMBLE_SIZE + size + TAG_SIZE)
        rest = size - first
        count = -(-rest // (segment - TAG_SIZE))
        if count + 1 > MAX_SEGMENTS:
            raise LimitExceeded("The file is too large for this segment size.")
        return cls(segment, segment + rest + count * TAG_SIZE)

    @property
    def count(self) -> int:
        """How many segments there are; at least one."""
        return -(-self.payload // self.segment)

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self.payload - PREAMBLE_SIZE - self.count * TAG_SIZE

    def __getitem__(self, number: int) -> Segment:
        start = number * self.segment
        end = min(start + self.segment, self.payload)
        if number == 0:
            begin, plaintext = PREAMBLE_SIZE, 0
        else:
            begin, plaintext = start, start - PREAMBLE_SIZE - number * TAG_SIZE
        return Segment(number, end == self.payload, begin, plaintext, end - begin - TAG_SIZE)

    def number_at(self, offset: int) -> int:
        """The number of the segment that holds plaintext byte ``offset``."""
        # Every segment but the first holds S-16 bytes; the first looks like one that lost 40.
        return (offset + PREAMBLE_SIZE) // (self.segment - TAG_SIZE)
