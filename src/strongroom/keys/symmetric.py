"""``A256KW``: a 32-byte symmetric key wraps the DEK with AES key wrap (RFC 3394)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, Final

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import HeaderTampered, InvalidKey, NoMatchingRecipient
from strongroom.format.encoding import b64url, unb64url
from strongroom.format.header import Header

__all__ = ["ALG", "WRAPPED_SIZE", "SymmetricKey", "unwrap_dek"]

ALG: Final = "A256KW"
WRAPPED_SIZE: Final = 40
_SIZE: Final = 32
_ENCODED_SIZE: Final = 44
_TO_STANDARD: Final = {ord("-"): ord("+"), ord("_"): ord("/")}
_ENCODED: Final = re.compile(rb"[A-Za-z0-9_-]{43}=")


def unwrap_dek(kek: SecretBytes, wrapped: bytes) -> SecretBytes:
    """AES key unwrap of a 32-byte DEK.

    Raises:
        InvalidUnwrap: wrapped under another key, or changed.
    """
    return SecretBytes.take(aes_key_unwrap(kek.buffer, wrapped))


def _decode(body: bytearray) -> SecretBytes | None:
    """The bytes of a whole padded base64url; None if it is something else. ``body`` is used up."""
    if not _ENCODED.fullmatch(body):
        return None
    for index, char in enumerate(body):
        body[index] = _TO_STANDARD.get(char, char)
    raw = SecretBytes.take(binascii.a2b_base64(body))
    again = base64.b64encode(raw.buffer)
    canonical = again == body
    wipe_bytes(again)
    return raw if canonical else None


class SymmetricKey:
    """A 32-byte symmetric key: recipient and identity in one. ``kid`` is its JWK thumbprint (RFC 7638)."""

    def __init__(self, key: SecretBytes) -> None:
        if len(key) != _SIZE:
            raise InvalidKey(f"A symmetric key has {_SIZE} bytes, this one {len(key)}.")
        self._key = key
        encoded = base64.urlsafe_b64encode(key.buffer)
        # JWK thumbprint (RFC 7638): SHA-256 of the canonical JWK, in base64url.
        digest = hashlib.sha256(b'{"k":"')
        digest.update(memoryview(encoded)[:-1])
        digest.update(b'","kty":"oct"}')
        self.kid = b64url(digest.digest())
        wipe_bytes(encoded)

    @classmethod
    def generate(cls) -> SymmetricKey:
        return cls(SecretBytes.random(_SIZE))

    @classmethod
    def parse(cls, text: bytes | bytearray) -> SymmetricKey:
        """Parse base64url of 32 bytes; padding and one trailing newline are allowed.

        Raises:
            InvalidKey: anything else.
        """
        end = len(text)
        for ending in (b"\n", b"\r", b"="):
            if text[end - 1 : end] == ending:
                end -= 1
        body = bytearray(_ENCODED_SIZE)
        try:
            body[:-1] = memoryview(text)[: min(end, _ENCODED_SIZE)]
            body[-1:] = b"="
            raw = _decode(body) if len(body) == _ENCODED_SIZE else None
        finally:
            body[:] = bytes(len(body))
        if raw is None:
            raise InvalidKey(
                "The key is not base64url of 32 bytes.", hint="Make one: strongroom keygen -o FILE"
            )
        return cls(raw)

    def encode(self) -> bytes:
        """The content of a key file; a Fernet key file has the same."""
        return base64.urlsafe_b64encode(self._key.buffer) + b"\n"

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        wrapped = aes_key_wrap(self._key.buffer, dek.buffer)
        return {"alg": ALG, "kid": self.kid, "encrypted_key": b64url(wrapped)}

    def unwrap(self, header: Header) -> SecretBytes:
        for index, entry in enumerate(header.recipients):
            if entry["alg"] != ALG or entry.get("kid", self.kid) != self.kid:
                continue
            field = f"recipients[{index}].encrypted_key"
            try:
                return unwrap_dek(self._key, unb64url(entry.get("encrypted_key"), field, WRAPPED_SIZE))
            except InvalidUnwrap:
                if "kid" in entry:
                    raise HeaderTampered(
                        "The recipient of this key does not unwrap: the header was changed."
                    ) from None
        raise NoMatchingRecipient(f"The model is not sealed for the symmetric key {self.kid}.")

    def __repr__(self) -> str:
        return f"<SymmetricKey {self.kid}>"
