"""KServe's confidential models: JWE in compact serialisation (RFC 7516), one file of a model each.

::

    file = header.key.iv.ciphertext.tag, every part in base64url without padding
    header = {"alg":"A256KW","enc":"A256GCM"} and, mostly, "kid"
    key    = AES key wrap (RFC 3394) of a fresh 32-byte content key, under the 32-byte key of the owner
    iv 12 bytes, tag 16 bytes; AES-256-GCM, associated data = the header as it stands in the file

Authentic are header and content. What the file is called is not: any file made under the key can take
the place of any other, or of a newer one. There is nothing that binds the files of a directory
together, and KServe takes what is not a JWE for plaintext.

KServe's own decryptor holds two to three times the file in memory and cannot open an empty one. Here
both directions stream through a few MiB. The tag is at the end, so the plaintext is handed out before
it. One file holds at most 64 GiB, the limit of GCM.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import (
    ForeignTampered,
    FormatError,
    InvalidKey,
    LimitExceeded,
    Malformed,
    UsageError,
)
from strongroom.format.encoding import b64url, dump_json, load_json, unb64url
from strongroom.keys.symmetric import SymmetricKey
from strongroom.model.memory import allocate
from strongroom.model.output import Output
from strongroom.model.parallel import in_order
from strongroom.model.payload import Content
from strongroom.model.storage import Source

__all__ = ["KserveJweCodec", "parse_key"]

_SUFFIX: Final = ".jwe"
_MAGIC: Final = b"eyJ"  # base64url of {"
_ALG: Final = "A256KW"
_ENC: Final = "A256GCM"
_KEY: Final = 32
_WRAPPED: Final = 40
_IV: Final = 12
_TAG: Final = 16
_TAG_TEXT: Final = 22
_MAX_HEAD: Final = 16 << 10  # header, key and iv; those of jwcrypto have 150 characters
_MAX_PLAINTEXT: Final = (1 << 36) - 32  # NIST SP 800-38D
_TEXT_CHUNK: Final = 1 << 20  # characters, a multiple of 4; the buffers stay in the cache
_RAW_CHUNK: Final = _TEXT_CHUNK // 4 * 3

_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
# binascii knows the standard alphabet alone. What base64url does not have becomes what nothing has.
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_OPERATIONS: Final = {"wrapKey", "unwrapKey", "encrypt", "decrypt"}
# The first two by RFC 7517; jwcrypto 1.6, and so KServe, asks for the other two.
_HINT: Final = "Give a JWK (kty oct), its k alone (43 characters of base64url), or 32 raw bytes."


def parse_key(content: SecretBytes) -> tuple[SecretBytes, str | None]:
    """The 32 bytes of a key file, and the key id if it is a JWK that has one.

    The rules are those of KServe: what is not UTF-8 is the key itself, and text is a JWK or ``k``.

    Raises:
        InvalidKey: anything else, or a JWK that is not for this.
    """
    text = bytearray(content.buffer)
    try:
        if _is_text(text):
            return _parse_jwk(text) if text.lstrip().startswith(b"{") else (_parse_k(text), None)
        if len(text) == _KEY:
            return SecretBytes(text), None
    finally:
        text[:] = bytes(len(text))
    raise InvalidKey("This is no key for A256KW: it has another size.", hint=_HINT)


def _is_text(data: bytearray) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:  # it holds the key, so nothing is raised in here
        return False
    return True


def _parse_k(text: bytearray) -> SecretBytes:
    # jwcrypto, and so KServe, takes the standard alphabet too: what openssl rand -base64 32 prints.
    url = text.translate(_TO_URL)
    try:
        encoded = SymmetricKey.parse(url).encode()
    except InvalidKey:
        raise InvalidKey(
            "This is no key for A256KW: it is not base64url of 32 bytes.", hint=_HINT
        ) from None
    finally:
        url[:] = bytes(len(url))
    try:
        return SecretBytes.take(base64.urlsafe_b64decode(encoded))
    finally:
        wipe_bytes(encoded)


def _parse_jwk(text: bytearray) -> tuple[SecretBytes, str | None]:
    jwk: dict[str, Any] = {}
    problem = None
    try:
        jwk = load_json(bytes(text), "JWK")
    except Malformed as error:  # behind it is one that holds the text
        problem = error.problem
    if problem:
        raise InvalidKey(f"This is not a JWK: it {problem}.", hint=_HINT)
    operations = jwk.get("key_ops", ["unwrapKey"])
    if jwk.get("kty") != "oct" or not isinstance(jwk.get("k"), str):
        raise InvalidKey("This JWK is not a symmetric key.", hint=_HINT)
    if jwk.get("alg", _ALG) != _ALG or jwk.get("use", "enc") != "enc":
        raise InvalidKey(
            "This JWK says that it is for something else than A256KW.",
            hint="If that is wrong, take alg and use out of it.",
        )
    if not isinstance(operations, list) or not _OPERATIONS & set(map(str, operations)):
        raise InvalidKey("This JWK says that it wraps no keys.", hint="See its key_ops.")
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise InvalidKey("The kid of this JWK is not text.")
    k = bytearray(jwk["k"], "utf-8")
    try:
        return _parse_k(k), kid
    finally:
        k[:] = bytes(len(k))


class KserveJweCodec(Codec):
    """JWE with A256KW and A256GCM, as KServe's storage initializer opens them."""

    name = "kserve-jwe"
    title = "KServe confidential models: JWE, A256KW and A256GCM (.jwe)"
    unprotected = (
        "A JWE does not say which file of a model it is, nor which version of it: a file can be replaced "
        "by any other that was made under the same key, or be left out."
    )
    options: ClassVar[Mapping[str, str]] = {
        "kid": "the key id: an export writes it (otherwise that of the JWK), an import insists on it"
    }
    suffix = _SUFFIX
    writes = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None
        self._key, kid = parse_key(key)
        self._kid = self.given.get("kid", kid)
        if self._kid and not self._kid.isprintable():
            raise UsageError("A key id is printable text.", hint="Give another: kid=…")

    def recognises(self, path: str, head: bytes) -> bool:
        return path.lower().endswith(_SUFFIX) or head.startswith(_MAGIC)

    def plain_path(self, path: str) -> str:
        return super().plain_path(re.sub(r"(?i)\.jwe\Z", _SUFFIX, path))

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        token = _Token.parse(source)
        wanted = self.given.get("kid")
        if wanted is not None and token.kid != wanted:
            raise InvalidKey(
                f"{source.name} is encrypted under the key id {token.kid or 'nothing'}, not {wanted}."
            )
        try:
            key = SecretBytes.take(aes_key_unwrap(self._key.buffer, token.wrapped))
        except InvalidUnwrap:
            raise ForeignTampered(
                f"{source.name} does not open: it was made with another key, or it has been changed.",
                hint=f"It names the key {token.kid}." if token.kid else None,
            ) from None
        return [PlainFile(self.plain_path(path), lambda write: _decrypt(source, token, key, write))]

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        if content.size > _MAX_PLAINTEXT:
            raise UsageError("One JWE holds at most 64 GiB.", hint="Split the file.")
        header = {"alg": _ALG, "enc": _ENC} | ({"kid": self._kid} if self._kid else {})
        with SecretBytes.random(_KEY) as key:
            wrapped = aes_key_wrap(self._key.buffer, key.buffer)
            writer = _TokenWriter(dump_json(header), wrapped, key, os.urandom(_IV), output.write)
            content.copy_to(writer.write)
            writer.finish()


