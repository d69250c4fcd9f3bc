"""Gramine's encrypted files: what was changed, cut, moved, swapped or left over is found or never read."""

import os

import gramine_reference as reference
import pytest
from foreign import memory_source, says_nothing, secret
from gramine_files import GROUP, HEAD, KEY, NODE, PATH, gramine, plain, read
from hypothesis import given
from hypothesis import strategies as st

from strongroom.compat.base import ForeignTampered
from strongroom.compat.gramine import GramineCodec
from strongroom.compat.gramine_nodes import node_count
from strongroom.compat.gramine_reader import GramineFile
from strongroom.errors import FormatError, UnsupportedVersion

SMALL = plain(HEAD + 2 * NODE)
SMALL_FILE = reference.seal(KEY, PATH, SMALL)


def test_every_changed_byte_is_found():
    for place in [*range(3943), *range(NODE, len(SMALL_FILE), 61), len(SMALL_FILE) - 1]:
        changed = bytearray(SMALL_FILE)
        changed[place] ^= 1 << place % 8
        if place in (9, 58):  # the minor version; flags, of which the first bit is for recovery
            continue
        with pytest.raises((ForeignTampered, FormatError)) as caught:
            read(changed)
        assert says_nothing(caught.value, KEY, SMALL[:16])


def test_every_bit_of_the_header_is_looked_at():
    for place in range(10):
        for bit in range(8):
            changed = bytearray(SMALL_FILE)
            changed[place] ^= 1 << bit
            if place == 9:
                assert read(changed) == SMALL
            else:
                with pytest.raises((ForeignTampered, FormatError)):
                    read(changed)


def test_padding_and_unknown_flags_mean_nothing():
    changed = bytearray(SMALL_FILE)
    changed[58] = 0xFE
    changed[3943:4096] = bytes(153 * [7])
    assert read(changed) == SMALL


def test_every_truncation_is_found():
    file = reference.seal(KEY, PATH, plain(HEAD + GROUP + NODE + 1))
    for size in [*range(0, len(file), NODE), *range(1, len(file), 40_009), len(file) - 1]:
        with pytest.raises((ForeignTampered, FormatError)):
            read(file[:size])


def test_a_version_that_is_not_known():
    changed = bytearray(SMALL_FILE)
    changed[8] = 3
    with pytest.raises(UnsupportedVersion):
        read(changed)


def test_moved_file_is_found_when_its_path_is_given():
    assert read(SMALL_FILE, path="models//x/../net.onnx") == SMALL
    for path in ("models/other.onnx", "net.onnx", "/models/net.onnx", "models/net.onn"):
        with pytest.raises(ForeignTampered, match=r"bound to the path 'models/net\.onnx'"):
            read(SMALL_FILE, path=path)
    assert read(SMALL_FILE) == SMALL, "without a path any is taken, as the docs say"


def swapped(file: bytes, one: int, other: int) -> bytes:
    nodes = [file[at : at + NODE] for at in range(0, len(file), NODE)]
    nodes[one], nodes[other] = nodes[other], nodes[one]
    return b"".join(nodes)


@pytest.mark.parametrize(
    ("one", "other"), [(2, 3), (2, 97), (1, 98), (1, 2), (2, 99), (98, 195), (0, 1)]
)
def test_swapped_nodes_of_a_file_are_found(one, other):
    file = reference.seal(KEY, PATH, plain(HEAD + 3 * GROUP))
    with pytest.raises((ForeignTampered, FormatError)):
        read(swapped(file, one, other))


@pytest.mark.parametrize("node", [0, 1, 2, 97, 98, 99])
def test_nodes_of_another_file_under_the_same_wrap_key_are_found(node):
    one = reference.seal(KEY, PATH, plain(HEAD + 2 * GROUP))
    other = reference.seal(KEY, PATH, plain(HEAD + 2 * GROUP))
    at = node * NODE
    with pytest.raises(ForeignTampered):
        read(one[:at] + other[at : at + NODE] + one[at + NODE :])


