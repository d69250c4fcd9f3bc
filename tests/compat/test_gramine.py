"""Gramine's encrypted files: those of the real tool are read, and ours are what its specification says."""

import hashlib
import json
import os

import gramine_reference as reference
import pytest
from foreign import (
    BytesContent,
    Collected,
    memory_source,
    peak_memory,
    says_nothing,
    secret,
)
from gramine_files import DATA, GROUP, HEAD, KEY, NODE, OTHER, PATH, gramine, plain, read, written
from hypothesis import given
from hypothesis import strategies as st

from strongroom.compat.base import ForeignTampered
from strongroom.compat.gramine import parse_key
from strongroom.compat.gramine_cipher import GroupEncryptor, NodeKeys
from strongroom.compat.gramine_nodes import Metadata, metadata_key, node_count, normal_path
from strongroom.compat.gramine_reader import GramineFile
from strongroom.compat.gramine_writer import encrypt_group
from strongroom.errors import InvalidKey, SourceChanged, UsageError
from strongroom.model.output import open_file_output
from strongroom.model.parallel import for_each
from strongroom.model.storage import LocalSource

VECTORS = json.loads((DATA / "manifest.json").read_text())["vectors"]
SIZES = [0, 1, 3071, 3072, 3073, 7168, 7169]
SIZES += [HEAD + groups * GROUP + more for groups in (1, 2, 33) for more in (-1, 0, 1)]
"""Around the ends of the metadata node, of a data node, of a group, and of the MHT nodes below the root."""


# What the real tools wrote


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["file"])
def test_files_of_the_real_tools_are_read(vector):
    file = (DATA / vector["file"]).read_bytes()
    expected = hashlib.shake_128(b"gramine-pf-vector:" + vector["label"].encode()).digest(
        vector["size"]
    )
    found = read(file, path=vector["bound_path"])
    assert found == expected
    assert hashlib.sha256(found).hexdigest() == vector["plaintext_sha256"]
    opened = GramineFile(memory_source(file), secret(KEY))
    assert (opened.version, opened.size) == (vector["version"], vector["size"])
    assert opened.path == vector["bound_path"].encode()
    with pytest.raises(ForeignTampered):
        read(file, key=OTHER)


def test_metadata_key():
    assert metadata_key(secret(bytes(range(16))), bytes(range(32))).buffer == bytes.fromhex(
        "7e3e7a45536f547642ad61473eba1173"
    )
    assert metadata_key(secret(bytes(range(16))), b"\x11" * 32).buffer == bytes.fromhex(
        "b3bea14e46d6ce03145b9d16f16556d7"
    )


@pytest.mark.parametrize(
    ("version", "data", "digest"),
    [
        (1, b"hello gramine", "8fb90b3f4c408d3433c6323f2020c8fcd1a98c738614e5dc36df9822ffb8adaa"),
        (2, b"hello gramine", "fdbc982fff3b201ce780e846231db32d6755dba4fa76b512c1183c836887c193"),
        (1, None, "d894a5f915792d76893fea6f151e5d7751663a9672e3ab49b19275694f1f6e78"),
        (2, None, "118cc1d918b4492faa4fafbb1edade0cc12e024f2bacca41fc672a3e4d9a40a5"),
    ],
)
def test_known_bytes_of_what_is_written(version, data, digest):
    data = data or bytes(i % 251 for i in range(10_000))
    keys = [hashlib.sha256(name).digest()[:16] for name in (b"k3", b"k1", b"k2")]
    nodes, root = b"", bytes(32)
    if len(data) > HEAD:
        encryptor = GroupEncryptor()
        encryptor.plaintext[: len(data) - HEAD] = data[HEAD:]
        sealed, tag = encrypt_group(encryptor, keys, len(data) - HEAD, True)
        nodes, root = bytes(sealed), keys[0] + tag
    head = data[:HEAD].ljust(HEAD, b"\0")
    metadata = Metadata(b"/models/m.pb", len(data), root, head)
    file = metadata.seal(secret(bytes(range(16))), version, b"\x11" * 32) + nodes
    assert hashlib.sha256(file).hexdigest() == digest


# Round trips


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_as_specified(size, version):
    file = written(plain(size), version=version)
    assert file[8] == version
    assert len(file) == node_count(size) * NODE
    assert reference.unseal(KEY, file) == (PATH, plain(size))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_specified_is_read(size, version):
    file = reference.seal(KEY, PATH, plain(size), version)
    assert read(file, path=PATH.decode()) == plain(size)


