"""Paddle's cipher: files between Paddle and the codec in both directions, in every mode."""

import os
import warnings

import pytest
from big_files import PATTERN
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from foreign import PIECE, decrypted, encrypted, memory_source, peak_memory, says_nothing, secret
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.compat.paddle_cipher import PaddleCipherCodec
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, LimitExceeded, UsageError

KEY = bytes(range(0x41, 0x51))
OTHER = bytes(range(0x51, 0x61))
PLAIN = bytes(range(0x20, 0x80)) * 3  # no byte of it can end padding
NAMES = {
    "gcm": "AES_GCM_NoPadding",
    "ctr": "AES_CTR_NoPadding",
    "cbc": "AES_CBC_PKCSPadding",
    "ecb": "AES_ECB_PKCSPadding",
}


def paddle_cipher(key: bytes = KEY, **options: object) -> PaddleCipherCodec:
    return PaddleCipherCodec(secret(key), {name: str(value) for name, value in options.items()})


@pytest.fixture(scope="session")
def core():
    pytest.importorskip("paddle", reason="Paddle is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Paddle and what it imports, of their own code
        import paddle.base.core
    return paddle.base.core


@pytest.fixture
def paddles(core, tmp_path):
    """Paddle's own cipher for a configuration."""

    def make(cipher: str, iv_size: int = 128, tag_size: int = 128):
        conf = tmp_path / "cipher.conf"
        conf.write_text(f"cipher_name : {NAMES[cipher]}\niv_size : {iv_size}\ntag_size : {tag_size}\n")
        return core.CipherFactory.create_cipher(str(conf))

    return make


SIZES = [0, 1, 15, 16, 17, 1000, PIECE - 16, PIECE + 1, 3 * PIECE]


def plain(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("cipher", NAMES)
def test_files_of_paddle_are_read(core, paddles, tmp_path, cipher, bits):
    place, key_file = str(tmp_path / "model.enc"), str(tmp_path / "key")
    key = core.CipherUtils.gen_key_to_file(bits, key_file)
    with open(key_file, "rb") as file:
        assert file.read() == key
    for size in SIZES:
        paddles(cipher).encrypt_to_file(plain(size), key, place)
        with open(place, "rb") as file:
            found = decrypted(paddle_cipher(key, cipher=cipher), file.read(), "model.enc")
        assert found == {"model.enc": plain(size)}


def test_default_of_paddle_is_ctr(core):
    file = core.CipherFactory.create_cipher("").encrypt(PLAIN, KEY)
    assert decrypted(paddle_cipher(cipher="ctr"), file) == {"model.bin": PLAIN}
    with pytest.raises(ForeignTampered) as caught:
        decrypted(paddle_cipher(), file)
    assert "cipher=ctr" in caught.value.hint


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_paddle_reads_what_is_written(core, paddles, tmp_path, bits):
    key = core.CipherUtils.gen_key(bits)
    for size in SIZES:
        (tmp_path / "model.enc").write_bytes(encrypted(paddle_cipher(key), plain(size), 100_003))
        assert paddles("gcm").decrypt_from_file(key, str(tmp_path / "model.enc")) == plain(size)


@pytest.mark.parametrize(("iv_size", "tag_size"), [(96, 128), (64, 96), (256, 64), (128, 32)])
def test_other_sizes_of_gcm(paddles, iv_size, tag_size):
    codec = paddle_cipher(iv_size=iv_size, tag_size=tag_size)
    theirs = paddles("gcm", iv_size, tag_size)
    assert decrypted(codec, theirs.encrypt(PLAIN, KEY)) == {"model.bin": PLAIN}
    assert theirs.decrypt(encrypted(codec, PLAIN), KEY) == PLAIN


def test_layout_of_gcm():
    file = encrypted(paddle_cipher(), PLAIN)
    assert AESGCM(KEY).decrypt(file[:16], file[16:], b"") == PLAIN
    assert encrypted(paddle_cipher(), PLAIN)[:16] != file[:16]


@settings(deadline=None)  # large pieces take long on a busy machine
@given(
    size=st.one_of(
        st.integers(0, 70),
        st.builds(lambda n, more: n * PIECE + more, st.integers(1, 3), st.integers(-17, 17)),
    ),
    piece=st.sampled_from([1 << 12, 100_003, PIECE]),
)
def test_round_trip(size, piece):
    file = encrypted(paddle_cipher(), plain(size), piece)
    assert len(file) == size + 32
    assert decrypted(paddle_cipher(), file, request=piece) == {"model.bin": plain(size)}


def test_every_flipped_bit_of_gcm_is_found():
    file = encrypted(paddle_cipher(), b"model weights")
    for place in range(len(file)):
        for bit in range(8):
            changed = bytearray(file)
            changed[place] ^= 1 << bit
            with pytest.raises(ForeignTampered) as caught:
                decrypted(paddle_cipher(), changed)
            assert says_nothing(caught.value, KEY, b"model weights")


def test_every_truncation_of_gcm_is_found():
    file = encrypted(paddle_cipher(), PLAIN)
    for size in range(len(file)):
        with pytest.raises(ForeignTampered if size >= 32 else FormatError):
            decrypted(paddle_cipher(), file[:size])
    with pytest.raises(ForeignTampered):
        decrypted(paddle_cipher(), file + b"\n")


def test_another_key():
    with pytest.raises(ForeignTampered) as caught:
        decrypted(paddle_cipher(OTHER), encrypted(paddle_cipher(), PLAIN))
    assert says_nothing(caught.value, KEY, OTHER, PLAIN[:16])


@pytest.mark.parametrize("cipher", ["cbc", "ecb"])
def test_padding_that_is_wrong(paddles, cipher):
    codec = paddle_cipher(cipher=cipher)
    file = paddles(cipher).encrypt(PLAIN, KEY)
    for size in range(len(file)):
        whole = size % 16 == 0 and size >= {"cbc": 32, "ecb": 16}[cipher]
        with pytest.raises(ForeignTampered if whole else FormatError):
            decrypted(codec, file[:size])
    with pytest.raises(ForeignTampered):
        decrypted(codec, file + bytes(16))


@pytest.mark.parametrize("cipher", ["ctr", "cbc", "ecb"])
def test_changes_without_integrity_pass(paddles, cipher):
    changed = bytearray(paddles(cipher).encrypt(PLAIN, KEY))
    changed[40] ^= 1
    assert decrypted(paddle_cipher(cipher=cipher), changed)["model.bin"] != PLAIN
    assert "no integrity" in PaddleCipherCodec.unprotected


@pytest.mark.parametrize("cipher", ["ctr", "cbc", "ecb"])
def test_gcm_alone_is_written(cipher):
    with pytest.raises(UsageError, match="AES-GCM alone"):
        encrypted(paddle_cipher(cipher=cipher), PLAIN)


@pytest.mark.parametrize("key", [b"short", bytes(31), bytes(64), b"0123456789abcde\n\n\n"])
def test_keys_that_are_none(key):
    with pytest.raises(InvalidKey, match="16, 24 or 32"):
        paddle_cipher(key)


def test_newline_after_a_key():
    file = encrypted(paddle_cipher(), PLAIN)
    assert decrypted(paddle_cipher(KEY + b"\n"), file) == {"model.bin": PLAIN}
    ends_in_one = KEY[:15] + b"\n"
    file = encrypted(paddle_cipher(ends_in_one), PLAIN)
    assert decrypted(paddle_cipher(ends_in_one), file) == {"model.bin": PLAIN}


@pytest.mark.parametrize(
    "options",
    [
        {"cipher": "GCM"},
        {"cipher": ""},
        {"iv_size": "12"},
        {"iv_size": "x"},
        {"iv_size": "-128"},
        {"tag_size": "136"},
        {"tag_size": "١٢٨"},
        {"tag_size": "9" * 5000},
        {"cipher": "ctr", "iv_size": "96"},
        {"cipher": "cbc", "tag_size": "64"},
        {"mode": "gcm"},
    ],
)
def test_options_that_are_none(options):
    with pytest.raises(UsageError):
        paddle_cipher(**options)


def test_more_than_gcm_can_encrypt():
    class Huge:
        name, size, request, threads = "huge", 1 << 37, PIECE, None

    with pytest.raises(LimitExceeded):
        paddle_cipher().decrypt(Huge(), "huge")
    with pytest.raises(LimitExceeded):
        paddle_cipher().encrypt(Huge(), "huge", None)
    assert paddle_cipher(cipher="ctr").decrypt(Huge(), "huge")


def test_short_files_are_refused_at_once():
    for cipher in NAMES:
        with pytest.raises(FormatError, match="at least"):
            paddle_cipher(cipher=cipher).decrypt(memory_source(b"x" * 15), "m")


def test_big_files_in_constant_memory(tmp_path):
    place = tmp_path / "f"
    assert peak_memory("big_files", "both_ways", "paddle-cipher", KEY.hex(), place, 256) < 32 << 20
    assert os.path.getsize(place) == (256 << 20) + 32
    place.unlink()
