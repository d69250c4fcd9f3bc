"""model_cryptor's files: Fernet tokens (github.com/fernet/spec), in base64url text.

::

    file = base64url( 0x80 ‖ time: u64 BE, seconds ‖ IV[16] ‖ AES-128-CBC(PKCS#7) ‖ HMAC-SHA256[32] )
    key  = base64url( MAC key[16] ‖ AES key[16] ), the content of license.pem

The MAC covers all before it. Fernet does not say which model a file is: any file made under the key
can take the place of any other, or of a newer one. The time is not checked by model_cryptor, and not
here. Both halves of the key are of 128 bits and can be searched for apart.

Both directions stream: some 10 MiB of memory, whatever the size of the file (the ``Fernet`` class of
cryptography holds five to eight times the file). The MAC is at the end, so the plaintext is handed out
before it; its padding is looked at afterwards.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives import constant_time, hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.streams import read_range
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey
from strongroom.keys.symmetric import SymmetricKey
from strongroom.model.memory import allocate
from strongroom.model.output import Output
from strongroom.model.parallel import in_order
from strongroom.model.payload import Content
from strongroom.model.storage import Source

__all__ = ["FernetCodec", "TokenWriter", "parse_key"]

_VERSION: Final = 0x80
_HEADER: Final = 25  # version, time, IV
_IV: Final = slice(9, 25)
_MAC: Final = 32
_BLOCK: Final = 16
_SMALLEST: Final = _HEADER + _BLOCK + _MAC
_TEXT_CHUNK: Final = 1 << 20  # characters, a multiple of 4; the buffers stay in the cache
_RAW_CHUNK: Final = _TEXT_CHUNK // 4 * 3
_STARTS: Final = re.compile(rb"gAAAA[A-Za-z0-9_-]*")
# The version and the first bytes of the time, which are zero until 2106.

_TO_STANDARD: Final = bytes.maketrans(b"-_+/", b"+/\0\0")
# binascii knows the standard alphabet alone. What base64url does not have becomes what nothing has.
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")


def parse_key(content: SecretBytes) -> SecretBytes:
    """The 32 bytes of a key file: 16 for the MAC, 16 for AES.

    Raises:
        InvalidKey: it is not 44 characters of base64url, with or without a newline.
    """
    text = bytearray(content.buffer)
    try:
        encoded = SymmetricKey.parse(text).encode()
    except InvalidKey:
        raise InvalidKey(
            "This is not a key of model_cryptor: 44 characters of base64url.",
            hint="It is the content of license.pem.",
        ) from None
    finally:
        text[:] = bytes(len(text))
    try:
        return SecretBytes.take(base64.urlsafe_b64decode(encoded))
    finally:
        wipe_bytes(encoded)


class FernetCodec(Codec):
    """Fernet tokens, as model_cryptor and ``cryptography.fernet`` write them."""

    name = "model-cryptor"
    title = "model_cryptor: Fernet tokens (.crt), key in license.pem"
    unprotected = (
        "Fernet does not say which model a file is, nor which version of it: a file can be replaced by "
        "any other that was made under the same key."
    )
    suffix = ".crt"
    writes = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None
        self._key = parse_key(key)

    def recognises(self, path: str, head: bytes) -> bool:
        return _STARTS.fullmatch(head) is not None

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        token = _Token(self._key, source)
        return [PlainFile(self.plain_path(path), token.copy_to)]

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        writer = TokenWriter(self._key, output.write, int(time.time()), os.urandom(_BLOCK))
        content.copy_to(writer.write)
        writer.finish()


class _Token:
    """A token in a file. The size says where everything lies."""

    def __init__(self, key: SecretBytes, source: Source) -> None:
        self._source = source
        self._key = key
        head = read_range(source, 0, min(8, source.size))
        if not _STARTS.fullmatch(head):
            raise FormatError(
                f"{source.name} is not a Fernet token.",
                hint="model_cryptor's files are text that begins with gAAAA.",
            )
        end = read_range(source, max(0, source.size - 6), source.size)
        newline = _newline(end)
        self._text_size = source.size - newline
        end = end[: len(end) - newline][-4:]
        self._size = self._text_size // 4 * 3 - end[-2:].count(b"=")
        blocks = self._size - _HEADER - _MAC
        if self._text_size % 4 or self._size < _SMALLEST or blocks % _BLOCK:
            raise ForeignTampered(
                f"{source.name} is damaged: {source.size} characters are too few or too many for a "
                "Fernet token.",
                hint="It is cut short, or something follows it. Fetch it again.",
            )
        # Some characters of the last group can be changed without a change of what they stand for.
        if base64.urlsafe_b64encode(self._decode(end, self._text_size - 4)) != end:
            raise self._not_base64url(self._text_size - 4)

    def _not_base64url(self, offset: int) -> ForeignTampered:
        return ForeignTampered(
            f"{self._source.name} is damaged: what stands at character {offset} or soon after is not "
            "base64url.",
            hint="Fetch it again.",
        )

    def _decode(self, text: bytes | bytearray, offset: int) -> bytes:
        try:
            return binascii.a2b_base64(text.translate(_TO_STANDARD), strict_mode=True)
        except binascii.Error:
            raise self._not_base64url(offset) from None

    def copy_to(self, write: Write) -> None:
        """Decrypt in one pass; the MAC, and then the last block, come at the end."""
        body = _Body(self._key, self._size, write)

        def produce(number: int, out: memoryview) -> int:
            offset = number * _TEXT_CHUNK
            text = bytearray(min(_TEXT_CHUNK, self._text_size - offset))
            self._source.read_into(offset, memoryview(text))
            raw = self._decode(text, offset)
            out[: len(raw)] = raw
            return len(raw)

        # Decoding holds the interpreter's lock, and MAC and cipher do not: two threads are as many
        # as can work here. From a remote store several requests are better under way.
        pieces = -(-self._text_size // _TEXT_CHUNK)
        in_order(pieces, _RAW_CHUNK, produce, body.take, self._source.threads or 2)
        if not body.authentic():
            raise ForeignTampered(
                f"{self._source.name} does not authenticate: it was made with another key, or it has "
                "been changed.",
                hint="Fernet cannot tell which. Try the license.pem that it was made with.",
            )
        if not body.finish():
            raise ForeignTampered(f"{self._source.name} is authentic, and its padding is wrong.")


def _newline(end: bytes) -> int:
    """How many characters the newline has that an editor may have left at the end."""
    return 2 if end.endswith(b"\r\n") else 1 if end.endswith(b"\n") else 0


class _Body:
    """Decrypts what is taken in, in order, but for the last block; then the MAC is compared."""

    def __init__(self, key: SecretBytes, size: int, write: Write) -> None:
        self._mac = hmac.HMAC(key.buffer[:16], hashes.SHA256())
        self._key = key
        self._write = write
        self._end = size - _MAC - _BLOCK  # of what is decrypted at once
        self._position = 0
        self._tail = b""  # the last block and the MAC
        self._out = allocate(_RAW_CHUNK + _BLOCK)

    def take(self, raw: memoryview) -> None:
        start = 0
        if self._position == 0:
            iv = bytes(raw[_IV])
            self._decryptor = Cipher(AES(self._key.buffer[16:]), CBC(iv)).decryptor()
            start = _HEADER
        end = min(len(raw), max(start, self._end - self._position))
        self._mac.update(raw[:end])
        count = self._decryptor.update_into(raw[start:end], self._out)
        if count:
            self._write(self._out[:count])
        self._tail += raw[end:]
        self._position += len(raw)

    def authentic(self) -> bool:
        self._mac.update(self._tail[:_BLOCK])
        return constant_time.bytes_eq(self._mac.finalize(), self._tail[_BLOCK:])

    def finish(self) -> bool:
        """Write what the last block holds; False if its padding is wrong. After the MAC only."""
        block = self._decryptor.update(self._tail[:_BLOCK]) + self._decryptor.finalize()
        count = block[-1]
        if not (1 <= count <= _BLOCK and block.endswith(bytes([count]) * count)):
            return False
        self._write(block[:-count])
        return True


class TokenWriter:
    """Writes a token to ``write``; feed it with :meth:`write`, then :meth:`finish`.

    Args:
        key: 32 bytes.
        now: seconds since 1970.
        iv: 16 bytes, never used before.
    """

    def __init__(self, key: SecretBytes, write: Write, now: int, iv: bytes) -> None:
        self._write = write
        self._mac = hmac.HMAC(key.buffer[:16], hashes.SHA256())
        self._encryptor = Cipher(AES(key.buffer[16:]), CBC(iv)).encryptor()
        self._size = 0
        # What is not text yet; from one call to the next up to two bytes.
        self._raw = allocate(_RAW_CHUNK + _HEADER + _BLOCK + _MAC)
        self._fill = _HEADER
        self._raw[:_HEADER] = bytes([_VERSION]) + now.to_bytes(8, "big") + iv
        self._mac.update(self._raw[:_HEADER])
        self._write_text(_HEADER // 3 * 3)

    def _write_text(self, end: int) -> None:
        self._write(binascii.b2a_base64(self._raw[:end], newline=False).translate(_TO_URL))
        rest = bytes(self._raw[end : self._fill])
        self._raw[: len(rest)] = rest
        self._fill = len(rest)

    def write(self, data: memoryview | bytes) -> None:
        """Take more plaintext."""
        view = memoryview(data)
        self._size += len(view)
        for start in range(0, len(view), _RAW_CHUNK):
            self._encrypt(view[start : start + _RAW_CHUNK])
            self._write_text(self._fill // 3 * 3)

    def _encrypt(self, plaintext: memoryview | bytes) -> None:
        count = self._encryptor.update_into(plaintext, self._raw[self._fill :])
        self._mac.update(self._raw[self._fill : self._fill + count])
        self._fill += count

    def finish(self) -> None:
        """Write the end of the token."""
        count = _BLOCK - self._size % _BLOCK
        self._encrypt(bytes([count]) * count)
        self._raw[self._fill : self._fill + _MAC] = self._mac.finalize()
        self._fill += _MAC
        self._write_text(self._fill)
