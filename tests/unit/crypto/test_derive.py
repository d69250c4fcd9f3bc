"""Keys and segments against the text of the format, computed here with plain primitives."""

import hashlib
import hmac

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom import SecretBytes
from strongroom.crypto.derive import ModelKeys, gramine_wrap_key
from strongroom.crypto.segments import SegmentCipher

DEK = bytes(range(32))
BUNDLE = bytes(range(100, 116))


def hkdf(ikm, salt, info):
    """RFC 5869 with SHA-256, 32 bytes: one block."""
    prk = hmac.digest(salt, ikm, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def test_hkdf_of_this_file_is_that_of_the_rfc():
    # RFC 5869, test case 1; its output is longer than the 32 bytes compared here.
    ikm, salt = b"\x0b" * 22, bytes(range(13))
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert hkdf(ikm, salt, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")).hex() == expected


def test_header_mac():
    keys = ModelKeys(SecretBytes(DEK), BUNDLE)
    key = hkdf(DEK, BUNDLE, b"strongroom/v1/header")
    assert keys.header_mac(b"signed") == hmac.digest(key, b"signed", "sha256")


def test_file_key():
    keys = ModelKeys(SecretBytes(DEK), BUNDLE)
    payload = hkdf(DEK, BUNDLE, b"strongroom/v1/payload")
    salt = bytes(range(200, 232))
    associated = b"strongroom/v1/file\x00" + BUNDLE + "größe/1".encode()
    assert keys.associated_data("größe/1") == associated
    assert bytes(keys.file_key("größe/1", salt).buffer) == hkdf(payload, salt, associated)


def test_gramine_wrap_key():
    key = gramine_wrap_key(SecretBytes(DEK), BUNDLE)
    assert bytes(key.buffer) == hkdf(DEK, BUNDLE, b"strongroom/v1/gramine-wrap-key")[:16]


@pytest.mark.parametrize(("dek", "bundle"), [(31, 16), (33, 16), (32, 15), (32, 17)])
def test_sizes_are_checked(dek, bundle):
    with pytest.raises(ValueError, match="32 bytes and a bundle 16"):
        ModelKeys(SecretBytes(bytes(dek)), bytes(bundle))


def test_wipe():
    keys = ModelKeys(SecretBytes(DEK), BUNDLE)
    keys.wipe()
    for secret in (keys.dek, keys.payload, keys._header):
        assert bytes(secret.buffer) == bytes(32)


KEY = hashlib.sha256(b"file key").digest()
PREFIX = b"prefix7"


@pytest.mark.parametrize("number", [0, 1, 255, 256, 2**32 - 1])
@pytest.mark.parametrize("last", [False, True])
def test_segment(number, last):
    cipher = SegmentCipher(SecretBytes(KEY), PREFIX)
    out = memoryview(bytearray(21))
    cipher.encrypt_into(number, last, memoryview(b"plain"), out)
    nonce = PREFIX + number.to_bytes(4, "big") + bytes([last])
    assert bytes(out) == AESGCM(KEY).encrypt(nonce, b"plain", None)
    back = memoryview(bytearray(5))
    cipher.decrypt_into(number, last, out, back)
    assert bytes(back) == b"plain"
    for other in ((number ^ 1, last), (number, not last)):
        with pytest.raises(InvalidTag):
            cipher.decrypt_into(*other, out, back)


def test_cipher_outlives_the_key_it_was_given():
    with SecretBytes(KEY) as key:
        cipher = SegmentCipher(key, PREFIX)
    out = memoryview(bytearray(21))
    cipher.encrypt_into(0, True, memoryview(b"plain"), out)
    assert bytes(out) == AESGCM(KEY).encrypt(PREFIX + b"\0\0\0\0\x01", b"plain", None)


def test_prefix_size_is_checked():
    with pytest.raises(ValueError, match="7 bytes"):
        SegmentCipher(SecretBytes(KEY), b"prefix")