@given(
    size=st.one_of(
        st.integers(0, 20_000),
        st.builds(
            lambda groups, more: HEAD + groups * GROUP + more, st.integers(1, 4), st.integers(-2, 2)
        ),
    ),
    piece=st.sampled_from([1000, 4096, 100_003, 1 << 20]),
    request=st.sampled_from([1, 1 << 20, 1 << 22]),
    version=st.sampled_from([1, 2]),
)
def test_round_trip(size, piece, request, version):
    data = plain(size)
    assert read(written(data, piece, version=version), request) == data


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_through_local_files(tmp_path, size):
    place = tmp_path / "net.onnx"
    output = open_file_output(place, overwrite=False, private=False)
    gramine(path=PATH.decode()).encrypt(BytesContent(plain(size), 70_001), str(place), output)
    output.commit()
    assert reference.unseal(KEY, place.read_bytes()) == (PATH, plain(size))
    source, pieces = LocalSource(place), Collected()
    gramine().decrypt(source, "net.onnx")[0].copy_to(pieces.write)
    source.close()
    assert pieces.data == plain(size)


def test_no_node_key_is_used_twice():
    keys = NodeKeys(secret(bytes(32)))
    found = [key for group in (0, 1, 2, 1 << 40) for key in keys.of_group(group)]
    assert len(found) == 4 * 97 == len(set(found))
    assert {len(key) for key in found} == {16}
    data = plain(10_000)
    one, other = written(data), written(data)
    assert one[10:42] != other[10:42]
    assert all(one[at : at + NODE] != other[at : at + NODE] for at in range(0, len(one), NODE))


def test_node_keys_outlive_whoever_made_their_seed():
    """A seed that was collected too early would be zeros, and known to all."""
    zeros = NodeKeys(secret(bytes(32))).of_group(0)
    keys = NodeKeys(secret(os.urandom(32)))
    assert keys.of_group(0) == keys.of_group(0) != zeros


class Changing(BytesContent):
    """Content that is another the second time."""

    first = True

    def copy_to(self, write, progress=None) -> None:
        data = bytes(self._data) if self.first else bytes(self._data)[::-1]
        self.first = False
        write(data)


def test_content_that_changes_is_not_encrypted_under_the_same_keys(collected):
    data = plain(HEAD + GROUP)
    with pytest.raises(SourceChanged):
        gramine(path="p").encrypt(Changing(data), "p", collected)
    assert len(collected.data) == NODE, "nothing but the metadata node has gone out"


@pytest.mark.parametrize("more", [-1, 1])
def test_content_of_another_size_than_it_says(collected, more):
    content = BytesContent(plain(10_000))
    content.size = 10_000
    content._data = memoryview(plain(10_000 + more))
    content.copy_to = lambda write, progress=None: write(content._data)
    with pytest.raises(SourceChanged):
        gramine(path="p").encrypt(content, "p", collected)


@pytest.mark.parametrize("request_size", [1, 1 << 20, 1 << 23])
def test_requests_that_are_under_way_at_once(request_size):
    """As a remote source has them: several groups each, in several threads."""
    data = plain(HEAD + 9 * GROUP + 5)
    source = memory_source(reference.seal(KEY, PATH, data) + bytes(NODE), request=request_size)
    source.threads = 4
    pieces = Collected()
    gramine().decrypt(source, "m")[0].copy_to(pieces.write)
    assert pieces.data == data


# Random access


RANDOM_ACCESS = plain(HEAD + 34 * GROUP + 5000)
RANDOM_ACCESS_FILE = reference.seal(KEY, PATH, RANDOM_ACCESS)


@given(offset=st.integers(0, len(RANDOM_ACCESS) + 10), size=st.integers(0, 2 * GROUP))
def test_any_range_is_read(offset, size):
    opened = GramineFile(memory_source(RANDOM_ACCESS_FILE), secret(KEY))
    out = memoryview(bytearray(size))
    count = opened.read_into(out, offset)
    assert out[:count] == RANDOM_ACCESS[offset : offset + size]
    assert count == len(RANDOM_ACCESS[offset : offset + size])


