"""From the DEK of a model to the keys of its header and files (HKDF, RFC 5869, SHA-256)."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.crypto.secret import SecretBytes

__all__ = ["BUNDLE_SIZE", "DEK_SIZE", "MAC_SIZE", "ModelKeys", "gramine_wrap_key"]

DEK_SIZE: Final = 32
BUNDLE_SIZE: Final = 16
MAC_SIZE: Final = 32
_HEADER: Final = b"strongroom/v1/header"
_PAYLOAD: Final = b"strongroom/v1/payload"
_FILE: Final = b"strongroom/v1/file"
_GRAMINE: Final = b"strongroom/v1/gramine-wrap-key"
_GRAMINE_SIZE: Final = 16


def _hkdf(ikm: SecretBytes, salt: bytes, info: bytes, size: int = 32) -> SecretBytes:
    key = SecretBytes.zeros(size)
    HKDF(hashes.SHA256(), size, salt, info).derive_into(ikm.buffer, key.buffer)
    return key


def gramine_wrap_key(dek: SecretBytes, bundle: bytes) -> SecretBytes:
    """The wrap key of a model's files where Gramine keeps them: 16 bytes, since it knows AES-128 alone.

    Whoever has the DEK and the bundle has it, so that a key server can hand it out; from it nobody
    gets the DEK.
    """
    return _hkdf(dek, bundle, _GRAMINE, _GRAMINE_SIZE)


class ModelKeys:
    """The keys of one sealed model, derived from its DEK and its 16-byte bundle.

    Takes over ``dek``: :meth:`wipe` wipes it too.
    """

    def __init__(self, dek: SecretBytes, bundle: bytes) -> None:
        if len(dek) != DEK_SIZE or len(bundle) != BUNDLE_SIZE:
            raise ValueError("a DEK has 32 bytes and a bundle 16")
        self.dek = dek
        self.bundle = bundle
        self._header = _hkdf(dek, bundle, _HEADER)
        self.payload = _hkdf(dek, bundle, _PAYLOAD)

    def header_mac(self, signed: bytes) -> bytes:
        """HMAC-SHA256 of the header's bytes: 32 bytes. It commits to the DEK."""
        mac = hmac.HMAC(self._header.buffer, hashes.SHA256())
        mac.update(signed)
        return mac.finalize()

    def associated_data(self, path: str) -> bytes:
        """What binds a payload to this model and this path; Tink calls it the associated data."""
        return _FILE + b"\x00" + self.bundle + path.encode()

    def file_key(self, path: str, salt: bytes) -> SecretBytes:
        """The AES-256 key of one file, as Tink's streaming AEAD derives it from K_payload."""
        return _hkdf(self.payload, salt, self.associated_data(path))

    def wipe(self) -> None:
        """Zero the DEK and what was derived from it."""
        for secret in (self.dek, self._header, self.payload):
            secret.wipe()
