"""Layout arithmetic against a count that takes one segment after another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import LimitExceeded, Malformed, Truncated
from strongroom.format.layout import Layout, build_preamble, parse_preamble

S = 65536
FIRST, OTHER = S - 56, S - 16


def by_hand(size, segment=S):
    """Plaintext sizes of the segments."""
    pieces = [min(size, segment - 56)]
    size -= pieces[0]
    while size:
        pieces.append(min(size, segment - 16))
        size -= pieces[-1]
    return pieces


EDGES = sorted(
    {
        size + delta
        for size in (0, FIRST, FIRST + OTHER, FIRST + 2 * OTHER, 10 * S)
        for delta in range(-60, 61)
        if size + delta >= 0
    }
)


@pytest.mark.parametrize("size", EDGES)
def test_against_a_count_by_hand(size):
    pieces = by_hand(size)
    layout = Layout.of_plaintext(S, size)
    assert layout.count == len(pieces)
    assert layout.size == size
    assert layout.payload == 40 + size + 16 * len(pieces)
    assert Layout.of_payload(S, layout.payload) == layout
    plaintext, ciphertext = 0, 40
    for number, piece in enumerate(pieces):
        segment = layout[number]
        assert (segment.number, segment.size) == (number, piece)
        assert segment.last == (number == len(pieces) - 1)
        assert (segment.plaintext, segment.ciphertext) == (plaintext, ciphertext)
        assert segment.ciphertext_size == piece + 16
        if number:
            assert segment.ciphertext == number * S
        if piece:
            assert layout.number_at(plaintext) == number
            assert layout.number_at(plaintext + piece - 1) == number
        plaintext += piece
        ciphertext += piece + 16
    assert ciphertext == layout.payload


@given(
    st.integers(16, 24).map(lambda power: 1 << power),
    st.integers(0, 1 << 50),
    st.integers(0, (1 << 50) - 1),
)
def test_any_offset_lies_in_its_segment(segment, size, offset):
    try:
        layout = Layout.of_plaintext(segment, size)
    except LimitExceeded:
        assert size > (1 << 32) * (segment - 16) - 40
        return
    assert Layout.of_payload(segment, layout.payload) == layout
    assert layout.size == size
    if offset < size:
        found = layout[layout.number_at(offset)]
        assert found.plaintext <= offset < found.plaintext + found.size


@pytest.mark.parametrize("payload", range(56))
def test_too_short(payload):
    with pytest.raises(Truncated):
        Layout.of_payload(S, payload)


@pytest.mark.parametrize("segments", [1, 2, 7])
def test_payloads_that_cannot_be(segments):
    for tail in range(1, 16):
        with pytest.raises(Truncated, match="tag"):
            Layout.of_payload(S, segments * S + tail)
    with pytest.raises(Malformed) as caught:
        Layout.of_payload(S, segments * S + 16)
    assert caught.value.field == "payload"
    assert Layout.of_payload(S, segments * S + 17)[segments].size == 1
    assert Layout.of_payload(S, segments * S).count == segments


def test_most_segments():
    full = S << 32
    assert Layout.of_payload(S, full).count == 1 << 32
    with pytest.raises(LimitExceeded):
        Layout.of_payload(S, full + 17)
    size = Layout.of_payload(S, full).size
    assert Layout.of_plaintext(S, size).payload == full
    with pytest.raises(LimitExceeded):
        Layout.of_plaintext(S, size + 1)


def test_preamble():
    salt, prefix = bytes(range(32)), b"prefix7"
    raw = build_preamble(salt, prefix)
    assert raw == b"\x28" + salt + prefix
    assert parse_preamble(raw) == (salt, prefix)
    for first in set(range(256)) - {0x28}:
        with pytest.raises(Malformed):
            parse_preamble(bytes([first]) + raw[1:])