@dataclass(frozen=True)
class _Token:
    """A JWE in a file, but for its ciphertext, which lies at ``start`` … ``end``."""

    protected: bytes
    kid: str | None
    wrapped: bytes
    iv: bytes
    start: int
    end: int
    tag: bytes

    @classmethod
    def parse(cls, source: Source) -> _Token:
        head = _read(source, 0, _MAX_HEAD)
        parts = head.split(b".", 3)
        if head[:1] == b"{":
            raise FormatError(
                f"{source.name} is not in compact serialisation, but may be a JWE in JSON.",
                hint="With jwcrypto: JWE.from_jose_token(text).serialize(compact=True).",
            )
        if not head.startswith(_MAGIC) or len(parts) < 4:
            raise FormatError(
                f"{source.name} is not a JWE in compact serialisation.",
                hint="That is five parts with dots between them, and begins with eyJ.",
            )
        kid = _check_header(source, parts[0])
        end = source.size - (_read(source, source.size - 1, 1) == b"\n") - _TAG_TEXT - 1
        start = sum(map(len, parts[:3])) + 3
        last = _read(source, end, _TAG_TEXT + 1)
        if end < start or last[:1] != b".":
            raise FormatError(
                f"{source.name} does not end as a JWE: its last part is not a tag of 16 bytes.",
                hint="It is cut short, or something follows it. Fetch it again.",
            )
        if (end - start) * 3 // 4 > _MAX_PLAINTEXT:
            raise LimitExceeded(f"{source.name} is longer than AES-GCM can be.")
        if (end - start) % 4 == 1:
            raise _damaged(source, end)
        wrapped = _decode_part(source, parts[1], "key", _WRAPPED)
        iv = _decode_part(source, parts[2], "iv", _IV)
        tag = _decode_part(source, last[1:], "tag", _TAG)
        return cls(parts[0], kid, wrapped, iv, start, end, tag)


