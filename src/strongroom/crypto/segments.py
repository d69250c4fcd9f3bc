"""Numbered AES-256-GCM segments: the STREAM construction as Tink's AES-GCM-HKDF streaming AEAD has it."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.crypto.secret import SecretBytes

__all__ = ["PREFIX_SIZE", "SALT_SIZE", "TAG_SIZE", "SegmentCipher"]

SALT_SIZE: Final = 32
PREFIX_SIZE: Final = 7
TAG_SIZE: Final = 16


class SegmentCipher:
    """Encrypts and decrypts the segments of one payload; safe to share between threads.

    The nonce is ``prefix ‖ number ‖ last``: a segment cannot change its place, and the last one
    cannot be taken for another, so neither order nor length can be altered unseen.
    Both operations release the GIL and write into the caller's memory.
    """

    def __init__(self, key: SecretBytes, prefix: bytes) -> None:
        if len(prefix) != PREFIX_SIZE:
            raise ValueError("a nonce prefix has 7 bytes")
        self._aead = AESGCM(key.buffer)
        self._prefix = prefix

    def _nonce(self, number: int, last: bool) -> bytes:
        return self._prefix + number.to_bytes(4, "big") + (b"\x01" if last else b"\x00")

    def encrypt_into(self, number: int, last: bool, plaintext: memoryview, out: memoryview) -> None:
        """Encrypt; ``out`` has the plaintext's size plus 16."""
        self._aead.encrypt_into(self._nonce(number, last), plaintext, None, out)

    def decrypt_into(self, number: int, last: bool, ciphertext: memoryview, out: memoryview) -> None:
        """Decrypt; ``out`` has the ciphertext's size minus 16.

        Raises:
            cryptography.exceptions.InvalidTag: not authentic. What ``out`` holds then is
                unauthenticated: the caller must clear it and not hand it on.
        """
        self._aead.decrypt_into(self._nonce(number, last), ciphertext, None, out)
