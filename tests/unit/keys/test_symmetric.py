import base64
import hashlib
import json

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

from strongroom import SecretBytes, SymmetricKey
from strongroom.errors import HeaderTampered, InvalidKey, Malformed, NoMatchingRecipient
from strongroom.format.encoding import b64url, unb64url
from strongroom.format.header import Header

RAW = bytes(range(32))
DEK = SecretBytes(bytes(range(100, 132)))
BUNDLE = bytes(16)
TEXT = base64.urlsafe_b64encode(RAW)


@pytest.fixture
def key():
    return SymmetricKey(SecretBytes(RAW))


def header(*recipients):
    return Header(BUNDLE, "a", recipients=recipients)


def test_kid_is_the_jwk_thumbprint(key):
    # RFC 7638, section 3: the required members of an "oct" key, sorted, without white space.
    jwk = {"kty": "oct", "k": base64.urlsafe_b64encode(RAW).rstrip(b"=").decode()}
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    thumbprint = hashlib.sha256(canonical).digest()
    assert key.kid == base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()


def test_wrap_is_rfc_3394(key):
    entry = key.wrap(DEK, header())
    assert entry["alg"] == "A256KW"
    wrapped = unb64url(entry["encrypted_key"], "x", 40)
    assert aes_key_unwrap(RAW, wrapped) == bytes(DEK.buffer)
    assert wrapped == aes_key_wrap(RAW, bytes(DEK.buffer))


def test_unwrap(key):
    assert key.unwrap(header(key.wrap(DEK, header()))) == DEK


def test_unwrap_finds_its_entry_among_others(key):
    others = [SymmetricKey.generate().wrap(DEK, header()) for _ in range(3)]
    assert key.unwrap(header(*others, {"alg": "x"}, key.wrap(DEK, header()))) == DEK


def test_unwrap_tries_entries_without_kid(key):
    entry = key.wrap(DEK, header())
    other = SymmetricKey.generate().wrap(DEK, header())
    del entry["kid"], other["kid"]
    assert key.unwrap(header(other, entry)) == DEK
    with pytest.raises(NoMatchingRecipient):
        key.unwrap(header(other))


def test_changed_entry_is_tampering_not_absence(key):
    entry = key.wrap(DEK, header())
    changed = bytearray(unb64url(entry["encrypted_key"], "x"))
    changed[-1] ^= 1
    with pytest.raises(HeaderTampered):
        key.unwrap(header({**entry, "encrypted_key": b64url(changed)}))


@pytest.mark.parametrize("bad", [None, "", "AAAA", 1])
def test_malformed_entry(key, bad):
    entry = {**key.wrap(DEK, header()), "encrypted_key": bad}
    with pytest.raises(Malformed) as caught:
        key.unwrap(header({"alg": "x"}, entry))
    assert caught.value.field == "recipients[1].encrypted_key"


def test_fernet_key_is_a_key():
    for _ in range(50):
        text = Fernet.generate_key()
        key = SymmetricKey.parse(text)
        assert bytes(key._key.buffer) == base64.urlsafe_b64decode(text)


def test_key_file_is_a_fernet_key():
    content = SymmetricKey.generate().encode()
    assert content.endswith(b"\n")
    fernet = Fernet(content.strip())
    assert fernet.decrypt(fernet.encrypt(b"x")) == b"x"


@pytest.mark.parametrize("end", [b"", b"=", b"\n", b"=\n", b"\r\n", b"=\r\n"])
def test_padding_and_line_end(end):
    assert bytes(SymmetricKey.parse(TEXT.rstrip(b"=") + end)._key.buffer) == RAW


NON_CANONICAL = TEXT[:-2] + bytes([TEXT[-2] + 1]) + b"="


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"=", TEXT[:-2], TEXT[:-3] + b"=", b"A" + TEXT, TEXT + b"=", TEXT + b"\n\n", b" " + TEXT,
        TEXT + b" ", TEXT[:20] + b"\n" + TEXT[20:], RAW, RAW.hex().encode(), b"+" + TEXT[1:], b"/" + TEXT[1:],
        NON_CANONICAL, b"\xef\xbb\xbf" + TEXT, TEXT.decode().encode("utf-16"), b"\xff" * 43, TEXT * 100,
    ],
)  # fmt: skip
def test_not_a_key(text):
    with pytest.raises(InvalidKey) as caught:
        SymmetricKey.parse(text)
    assert "keygen" in caught.value.hint
    assert text.decode("latin-1").strip() not in str(caught.value) or not text.strip(b"=\n")


@pytest.mark.parametrize("size", [16, 31, 33, 64])
def test_size(size):
    with pytest.raises(InvalidKey, match=f"this one {size}"):
        SymmetricKey(SecretBytes(bytes(size)))


def test_repr_shows_the_kid_alone(key):
    assert repr(key) == f"<SymmetricKey {key.kid}>"
    assert TEXT.decode()[:10] not in f"{key!r}{key!s}{vars(key)}"