def _check_header(source: Source, protected: bytes) -> str | None:
    """The kid of a header that says what is read here.

    Raises:
        FormatError: it says something else.
    """
    try:
        header = load_json(unb64url(protected.decode("latin-1"), "header"), "header")
    except Malformed as error:
        raise FormatError(f"{source.name}: the header of the JWE {error.problem}.") from None
    for name, expected in (("alg", _ALG), ("enc", _ENC)):
        if header.get(name) != expected:
            raise FormatError(
                f"{source.name} is a JWE with {name} {str(header.get(name))[:40]}, not {expected}.",
                hint="Only A256KW with A256GCM is read.",
            )
    for name in ("zip", "crit"):
        if name in header:
            raise FormatError(f"{source.name} is a JWE whose header has {name!r}, which is not read.")
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise FormatError(f"{source.name} is a JWE whose kid is not text.")
    return kid


def _decode_part(source: Source, text: bytes, what: str, size: int) -> bytes:
    try:
        return unb64url(text.decode("latin-1"), what, size)
    except Malformed as error:
        raise FormatError(f"{source.name}: the {what} of the JWE {error.problem}.") from None


def _read(source: Source, offset: int, size: int) -> bytes:
    """What there is of ``size`` bytes at ``offset``."""
    offset = max(0, offset)
    data = bytearray(max(0, min(size, source.size - offset)))
    source.read_into(offset, memoryview(data))
    return bytes(data)


def _damaged(source: Source, offset: int) -> ForeignTampered:
    return ForeignTampered(
        f"{source.name} is damaged: what stands at character {offset} or soon after is not base64url.",
        hint="Fetch it again.",
    )


def _decrypt(source: Source, token: _Token, key: SecretBytes, write: Write) -> None:
    decryptor = Cipher(AES(key.buffer), GCM(token.iv, token.tag)).decryptor()
    decryptor.authenticate_additional_data(token.protected)
    plaintext = allocate(_RAW_CHUNK)

    def produce(number: int, out: memoryview) -> int:
        offset = token.start + number * _TEXT_CHUNK
        text = bytearray(min(_TEXT_CHUNK, token.end - offset))
        source.read_into(offset, memoryview(text))
        standard = text.translate(_TO_STANDARD) + b"=" * (-len(text) % 4)
        try:
            raw = binascii.a2b_base64(standard, strict_mode=True)
        except binascii.Error:
            raise _damaged(source, offset) from None
        # Some bits of the last character stand for nothing, and could be changed.
        if (
            len(text) % 4
            and binascii.b2a_base64(raw[-(len(raw) % 3) :], newline=False) != standard[-4:]
        ):
            raise _damaged(source, token.end - 1)
        out[: len(raw)] = raw
        return len(raw)

    def consume(ciphertext: memoryview) -> None:
        count = decryptor.update_into(ciphertext, plaintext)
        write(plaintext[:count])

    # Decoding holds the interpreter's lock, and the cipher does not: two threads are as many as can
    # work here. From a remote store several requests are better under way.
    pieces = -(-(token.end - token.start) // _TEXT_CHUNK)
    in_order(pieces, _RAW_CHUNK, produce, consume, source.threads or 2)
    try:
        decryptor.finalize()
    except InvalidTag:
        raise ForeignTampered(
            f"{source.name} does not authenticate: it has been changed.", hint="Fetch it again."
        ) from None


class _TokenWriter:
    """Writes a token to ``write``; feed it with :meth:`write`, then :meth:`finish`."""

    def __init__(
        self, header: bytes, wrapped: bytes, key: SecretBytes, iv: bytes, write: Write
    ) -> None:
        self._write = write
        protected = b64url(header).encode()
        self._encryptor = Cipher(AES(key.buffer), GCM(iv)).encryptor()
        self._encryptor.authenticate_additional_data(protected)
        write(b"%s.%s.%s." % (protected, b64url(wrapped).encode(), b64url(iv).encode()))
        # What is not text yet; from one call to the next up to two bytes.
        self._raw = allocate(_RAW_CHUNK + 3)
        self._fill = 0

    def _write_text(self, end: int) -> None:
        text = binascii.b2a_base64(self._raw[:end], newline=False).translate(_TO_URL)
        self._write(text.rstrip(b"="))
        rest = bytes(self._raw[end : self._fill])
        self._raw[: len(rest)] = rest
        self._fill = len(rest)

    def write(self, data: memoryview | bytes) -> None:
        """Take more plaintext."""
        view = memoryview(data)
        for start in range(0, len(view), _RAW_CHUNK):
            part = view[start : start + _RAW_CHUNK]
            self._fill += self._encryptor.update_into(part, self._raw[self._fill :])
            self._write_text(self._fill // 3 * 3)

    def finish(self) -> None:
        """Write the end of the token."""
        self._write_text(self._fill)
        self._encryptor.finalize()
        self._write(b"." + b64url(self._encryptor.tag).encode())
