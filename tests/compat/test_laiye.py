"""Laiye TensorFlow Serving: vectors, the openssl program, keys, padding, what is not protected."""

import shutil
import subprocess

import pytest
from foreign import PIECE, decrypted, encrypted, memory_source, peak_memory, says_nothing, secret
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.compat.laiye import LaiyeCodec
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, UsageError

OF_2020 = b"\x8b" * 16
OF_2022 = b"My123sjsrjsd2345"
BLOCK = bytes(range(16))
# Recomputed with python-cryptography and with openssl from the sources of cryptpb.
VECTORS = [
    (OF_2020, b"", "b6d9bbfee23b36de0c1623dd182af876"),
    (OF_2020, b"test_data", "165d3f45507a2c1300ebd51e3048b0e6"),
    (OF_2020, BLOCK, "1ff674697c38ad3d2958933980a1ecf8ac9356cc728bc8c90fa9699ec90f9617"),
    (OF_2022, b"", "8f5a2d34fb581e5f8b65f500762debd8"),
    (OF_2022, b"test_data", "bc8a2e34b54127a60310c09781de07b6"),
    (OF_2022, BLOCK, "b2c61c9d1cb4c765bf65572c113ce9f318e22e234305eb9da1c041b5c386a237"),
]
# No byte of it can end padding, so wherever it is cut, that shows.
PLAIN = bytes(range(0x20, 0x80)) * 3
SIZES = st.one_of(
    st.integers(0, 80),
    st.builds(lambda pieces, more: pieces * PIECE + more, st.integers(1, 3), st.integers(-17, 17)),
)


def laiye(key: bytes = OF_2022) -> LaiyeCodec:
    return LaiyeCodec(secret(key))


@pytest.mark.parametrize(("key", "plaintext", "ciphertext"), VECTORS)
def test_vectors(key, plaintext, ciphertext):
    codec = laiye(key)
    assert decrypted(codec, bytes.fromhex(ciphertext), "graph.pb") == {"graph.pb": plaintext}
    assert encrypted(codec, plaintext).hex() == ciphertext


@settings(deadline=None)  # large pieces take long on a busy machine
@given(size=SIZES, piece=st.sampled_from([1 << 12, 100_003, PIECE, 3 * PIECE]))
def test_round_trip(size, piece):
    plaintext = (BLOCK * (size // 16 + 1))[:size]
    file = encrypted(laiye(), plaintext, piece)
    assert len(file) == 16 * (size // 16 + 1)
    assert decrypted(laiye(), file, "graph.pb", request=piece) == {"graph.pb": plaintext}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize("size", [0, 15, 16, 17, 9935, PIECE + 5])
def test_openssl_both_ways(size):
    def openssl(data: bytes, *more: str) -> bytes:
        command = ["openssl", "enc", "-aes-128-cbc", "-K", OF_2022.hex(), "-iv", "37" * 16, *more]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    plaintext = (PLAIN * (size // len(PLAIN) + 1))[:size]
    assert decrypted(laiye(), openssl(plaintext), "graph.pb") == {"graph.pb": plaintext}
    assert openssl(encrypted(laiye(), plaintext), "-d") == plaintext


@pytest.mark.parametrize(
    "key",
    [
        OF_2022,
        OF_2022 + b"\n",
        OF_2022 + b" and more than AES takes\n",
        OF_2022 + b"\0\n",
    ],
)
def test_first_sixteen_bytes_are_the_key(key):
    assert decrypted(laiye(key), bytes.fromhex(VECTORS[4][2]), "x.pb") == {"x.pb": b"test_data"}


def test_newline_of_a_key_that_is_no_text_belongs_to_it():
    key = b"\x00" + b"\x8b" * 14 + b"\n"
    assert decrypted(laiye(key + b"\n"), encrypted(laiye(key), PLAIN)) == {"model.bin": PLAIN}


@pytest.mark.parametrize("key", [b"key", b"k", b"\n", b"fifteen letters\n", b"\x8b" * 15])
def test_short_keys_are_refused(key):
    with pytest.raises(InvalidKey, match="behind it in memory") as caught:
        laiye(key)
    assert says_nothing(caught.value, b"fifteen", b"\x8b")


def test_a_key_is_needed_and_options_are_not():
    with pytest.raises(InvalidKey, match="needs a key"):
        LaiyeCodec(None)
    with pytest.raises(UsageError, match="no option iv"):
        LaiyeCodec(secret(OF_2020), {"iv": "0"})


def test_truncated():
    file = encrypted(laiye(), PLAIN)
    for size in range(len(file)):
        expected = ForeignTampered if size and size % 16 == 0 else FormatError
        with pytest.raises(expected) as caught:
            decrypted(laiye(), file[:size])
        assert says_nothing(caught.value, OF_2022, PLAIN[:16])
    with pytest.raises(FormatError):
        decrypted(laiye(), file + b"\n")
    with pytest.raises(ForeignTampered):
        decrypted(laiye(), file + bytes(16))


def test_every_change_of_the_padding_is_found():
    file = encrypted(laiye(), PLAIN + b"!")  # 15 bytes of padding
    for place in range(-31, -16):
        for bit in range(8):
            changed = bytearray(file)
            changed[place] ^= 1 << bit
            with pytest.raises(ForeignTampered):
                decrypted(laiye(), changed)


def test_other_changes_are_not():
    changed = bytearray(encrypted(laiye(), PLAIN))
    changed[3] ^= 1
    assert decrypted(laiye(), changed)["model.bin"][19] == PLAIN[19] ^ 1


def test_saved_models_show_nearly_every_wrong_key():
    model = b"\x08\x01\x12" + PLAIN
    file = encrypted(laiye(), model)
    assert decrypted(laiye(), file, "1/saved_model.pb") == {"1/saved_model.pb": model}
    past_the_padding = 0
    for number in range(1500):
        wrong = number.to_bytes(16, "big")
        try:
            found = decrypted(laiye(wrong), file, "model.bin")["model.bin"]
        except ForeignTampered:
            continue
        past_the_padding += 1
        assert found[0] not in (0x08, 0x12)
        with pytest.raises(ForeignTampered, match="begin as a SavedModel") as caught:
            decrypted(laiye(wrong), file, "1/saved_model.pb")
        assert says_nothing(caught.value, wrong)
    assert past_the_padding
    assert decrypted(laiye(), encrypted(laiye(), b""), "saved_model.pb") == {"saved_model.pb": b""}


def test_which_files_are_encrypted():
    codec = laiye()
    for path in ("saved_model.pb", "1/fingerprint.pb", "frozen.pb"):
        assert codec.recognises(path, bytes(64))
        assert not codec.leaves_plain(path)
    for path in ("variables/variables.data-00000-of-00001", "assets/vocab.txt", "saved_model.pbtxt"):
        assert codec.leaves_plain(path)
    assert codec.writes
    assert codec.legacy
    assert "no integrity" in codec.unprotected


def test_big_file_in_constant_memory(tmp_path):
    assert peak_memory("big_files", "both_ways", "laiye", OF_2020.hex(), tmp_path / "f", 256) < 32 << 20
    (tmp_path / "f").unlink()


def test_nothing_is_read_before_the_plaintext_is_wanted():
    class Unread:
        name, size, request, threads = "unread", 32, PIECE, None

        def read_into(self, offset, out):
            raise AssertionError

    assert [file.path for file in laiye().decrypt(Unread(), "a.pb")] == ["a.pb"]
    assert memory_source(b"").size == 0
