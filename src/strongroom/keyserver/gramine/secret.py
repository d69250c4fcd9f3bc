"""The forms in which a key goes to a client of Gramine.

A client that keeps what it gets as a key of encrypted files takes 16 bytes, from Gramine 1.9 on, or 32
hexadecimal digits; one that keeps it as a variable takes a text. Texts end in a zero byte.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Final

from strongroom.crypto.derive import gramine_wrap_key
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.release.provision import FORMS

__all__ = ["secret_for"]


def _wrap_key(dek: SecretBytes, bundle: bytes) -> SecretBytes:
    return gramine_wrap_key(dek, bundle)


def _wrap_key_hex(dek: SecretBytes, bundle: bytes) -> SecretBytes:
    with gramine_wrap_key(dek, bundle) as key:
        return _text(binascii.hexlify(key.buffer))


def _key(dek: SecretBytes, bundle: bytes) -> SecretBytes:
    return SecretBytes(dek.buffer)


def _key_text(dek: SecretBytes, bundle: bytes) -> SecretBytes:
    padded = base64.urlsafe_b64encode(dek.buffer)
    try:
        return _text(padded.rstrip(b"="))
    finally:
        wipe_bytes(padded)


def _text(text: bytes) -> SecretBytes:
    secret = SecretBytes.zeros(len(text) + 1)
    secret.buffer[:-1] = text
    wipe_bytes(text)
    return secret


_MAKERS: Final[Mapping[str, Callable[[SecretBytes, bytes], SecretBytes]]] = {
    "wrap-key": _wrap_key,
    "wrap-key-hex": _wrap_key_hex,
    "key": _key,
    "text": _key_text,
}
assert tuple(_MAKERS) == FORMS


def secret_for(form: str, dek: SecretBytes, bundle: bytes) -> SecretBytes:
    """What a client is sent.

    Args:
        form: one of :data:`strongroom.release.provision.FORMS`.
        dek: key of the model.
        bundle: of the model, 16 bytes.
    """
    return _MAKERS[form](dek, bundle)
