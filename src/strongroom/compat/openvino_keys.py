"""Model keys of the OpenVINO Security Add-on: as text, or wrapped in a licence; and what comes of them."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import FormatError, InvalidKey, UsageError, os_errors

__all__ = ["HEADER_SIZE", "ModelKey", "certified_key", "model_key", "salt_in", "unwrapped_key"]

_MAGIC: Final = b"Salted__"
HEADER_SIZE: Final = len(_MAGIC) + 8
"""Bytes before the ciphertext of a blob: a constant and the salt."""

_AES: Final = 32
_IV: Final = 16
_DERIVED: Final = _AES + _IV + 32  # the last part is for the HMAC of licences
_HEX: Final = b"0123456789abcdef"
_MAX_FILE: Final = 1 << 20


def salt_in(header: bytes) -> bytes | None:
    """The salt in the first :data:`HEADER_SIZE` bytes of a blob; None if they are none."""
    if len(header) < HEADER_SIZE or not header.startswith(_MAGIC):
        return None
    return header[len(_MAGIC) : HEADER_SIZE]


def _decryptor(secret: memoryview, salt: bytes) -> CipherContext:
    with SecretBytes.zeros(_DERIVED) as derived:
        HKDF(SHA384(), _DERIVED, salt, b"label").derive_into(secret, derived.buffer)
        iv = bytes(derived.buffer[_AES : _AES + _IV])
        return Cipher(AES(derived.buffer[:_AES]), CTR(iv)).decryptor()


@dataclass(frozen=True)
class ModelKey:
    """The key of a model: 64 hexadecimal digits and a newline, as which the add-on uses it.

    Args:
        model_guid: of the model that the licence is for, if the key comes from one.
    """

    text: SecretBytes
    model_guid: str | None = None

    def decryptor(self, salt: bytes) -> CipherContext:
        """The cipher for a blob with this salt."""
        return _decryptor(self.text.buffer, salt)


def model_key(key: memoryview) -> ModelKey:
    """The key in a key file.

    Raises:
        InvalidKey: it is neither 64 hexadecimal digits nor 32 bytes.
    """
    size = len(key)
    if size in (_AES + 1, 2 * _AES + 1) and key[size - 1] == ord("\n"):
        size -= 1
    secret = SecretBytes.zeros(2 * _AES + 1)
    text = secret.buffer
    text[2 * _AES] = ord("\n")
    if size == _AES:
        for place, byte in enumerate(key[:size]):
            text[2 * place], text[2 * place + 1] = _HEX[byte >> 4], _HEX[byte & 15]
        return ModelKey(secret)
    if size == 2 * _AES:
        for place, byte in enumerate(key[:size]):
            text[place] = byte | 0x20 if byte in b"ABCDEF" else byte  # the add-on writes small letters
        if all(byte in _HEX for byte in text[: 2 * _AES]):
            return ModelKey(secret)
    raise InvalidKey(
        "The key is no model key of the OpenVINO Security Add-on.",
        hint="It is 64 hexadecimal digits, or the 32 bytes that they stand for; with -O license=FILE, it is "
        "the private key in PEM that the licence was made for.",
    )


def unwrapped_key(private_key: memoryview, path: str) -> ModelKey:
    """The key in a licence.

    ``encryption_key`` is a blob like those of files, under the ECDH secret of two keys, in base64 with
    a newline: the customer's and the model maker's in a customer licence; the maker's second and first
    in a master licence. The certificate in both is that of the maker's first key.

    Args:
        private_key: in PEM: the customer's, or the maker's second.

    Raises:
        InvalidKey: it is no such key, or the licence is for another.
        FormatError: the file is no licence.
        NotFound, StorageError: it cannot be read.
    """
    private = _private_key(private_key)
    blob, peer, guid = _licence(path)
    with (
        SecretBytes.take(private.exchange(ECDH(), peer)) as shared,
        SecretBytes.take(base64.encodebytes(shared.buffer)) as wrapping,
    ):
        salt = salt_in(blob)
        if salt is None or len(blob) != HEADER_SIZE + 2 * _AES + 1:
            raise FormatError(f"{path} is no licence: its encryption_key is of another format.")
        text = SecretBytes.take(_decryptor(wrapping.buffer, salt).update(blob[HEADER_SIZE:]))
    try:
        return ModelKey(model_key(text.buffer).text, guid)
    except InvalidKey:
        pass
    raise InvalidKey(
        f"{path} does not open with this private key.",
        hint="A customer licence is for the customer's key, a master licence for the maker's second key.",
    )


def _private_key(pem: memoryview) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, None)
        if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
            return key
    except (ValueError, TypeError, UnsupportedAlgorithm):  # what cryptography says may quote the key
        pass
    raise InvalidKey(
        "The key is no private key for a licence.",
        hint="It is an elliptic-curve key (secp384r1) in PEM, without a passphrase.",
    )


def _licence(path: str) -> tuple[bytes, EllipticCurvePublicKey, str]:
    """The wrapped key, the maker's public key and the GUID of the model."""
    try:
        members: Any = json.loads(_read(path).decode())
        wrapped, pem, guid = (
            members[name] for name in ("encryption_key", "isv_certificate", "model_guid")
        )
        blob = binascii.a2b_base64(wrapped, strict_mode=True)
        peer = load_pem_x509_certificate(pem.encode()).public_key()
        guid.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm):
        raise FormatError(
            f"{path} is no licence.", hint="It is what ovsatool wrote with -m or sale -c."
        ) from None
    if not isinstance(peer, EllipticCurvePublicKey) or not isinstance(peer.curve, SECP384R1):
        raise FormatError(f"{path} is no licence: its certificate is of another kind of key.")
    return blob, peer, guid


def certified_key(path: str) -> EllipticCurvePublicKey:
    """The public key in a certificate in PEM.

    Raises:
        UsageError: it is none of an elliptic-curve key.
        NotFound, StorageError: it cannot be read.
    """
    try:
        key = load_pem_x509_certificate(_read(path)).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no certificate in PEM.") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise UsageError(f"{path} is no certificate of an elliptic-curve key.")
    return key


def _read(path: str) -> bytes:
    with os_errors(path), open(path, "rb") as file:
        return file.read(_MAX_FILE)
