"""AES-256-GCM under a root key that this process holds: nonce of 12 bytes, ciphertext, tag."""

from __future__ import annotations

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import HeaderTampered, InvalidKey

__all__ = ["ROOT_SIZE", "HeldKek", "does_not_open", "text_of"]

ROOT_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_ID: Final = b"strongroom/v1/root-key-id\x00"


def does_not_open() -> HeaderTampered:
    """What every kind of root key says of a wrapped key that is not as it was."""
    return HeaderTampered(
        "A wrapped key does not open under the root key: its record was changed, or is of another place.",
        hint="Compare the database with a backup and with the audit trail.",
    )


def text_of(secret: SecretBytes, what: str) -> str:
    """A PIN or token as the libraries take it.

    Args:
        secret: UTF-8, without control characters.
        what: for the message.

    Raises:
        InvalidKey: it is no such text.
    """
    try:
        text = bytes(secret.buffer).decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise InvalidKey(f"The {what} is no text of printable characters.")
    return text


class HeldKek:
    """A root key in this process's memory. Random nonces are good for 2³² wrapped keys.

    Args:
        kind: first part of the id.
        root: the key, 32 bytes; it belongs to this object from now on.
    """

    def __init__(self, kind: str, root: SecretBytes) -> None:
        self._root = root
        self._aead = AESGCM(root.buffer)
        digest = hashlib.sha256(_ID + root.buffer).hexdigest()
        self.id = f"{kind}:{digest[:32]}"

    def wrap(self, secret: SecretBytes, aad: bytes) -> bytes:
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._aead.encrypt(nonce, secret.buffer, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> SecretBytes:
        size = len(wrapped) - _NONCE_SIZE - _TAG_SIZE
        secret = SecretBytes.zeros(max(size, 1))
        try:
            if size < 1:
                raise InvalidTag
            self._aead.decrypt_into(wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:], aad, secret.buffer)
        except InvalidTag:
            raise does_not_open() from None
        return secret

    def __repr__(self) -> str:
        return f"<HeldKek {self.id}>"
