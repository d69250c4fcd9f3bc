"""HPKE against an implementation written here from RFC 9180 and the draft of X-Wing.

The library's interface has no associated data, and every published vector of RFC 9180 uses some; so
the implementation of this file is checked against the vector, and the library against this file.
"""

import hashlib
import hmac

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom import SecretBytes
from strongroom.crypto.hpke import MLKEM768X25519, X25519

INFO = b"strongroom/v1/recipient\x00" + bytes(16)
AES_128, AES_256 = (1, 16), (2, 32)


def labeled_extract(suite, salt, label, ikm):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def labeled_expand(suite, prk, label, info, size):
    info = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, info + b"\x01", "sha256")[:size]


def x25519_decapsulate(enc, secret):
    private = X25519PrivateKey.from_private_bytes(secret)
    shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
    suite = b"KEM\x00\x20"
    context = enc + private.public_key().public_bytes_raw()
    prk = labeled_extract(suite, b"", b"eae_prk", shared)
    return labeled_expand(suite, prk, b"shared_secret", context, 32)


def xwing_decapsulate(enc, seed):
    expanded = hashlib.shake_256(seed).digest(96)
    first = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    second = X25519PrivateKey.from_private_bytes(expanded[64:])
    shared_first = first.decapsulate(enc[:1088])
    shared_second = second.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    label = rb"\.//^\ "[:6]
    public = second.public_key().public_bytes_raw()
    return hashlib.sha3_256(shared_first + shared_second + enc[1088:] + public + label).digest()


def key_schedule(kem, aead, shared, info):
    number, size = aead
    suite = b"HPKE" + kem.to_bytes(2, "big") + b"\x00\x01" + number.to_bytes(2, "big")
    psk_id = labeled_extract(suite, b"", b"psk_id_hash", b"")
    context = b"\x00" + psk_id + labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, size)
    return key, labeled_expand(suite, secret, b"base_nonce", context, 12)


def test_this_file_against_rfc_9180_a_1_1():
    secret = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
    enc = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
    shared = x25519_decapsulate(enc, secret)
    assert shared.hex() == "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    key, nonce = key_schedule(0x20, AES_128, shared, b"Ode on a Grecian Urn")
    assert key.hex() == "4531685d41d65f03dc48f6b8302c05b0"
    assert nonce.hex() == "56d890e5accaaf011cff4b7d"
    sealed = bytes.fromhex(
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
    )
    assert AESGCM(key).decrypt(nonce, sealed, b"Count-0") == b"Beauty is truth, truth beauty"


def test_x_wing_public_key_against_the_draft():
    # draft-connolly-cfrg-xwing-kem-08, appendix C, first vector: both ends of the key, and its
    # SHA-256. The end is the X25519 half, the beginning the ML-KEM half.
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    public = MLKEM768X25519.public_of(SecretBytes(seed))
    assert public.hex().startswith("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5")
    assert public.hex().endswith("2d9abac8cd049040ef6534")
    digest = "2e816deebcd76c5c80d0cd2d174478871658e8e2ff42bc9d4a6e486372e856bb"
    assert hashlib.sha256(public).hexdigest() == digest
    assert len(public) == MLKEM768X25519.public_size


@pytest.mark.parametrize(
    ("kem", "number", "decapsulate"),
    [(X25519, 0x20, x25519_decapsulate), (MLKEM768X25519, 0x647A, xwing_decapsulate)],
    ids=["X25519", "MLKEM768X25519"],
)
def test_seal_is_hpke(kem, number, decapsulate):
    secret = hashlib.sha256(kem.alg.encode()).digest()
    public = kem.public_of(SecretBytes(secret))
    sealed = kem.seal(SecretBytes(b"a key of 32 bytes, more or less."), public, INFO)
    enc, ciphertext = sealed[: kem.encapsulated_size], sealed[kem.encapsulated_size :]
    key, nonce = key_schedule(number, AES_256, decapsulate(enc, secret), INFO)
    assert AESGCM(key).decrypt(nonce, ciphertext, b"") == b"a key of 32 bytes, more or less."


@pytest.mark.parametrize("kem", [X25519, MLKEM768X25519], ids=lambda kem: kem.alg)
class TestKem:
    secret = SecretBytes(bytes(range(32)))

    def test_round_trip(self, kem):
        sealed = kem.seal(SecretBytes(b"plain"), kem.public_of(self.secret), INFO)
        assert len(sealed) == kem.encapsulated_size + 5 + 16
        assert bytes(kem.open(sealed, self.secret, INFO).buffer) == b"plain"

    @pytest.mark.parametrize("where", [0, 31, -17, -1])
    def test_changed(self, kem, where):
        sealed = bytearray(kem.seal(SecretBytes(b"plain"), kem.public_of(self.secret), INFO))
        sealed[where] ^= 1
        with pytest.raises((InvalidTag, ValueError)):
            kem.open(bytes(sealed), self.secret, INFO)

    def test_other_info(self, kem):
        sealed = kem.seal(SecretBytes(b"plain"), kem.public_of(self.secret), INFO)
        with pytest.raises(InvalidTag):
            kem.open(sealed, self.secret, INFO + b"x")

    @pytest.mark.parametrize("size", [0, 1, 31, 47])
    def test_short(self, kem, size):
        sealed = kem.seal(SecretBytes(b"plain"), kem.public_of(self.secret), INFO)
        with pytest.raises(InvalidTag):
            kem.open(sealed[:size], self.secret, INFO)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_public_key_of_another_size(self, kem, change):
        with pytest.raises(ValueError, match="size"):
            kem.check_public(bytes(kem.public_size + change))
