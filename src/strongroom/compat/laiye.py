"""Files of Laiye's TensorFlow Serving and of its tool ``cryptfile`` (cryptpb).

A file is ``AES-128-CBC(key, IV = 16 × 0x37, PKCS#7(plaintext))``, with nothing before or after. The
key is the first 16 bytes of what the tool was given as ``-k``, or, before 2022, 16 bytes that were
compiled in.

What the format does not protect:

* Integrity, not at all: bits of the ciphertext can be changed, blocks exchanged and cut off. A wrong
  key or a damaged end shows in the padding, 255 times of 256; and in the first byte of a
  ``saved_model.pb``. What has been imported may have been tampered with before.
* Equal beginnings: the IV is the same for all files, so models that begin alike encrypt alike.
* The weights: the system encrypts ``saved_model.pb`` and other binary protocol buffers alone;
  ``variables/`` and ``assets/`` lie in clear.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.streams import BLOCK, decipher_padded, encipher
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, InvalidKey
from strongroom.model.output import Output
from strongroom.model.payload import Content
from strongroom.model.storage import Source

__all__ = ["LaiyeCodec"]

_IV: Final = b"\x37" * BLOCK
_KEY_SIZE: Final = 16
# The tags of the two fields that a SavedModel has, saved_model_schema_version and meta_graphs. TensorFlow
# writes fields in the order of their numbers, so one of them comes first.
_SAVED_MODEL: Final = (0x08, 0x12)


class LaiyeCodec(Codec):
    """Laiye TensorFlow Serving, cryptpb ``cryptfile``: AES-128-CBC under a fixed IV.

    Reads and writes in constant memory.
    """

    name = "laiye"
    title = "Laiye TensorFlow Serving (cryptpb): AES-128-CBC with a fixed IV"
    unprotected = (
        "It has no integrity: whoever could write the file could change the model unnoticed. "
        "Equal beginnings of models show, and variables/ and assets/ were never encrypted."
    )
    writes = True
    legacy = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None  # takes_key
        self._key = SecretBytes(_used(key.buffer))

    def leaves_plain(self, path: str) -> bool:
        # ReadBinaryProto alone decrypts; it reads what is called so: graphs, fingerprints, frozen graphs.
        return not path.endswith(".pb")

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        def copy_to(write: Write) -> None:
            checked = _SavedModelOnly(source.name, write) if _is_saved_model(path) else write
            cipher = Cipher(AES(self._key.buffer), CBC(_IV)).decryptor()
            decipher_padded(source, 0, cipher, checked)

        return [PlainFile(self.plain_path(path), copy_to)]

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        cipher = Cipher(AES(self._key.buffer), CBC(_IV)).encryptor()
        encipher(content, cipher, output.write)
        padding = BLOCK - content.size % BLOCK
        output.write(cipher.update(bytes([padding]) * padding) + cipher.finalize())


def _used(key: memoryview) -> memoryview:
    """What the tool uses of a key file.

    A newline after text is the editor's; a key of arbitrary bytes has one by chance.
    """
    size = len(key)
    if key[size - 1] == ord("\n") and all(byte >= 0x20 and byte != 0x7F for byte in key[: size - 1]):
        size -= 1
    if size < _KEY_SIZE:
        raise InvalidKey(
            f"The key has {size} bytes, and AES-128 needs {_KEY_SIZE}: given a shorter one, the "
            "original tool takes whatever lies behind it in memory.",
            hint="Give the 16 bytes that were compiled in, or the text that -k was given.",
        )
    return key[:_KEY_SIZE]


def _is_saved_model(path: str) -> bool:
    return posixpath.basename(path) == "saved_model.pb"


class _SavedModelOnly:
    """Passes plaintext on if it begins as a SavedModel does: of a hundred wrong keys, one gets past."""

    def __init__(self, name: str, write: Write) -> None:
        self._name = name
        self._write = write
        self._begun = False

    def __call__(self, plaintext: memoryview | bytes) -> None:
        if not self._begun and len(plaintext):
            self._begun = True
            if plaintext[0] not in _SAVED_MODEL:
                raise ForeignTampered(
                    f"{self._name} does not begin as a SavedModel under this key.",
                    hint="It was encrypted under another key, is damaged, or was never encrypted. "
                    "If it is no SavedModel, give the file another name.",
                )
        self._write(plaintext)