def test_rollback_is_not_found_and_that_is_said():
    older, newer = (reference.seal(KEY, PATH, data) for data in (b"older", b"newer"))
    assert read(newer, path=PATH.decode()) == b"newer"
    assert read(older, path=PATH.decode()) == b"older"
    assert "older version" in GramineCodec.unprotected
    assert "rollback" in GramineCodec.unprotected


# Stale nodes are never trusted


@pytest.mark.parametrize("size", [0, 5, HEAD, HEAD + 1, 5000, HEAD + GROUP, HEAD + GROUP + 1])
def test_stale_nodes_of_a_shortened_file_are_not_read(size):
    """The rest of the head, of the last node, of the MHT nodes, and nodes behind the end."""
    longer = plain(HEAD + 3 * GROUP)
    file = reference.seal(KEY, PATH, longer, size=size)
    assert read(file) == longer[:size]
    assert read(file[: node_count(size) * NODE]) == longer[:size]
    garbage = file[: node_count(size) * NODE] + bytes(os.urandom(NODE))
    assert read(garbage) == longer[:size]
    out = memoryview(bytearray(10))
    assert GramineFile(memory_source(file), secret(KEY)).read_into(out, size) == 0


def test_stale_nodes_are_not_taken_for_the_end():
    """Over a longer file a shorter one was written; what is left over is no part of it."""
    old = reference.seal(KEY, PATH, plain(HEAD + 2 * GROUP))
    new = reference.seal(KEY, PATH, plain(HEAD + NODE))
    assert read(new + old[len(new) :]) == plain(HEAD + NODE)
    changed = bytearray(new + old[len(new) :])
    changed[2 * NODE] ^= 1
    with pytest.raises(ForeignTampered):
        read(changed)


# Hostile, though authentic


@pytest.mark.parametrize("size", [HEAD + 1, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_size_beyond_the_file_is_refused_before_anything_is_allocated(size):
    file = reference.metadata_node(KEY, PATH, size, bytes(32), b"")
    with pytest.raises(ForeignTampered, match="cut short"):
        gramine().decrypt(memory_source(file), "m")


def test_a_path_without_end():
    file = reference.metadata_node(KEY, b"x" * 772, 0, bytes(32), b"")
    with pytest.raises(FormatError, match="no end"):
        gramine().decrypt(memory_source(file), "m")


def test_a_path_that_is_not_text():
    file = reference.seal(KEY, b"\xff\x1b[31m", b"data")
    assert read(file) == b"data"
    with pytest.raises(ForeignTampered) as caught:
        read(file, path="x")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "file", [b"", b"x", bytes(NODE), b"GRAFS_PF", bytes(NODE + 1), b"<html>" * 4096]
)
def test_what_is_no_such_file(file):
    with pytest.raises(FormatError):
        read(file)


@given(data=st.binary(max_size=3 * NODE))
def test_any_bytes_are_refused(data):
    whole = data.ljust(-(-max(1, len(data)) // NODE) * NODE, b"\0")
    for file in (data, whole, b"GRAFS_PF\2" + whole[9:], b"GRAFS_PF\1" + whole[9:]):
        with pytest.raises((FormatError, ForeignTampered)):
            read(file)


@given(
    path=st.binary(max_size=771),
    size=st.one_of(st.integers(0, 20_000), st.integers(0, (1 << 64) - 1)),
    root=st.binary(min_size=32, max_size=32),
    head=st.binary(max_size=100),
    rest=st.integers(0, 5),
)
def test_any_authentic_metadata_is_read_or_refused(path, size, root, head, rest):
    file = reference.metadata_node(KEY, path, size, root, head) + bytes(rest * NODE)
    try:
        found = read(file)
    except (FormatError, ForeignTampered):
        return
    assert found == head.ljust(HEAD, b"\0")[:size]
