"""Files of Paddle's cipher: ``CipherFactory.create_cipher(config)``, ``encrypt_to_file``, Paddle Serving.

There is no header; only the configuration that Paddle was given says what a file is:

========================= ============ ==================================================
``cipher_name``           ``cipher=``  file
========================= ============ ==================================================
``AES_GCM_NoPadding``     ``gcm``      IV ‖ ciphertext ‖ tag, no associated data
``AES_CTR_NoPadding``     ``ctr``      IV ‖ ciphertext; Paddle's default
``AES_CBC_PKCSPadding``   ``cbc``      IV ‖ ciphertext, PKCS#7
``AES_ECB_PKCSPadding``   ``ecb``      ciphertext, PKCS#7
========================= ============ ==================================================

``iv_size`` and ``tag_size`` are in bits, 128 each unless the configuration says otherwise; CTR and CBC
know no other IV. The key is 16, 24 or 32 bytes as they are, as ``CipherUtils.gen_key_to_file`` writes them.

What the format does not protect: with GCM, which file of a model this is, and with a short tag, chance
forgeries. With CTR, CBC and ECB nothing is authentic: bits can be changed unnoticed, and a wrong key gives
noise (CTR) or, once in 256, noise too (CBC, ECB). ECB shows equal blocks besides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR, ECB, GCM

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.streams import BLOCK, decipher, decipher_padded, encipher, read_range
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, LimitExceeded, UsageError
from strongroom.model.output import Output
from strongroom.model.payload import Content
from strongroom.model.storage import Source

__all__ = ["PaddleCipherCodec"]

_KEY_SIZES: Final = (16, 24, 32)
_CIPHERS: Final = ("gcm", "ctr", "cbc", "ecb")
# What OpenSSL takes for GCM; Paddle takes IVs up to 256 bits, and any tag of whole bytes from 32 bits on.
_IV_BITS: Final = range(64, 1024 + 1, 8)
_TAG_BITS: Final = range(32, 128 + 1, 8)
_MAX_GCM: Final = (1 << 36) - 32
"""Bytes under one IV (NIST SP 800-38D, 5.2.1.1)."""


class PaddleCipherCodec(Codec):
    """Paddle's AES cipher: GCM, CTR, CBC or ECB, as the configuration said. Constant memory.

    An export is always AES-GCM with Paddle's sizes (or those of the options).
    """

    name = "paddle-cipher"
    title = "Paddle CipherFactory files: AES-GCM, -CTR, -CBC, -ECB"
    unprotected = (
        "AES-GCM files do not say which file of a model they are; with cipher=ctr, cbc or ecb there is "
        "no integrity at all: whoever could write the file could change the model unnoticed."
    )
    options: ClassVar[Mapping[str, str]] = {
        "cipher": "gcm (the default), ctr (Paddle's own default), cbc or ecb: cipher_name in Paddle's configuration",
        "iv_size": "bits of the IV of GCM, 128 unless Paddle's configuration says otherwise",
        "tag_size": "bits of the tag of GCM, 128 unless Paddle's configuration says otherwise",
    }
    writes = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None  # takes_key
        size = len(key)
        # A key of a valid size may end in a newline by chance; one byte more can only be the editor's.
        if size - 1 in _KEY_SIZES and key.buffer[size - 1] == ord("\n"):
            size -= 1
        if size not in _KEY_SIZES:
            raise InvalidKey(
                f"The key has {size} bytes; Paddle's ciphers take 16, 24 or 32.",
                hint="Give the file that CipherUtils.gen_key_to_file wrote.",
            )
        self._key = SecretBytes(key.buffer[:size])
        self._cipher = self.given.get("cipher", "gcm")
        if self._cipher not in _CIPHERS:
            raise UsageError(
                f"{self.name} has no cipher {self._cipher!r}.",
                hint="It is one of: " + ", ".join(_CIPHERS) + ".",
            )
        self._iv_size = self._bytes("iv_size", _IV_BITS)
        self._tag_size = self._bytes("tag_size", _TAG_BITS)

    def _bytes(self, option: str, allowed: range) -> int:
        given = self.given.get(option, "128")
        if self._cipher != "gcm" and given != "128":
            raise UsageError(f"{option} is always 128 with cipher={self._cipher}.")
        bits = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else -1
        if bits not in allowed:
            raise UsageError(
                f"{option}={given} is not possible.",
                hint=f"It is in bits: a multiple of 8 from {allowed.start} to {allowed.stop - 1}.",
            )
        return bits // 8

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        least = {
            "gcm": self._iv_size + self._tag_size,
            "ctr": BLOCK,
            "cbc": 2 * BLOCK,
            "ecb": BLOCK,
        }[self._cipher]
        if source.size < least:
            raise FormatError(
                f"{source.name} has {source.size} bytes; with cipher={self._cipher} there are at least {least}.",
                hint="It is cut short, or is of another format.",
            )
        if self._cipher == "gcm" and source.size - least > _MAX_GCM:
            raise LimitExceeded(f"{source.name}: AES-GCM can encrypt {_MAX_GCM} bytes at most.")
        copy = {"gcm": self._gcm, "ctr": self._ctr, "cbc": self._cbc, "ecb": self._ecb}[self._cipher]
        return [PlainFile(self.plain_path(path), lambda write: copy(source, write))]

    def _gcm(self, source: Source, write: Write) -> None:
        end = source.size - self._tag_size
        iv = read_range(source, 0, self._iv_size)
        tag = read_range(source, end, source.size)
        cipher = Cipher(AES(self._key.buffer), GCM(iv, tag, len(tag))).decryptor()
        decipher(source, self._iv_size, end, cipher, write)
        try:
            cipher.finalize()
        except InvalidTag:
            pass
        else:
            return
        raise ForeignTampered(
            f"{source.name} does not authenticate with AES-GCM under this key.",
            hint="It was changed, or the key is another, or Paddle wrote it without integrity: its default, "
            "and that of Paddle Serving, is cipher=ctr.",
        )

    def _ctr(self, source: Source, write: Write) -> None:
        cipher = Cipher(AES(self._key.buffer), CTR(read_range(source, 0, BLOCK))).decryptor()
        decipher(source, BLOCK, source.size, cipher, write)
        cipher.finalize()

    def _cbc(self, source: Source, write: Write) -> None:
        cipher = Cipher(AES(self._key.buffer), CBC(read_range(source, 0, BLOCK))).decryptor()
        decipher_padded(source, BLOCK, cipher, write)

    def _ecb(self, source: Source, write: Write) -> None:
        mode = ECB()  # noqa: S305  only to read what Paddle has written so
        decipher_padded(source, 0, Cipher(AES(self._key.buffer), mode).decryptor(), write)

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        if self._cipher != "gcm":
            raise UsageError(
                f"{self.name} files are written with AES-GCM alone; {self._cipher} has no integrity.",
                hint="Leave cipher out; Paddle reads it with cipher_name : AES_GCM_NoPadding.",
            )
        if content.size > _MAX_GCM:
            raise LimitExceeded(f"{destination}: AES-GCM can encrypt {_MAX_GCM} bytes at most.")
        iv = os.urandom(self._iv_size)
        cipher = Cipher(AES(self._key.buffer), GCM(iv)).encryptor()
        output.write(iv)
        encipher(content, cipher, output.write)
        cipher.finalize()
        output.write(cipher.tag[: self._tag_size])