def test_ranges_are_read_from_several_threads():
    opened = GramineFile(memory_source(RANDOM_ACCESS_FILE), secret(KEY))
    out = memoryview(bytearray(opened.size))
    each = 300_007

    def part(number: int) -> None:
        opened.read_into(out[number * each : (number + 1) * each], number * each)

    for_each(-(-opened.size // each), part, 8)
    assert out == RANDOM_ACCESS
    opened.check()
    opened.close()


def test_a_range_needs_few_nodes():
    source = memory_source(RANDOM_ACCESS_FILE)
    requests = []
    read_into = source.read_into
    source.read_into = lambda offset, out: (requests.append(len(out)), read_into(offset, out))
    opened = GramineFile(source, secret(KEY))
    out = memoryview(bytearray(100))
    opened.read_into(out, HEAD + 33 * GROUP + 100)
    assert requests == [NODE] * 5, "metadata, MHT nodes 33, 1 and 0, and the data node"
    opened.read_into(out, HEAD + 33 * GROUP + 100 + NODE)
    assert requests[5:] == [NODE]


# Keys, options, paths


def test_keys():
    for content in (KEY, KEY + b"\n", KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"):
        assert parse_key(secret(content)).buffer == KEY
    ends_in_newline = KEY[:15] + b"\n"
    assert parse_key(secret(ends_in_newline)).buffer == ends_in_newline


@pytest.mark.parametrize(
    "content", [b"x", KEY[:15], KEY + b"x", KEY * 2, b"g" * 32, KEY.hex().encode() + b"00"]
)
def test_keys_that_are_none(content):
    with pytest.raises(InvalidKey) as caught:
        gramine(content)
    assert says_nothing(caught.value, KEY)


@pytest.mark.parametrize(
    "options",
    [
        {"version": "3"},
        {"version": "0"},
        {"processes": "0"},
        {"processes": "-1"},
        {"processes": "9" * 5000},
        {"path": ""},
        {"path": "."},
        {"path": "a/.."},
        {"path": "a\0b"},
        {"path": "x" * 772},
        {"mode": "gcm"},
    ],
)
def test_options_that_are_none(options):
    with pytest.raises(UsageError):
        gramine(**options)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a", "a"),
        ("a/b/", "a/b"),
        ("./a//b/./c", "a/b/c"),
        ("/a/../../b", "/b"),
        ("../a", "../a"),
        ("../../a/..", "../.."),
        ("a/../../b", "../b"),
        ("/", "/"),
        ("/..", "/"),
        ("a/..", ""),
        ("größe/…", "größe/…"),
        ("..a/b..", "..a/b.."),
    ],
)
def test_paths_are_normalised_as_gramine_does(path, normal):
    assert normal_path(path.encode()) == normal.encode()


def test_the_destination_is_embedded_as_it_was_written(collected):
    gramine().encrypt(BytesContent(b"data"), "out/./x//net.onnx", collected)
    assert reference.unseal(KEY, collected.data) == (b"out/x/net.onnx", b"data")


def test_the_longest_path(collected):
    gramine().encrypt(BytesContent(b""), "x/" + "y" * 769, collected)
    assert len(reference.unseal(KEY, collected.data)[0]) == 771
    with pytest.raises(UsageError, match="too long"):
        gramine().encrypt(BytesContent(b""), "x/" + "y" * 770, collected)
    with pytest.raises(UsageError, match="too long"):
        gramine().encrypt(BytesContent(b""), "é" * 386, collected)


@pytest.mark.parametrize("destination", ["-", "s3://bucket/net.onnx"])
def test_a_destination_without_a_path_needs_one(collected, destination):
    with pytest.raises(UsageError, match="path"):
        gramine().encrypt(BytesContent(b""), destination, collected)
    gramine(path="p").encrypt(BytesContent(b""), destination, collected)
    assert reference.unseal(KEY, collected.data) == (b"p", b"")


def test_recognised_by_its_magic():
    assert gramine().recognises("net.onnx", written(b"data")[:64])
    assert not gramine().recognises("net.onnx", b"\x08\x07" * 32)
    assert not gramine().recognises("net.onnx", b"")


def test_big_files_in_constant_memory(tmp_path):
    place = tmp_path / "f"
    assert peak_memory("big_files", "both_ways", "gramine", KEY.hex(), place, 255) < 48 << 20
    assert os.path.getsize(place) == node_count(255 << 20) * NODE
