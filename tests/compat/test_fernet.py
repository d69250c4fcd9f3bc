"""model_cryptor's format: the codec against the Fernet class of cryptography, and against damage."""

import base64
import os
import subprocess
import sys
import time

import pytest
from cryptography.fernet import Fernet
from foreign import Collected, decrypted, encrypted, memory_source, says_nothing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.compat.fernet import FernetCodec, TokenWriter, parse_key
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, StrongroomError, UsageError
from strongroom.testing.memory import BytesSource

KEY = b"xYjPtWOHLXL5tP1vI4PxagJgjNqsnWmLX4a4qd-ROj4="
# Of model_cryptor's README; the token was made with it by the Fernet class of cryptography.
TOKEN = (
    b"gAAAAABj2auAAAECAwQFBgcICQoLDA0OD7Mmu5edJkmm33Nibh24v3pzQbEBAz0SubBXo9Ki_DRgfPYZvZsiZQPb1gkmQjuc"
    b"bg=="
)
NOW, IV = 1675209600, bytes(range(16))
CHUNK = (1 << 20) // 4 * 3  # bytes of a token that are decoded at once


def codec(key=KEY):
    return FernetCodec(SecretBytes(key))


def opened(token, key=KEY, path="m.onnx.crt"):
    """The path and the plaintext that the codec finds in a token."""
    ((path, plaintext),) = decrypted(codec(key), token, path).items()
    return path, plaintext


def test_vector():
    assert opened(TOKEN) == ("m.onnx", b"hello onnx")
    for pieces in ([b"hello onnx"], [b"hello", b"", b" onnx"]):
        output = Collected()
        writer = TokenWriter(parse_key(SecretBytes(KEY)), output.write, NOW, IV)
        for piece in pieces:
            writer.write(piece)
        writer.finish()
        assert output.data == TOKEN


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
def test_newlines_of_an_editor(newline):
    assert opened(TOKEN + newline)[1] == b"hello onnx"
    assert opened(TOKEN, KEY + newline)[1] == b"hello onnx"


SIZES = [*range(36), CHUNK - 58, CHUNK - 57, CHUNK - 26, CHUNK - 25, CHUNK, CHUNK + 7, 3 * CHUNK + 1]


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_with_the_fernet_class(size):
    data = os.urandom(size)
    fernet = Fernet(KEY)
    assert opened(fernet.encrypt(data))[1] == data
    assert fernet.decrypt(encrypted(codec(), data)) == data


