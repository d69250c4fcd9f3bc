"""HPKE (RFC 9180) base mode with HKDF-SHA256 and AES-256-GCM, for the two KEMs of the format.

Keys travel as raw bytes: for X25519 the 32-byte scalar and point; for ML-KEM-768 + X25519 (X-Wing,
draft-connolly-cfrg-xwing-kem) the 32-byte seed and the 1184 + 32 bytes of the two public keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from strongroom.crypto.secret import SecretBytes

__all__ = ["KEMS", "MLKEM768X25519", "X25519", "Kem"]

_MLKEM_PUBLIC: Final = 1184
_SEED: Final = 32


def _xwing_private(seed: SecretBytes) -> hpke.MLKEM768X25519PrivateKey:
    with SecretBytes.take(hashlib.shake_256(seed.buffer).digest(96)) as expanded:
        return hpke.MLKEM768X25519PrivateKey(
            mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded.buffer[:64]),
            x25519.X25519PrivateKey.from_private_bytes(expanded.buffer[64:]),
        )


def _xwing_public(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    return hpke.MLKEM768X25519PublicKey(
        mlkem.MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]),
        x25519.X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:]),
    )


def _xwing_public_of(seed: SecretBytes) -> bytes:
    with SecretBytes.take(hashlib.shake_256(seed.buffer).digest(96)) as expanded:
        first = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded.buffer[:64]).public_key()
        second = x25519.X25519PrivateKey.from_private_bytes(expanded.buffer[64:]).public_key()
    return first.public_bytes_raw() + second.public_bytes_raw()


def _x25519_private(raw: SecretBytes) -> x25519.X25519PrivateKey:
    return x25519.X25519PrivateKey.from_private_bytes(raw.buffer)


def _x25519_public_of(raw: SecretBytes) -> bytes:
    return _x25519_private(raw).public_key().public_bytes_raw()


@dataclass(frozen=True)
class Kem:
    """One KEM of HPKE: its name in the format, its sizes in bytes, its operations on raw keys."""

    alg: str
    public_size: int
    encapsulated_size: int
    secret_size: int
    _suite: hpke.Suite
    _public: Callable[[bytes], Any]
    _private: Callable[[SecretBytes], Any]
    public_of: Callable[[SecretBytes], bytes]

    def check_public(self, public: bytes) -> None:
        """Raise ValueError when ``public`` is not a public key of this KEM."""
        if len(public) != self.public_size:
            raise ValueError("wrong size of public key")
        self._public(public)

    def seal(self, plaintext: SecretBytes, public: bytes, info: bytes) -> bytes:
        """Encapsulated key, then ciphertext."""
        return self._suite.encrypt(plaintext.buffer, self._public(public), info)

    def open(self, sealed: bytes, secret: SecretBytes, info: bytes) -> SecretBytes:
        """Undo :meth:`seal`.

        Raises:
            cryptography.exceptions.InvalidTag: not sealed to this key with this ``info``.
        """
        if len(sealed) < self.encapsulated_size + 16:
            raise InvalidTag
        return SecretBytes.take(self._suite.decrypt(sealed, self._private(secret), info))


def _suite(kem: hpke.KEM) -> hpke.Suite:
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


MLKEM768X25519: Final = Kem(
    alg="HPKE-MLKEM768X25519",
    public_size=_MLKEM_PUBLIC + 32,
    encapsulated_size=1120,
    secret_size=_SEED,
    _suite=_suite(hpke.KEM.MLKEM768_X25519),
    _public=_xwing_public,
    _private=_xwing_private,
    public_of=_xwing_public_of,
)
X25519: Final = Kem(
    alg="HPKE-X25519",
    public_size=32,
    encapsulated_size=32,
    secret_size=32,
    _suite=_suite(hpke.KEM.X25519),
    _public=x25519.X25519PublicKey.from_public_bytes,
    _private=_x25519_private,
    public_of=_x25519_public_of,
)
KEMS: Final = {kem.alg: kem for kem in (MLKEM768X25519, X25519)}