# Where the MAC, the last block and the header lie across the borders of what is decoded at once.
@given(st.integers(-100, 100), st.integers(1, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sizes_around_the_chunks(offset, chunks):
    data = bytes(chunks * CHUNK + offset)
    token = Fernet(KEY).encrypt(data)
    assert opened(token)[1] == data


@given(st.binary(max_size=300), st.integers(1, 40))
@settings(deadline=None)
def test_pieces_of_any_size(data, size):
    assert Fernet(KEY).decrypt(encrypted(codec(), data, size)) == data


def test_fresh_iv_and_current_time():
    one, two = (base64.urlsafe_b64decode(encrypted(codec(), b"data")) for _ in range(2))
    assert one[9:25] != two[9:25]
    made_at = Fernet(KEY).extract_timestamp(encrypted(codec(), b"data"))
    assert abs(made_at - time.time()) < 60


@pytest.mark.parametrize(
    ("path", "plain"),
    [("a/m.pth.crt", "a/m.pth"), ("m.bin", "m.bin"), ("a/.crt", "a/.crt")],
)
def test_names(path, plain):
    assert opened(TOKEN, path=path)[0] == plain
    assert codec().foreign_path("a/m.pth") == "a/m.pth.crt"


def test_recognises():
    recognises = codec().recognises
    assert recognises("m.crt", TOKEN[:64])
    assert recognises("m", Fernet(KEY).encrypt(b"x")[:64])
    assert not recognises("m.crt", b"-----BEGIN CERTIFICATE-----\nMIIC")
    assert not recognises("m.crt", b"")
    assert not recognises("m.crt", b"gAAAA then something else")


CHANGES = (b"A", b"B", b"-", b"=", b"+", b"\n", b"\0", b"\xff")


@pytest.mark.parametrize("size", [0, 100])
def test_every_byte_is_authenticated(size):
    token = Fernet(KEY).encrypt(b"x" * size)
    for position in range(len(token)):
        for change in CHANGES:
            if token[position : position + 1] != change:
                with pytest.raises((ForeignTampered, FormatError)):
                    opened(token[:position] + change + token[position + 1 :])


@pytest.mark.parametrize("position", [9, 40, 1 << 20, (1 << 20) + 1, -170, -60, -3])
@pytest.mark.parametrize("change", [b"A", b"B", b"="])
def test_every_region_of_a_large_file_is_authenticated(position, change):
    token = bytearray(Fernet(KEY).encrypt(b"x" * (CHUNK + 100)))
    if token[position : position + 1 or None] != change:
        token[position] = change[0]
        with pytest.raises((ForeignTampered, FormatError)):
            opened(token)


def test_unused_bits_at_the_end():
    # "g" and "h" before "==" stand for the same byte.
    assert TOKEN.endswith(b"g==")
    assert base64.urlsafe_b64decode(TOKEN) == base64.urlsafe_b64decode(TOKEN[:-3] + b"h==")
    with pytest.raises(ForeignTampered, match="base64url"):
        opened(TOKEN[:-3] + b"h==")


def test_truncations():
    for size in range(len(TOKEN)):
        with pytest.raises((ForeignTampered, FormatError)):
            opened(TOKEN[:size])
    large = Fernet(KEY).encrypt(bytes(2 * CHUNK))
    for size in (len(large) - 1, len(large) - 4, len(large) - 64, 4 << 18, (4 << 18) + 64, 100, 164):
        with pytest.raises(ForeignTampered):
            opened(large[:size])


@pytest.mark.parametrize("junk", [b"\n\n", b" ", b"x", b"====", b"AAAA", b"A" * 64, TOKEN])
def test_something_behind(junk):
    with pytest.raises(ForeignTampered):
        opened(TOKEN + junk)


def test_a_whole_group_cut_or_added_is_found_by_the_mac():
    # 48 bytes are 64 characters and three blocks: the size alone is right.
    token = Fernet(KEY).encrypt(bytes(200))
    with pytest.raises(ForeignTampered, match="does not authenticate"):
        opened(token[:-68] + token[-4:])


@pytest.mark.parametrize("data", [b"", b"gAAA", b"PK\3\4" + bytes(200), TOKEN.replace(b"gA", b"gQ", 1)])
def test_something_else(data):
    with pytest.raises(FormatError, match="not a Fernet token") as caught:
        opened(data)
    assert caught.value.exit_code == 3


def test_standard_alphabet_is_refused():
    standard = TOKEN.replace(b"_", b"/")
    assert standard != TOKEN
    with pytest.raises(ForeignTampered, match="base64url"):
        opened(standard)


def test_wrong_key():
    other = Fernet.generate_key()
    secret = b"the weights of a model" * 9
    with pytest.raises(ForeignTampered, match="another key, or it has been changed") as caught:
        opened(Fernet(KEY).encrypt(secret), other)
    assert says_nothing(caught.value, secret, secret[:9], KEY, other)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("half", [slice(0, 16), slice(16, 32)])
def test_both_halves_of_the_key_count(half):
    raw = bytearray(base64.urlsafe_b64decode(KEY))
    raw[half.start] ^= 1
    other = base64.urlsafe_b64encode(raw)
    if half.start:  # Fernet's MAC does not cover the AES key: what comes out is garbage, or no padding
        try:
            assert opened(TOKEN, other)[1] != b"hello onnx"
        except ForeignTampered as error:
            assert "padding" in str(error)
    else:
        with pytest.raises(ForeignTampered):
            opened(TOKEN, other)


def test_nothing_of_the_last_block_comes_before_the_mac():
    token = bytearray(Fernet(KEY).encrypt(b"a" * 15))
    token[-8] ^= 1
    seen = Collected()
    (file,) = codec().decrypt(memory_source(token), "m.crt")
    with pytest.raises(ForeignTampered):
        file.copy_to(seen.write)
    assert not seen.data


def test_padding_is_looked_at_after_the_mac():
    """A token with a true MAC and a wrong padding is refused, one with both wrong says the MAC."""
    from cryptography.hazmat.primitives import hashes, hmac
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CBC

    raw = base64.urlsafe_b64decode(KEY)
    encryptor = Cipher(AES(raw[16:]), CBC(IV)).encryptor()
    for block in (bytes(16), b"\x11" * 16, bytes(14) + b"\1\2"):
        body = b"\x80" + NOW.to_bytes(8, "big") + IV + encryptor.update(block)
        mac = hmac.HMAC(raw[:16], hashes.SHA256())
        mac.update(body)
        true = mac.finalize()
        with pytest.raises(ForeignTampered, match="padding"):
            opened(base64.urlsafe_b64encode(body + true))
        with pytest.raises(ForeignTampered, match="does not authenticate"):
            opened(base64.urlsafe_b64encode(body + true[::-1]))
        encryptor = Cipher(AES(raw[16:]), CBC(IV)).encryptor()


def test_half_a_block_with_a_true_mac():
    """Only who has the key can make one; it is no error of the cipher."""
    from cryptography.hazmat.primitives import hashes, hmac

    body = b"\x80" + NOW.to_bytes(8, "big") + IV + bytes(20)
    mac = hmac.HMAC(base64.urlsafe_b64decode(KEY)[:16], hashes.SHA256())
    mac.update(body)
    with pytest.raises(ForeignTampered, match="too few or too many"):
        opened(base64.urlsafe_b64encode(body + mac.finalize()))


@pytest.mark.parametrize(
    "key",
    [b"x", KEY[:-2], KEY + KEY, base64.urlsafe_b64decode(KEY), b"A" * 44, b"-----BEGIN", b"\xff" * 44],
)
def test_not_a_key(key):
    with pytest.raises(InvalidKey, match=r"44 characters") as caught:
        codec(key)
    assert "license.pem" in caught.value.hint
    assert len(key) < 12 or says_nothing(caught.value, key)


def test_a_key_is_needed_and_there_are_no_options():
    with pytest.raises(InvalidKey):
        FernetCodec(None)
    with pytest.raises(UsageError, match="no option"):
        FernetCodec(SecretBytes(KEY), {"ttl": "5"})


def test_an_error_of_the_reader_is_passed_on():
    class Broken(BytesSource):
        def read_into(self, offset, out):
            if offset > 1000:
                raise StrongroomError("the disk is gone")
            super().read_into(offset, out)

    token = Fernet(KEY).encrypt(bytes(3 * CHUNK))
    source = Broken(token)
    source.size = len(token)
    with pytest.raises(StrongroomError, match="the disk is gone"):
        (file,) = codec().decrypt(source, "m.crt")
        file.copy_to(lambda data: None)


MEMORY = """
import os, sys
from strongroom.compat.fernet import FernetCodec
from strongroom.crypto.secret import SecretBytes
from strongroom.model.storage import LocalSource

def peak():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) >> 10

class Large:
    size = 128 << 20
    def copy_to(self, write, progress=None):
        piece = memoryview(bytes(2 << 20))
        for _ in range(self.size // len(piece)):
            write(piece)

class File:
    def __init__(self, path):
        self.file = open(path, "wb")
        self.write = self.file.write

codec = FernetCodec(SecretBytes(sys.argv[1].encode()))
before = peak()
output = File(sys.argv[2])
codec.encrypt(Large(), "m.crt", output)
output.file.close()
written = peak()
count = 0
def write(data):
    global count
    count += len(data)
source = LocalSource(sys.argv[2])
assert source.size > 170 << 20
codec.decrypt(source, "m.crt")[0].copy_to(write)
assert count == Large.size
print(written - before, peak() - before)
"""


def test_a_large_file_in_little_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, KEY.decode(), tmp_path / "m.crt"], capture_output=True, text=True
    )
    (tmp_path / "m.crt").unlink()
    assert done.returncode == 0, done.stderr
    writing, reading = map(int, done.stdout.split())
    print(f"writing {writing} MiB, reading {reading} MiB for 128 MiB")
    assert writing < 32
    assert reading < 32
