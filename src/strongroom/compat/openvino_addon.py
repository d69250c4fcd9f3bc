"""Controlled-access models of the OpenVINO Security Add-on (``ovsatool controlAccess -p OUT.dat``).

A file is JSON text as cJSON prints it::

    {name, description, version, model_guid, isv_certificate,
     files: [{file_name_0: "model.xml", file_body_0: blob}, …], signature}

    blob = base64("Salted__" ‖ salt[8] ‖ AES-256-CTR(key, iv, plaintext))
    key[32] ‖ iv[16] ‖ …[32] = HKDF-SHA384(salt, secret, info = "label")
    secret = 64 hexadecimal digits and a newline: the model key as text
    signature = base64(ECDSA-P384-SHA512(the text without this member))

The add-on prints the JSON, signs what it has printed, adds the member ``signature`` at the end and prints
it again. So what is signed is the text of the file before the comma that precedes ``"signature"``, and a
newline and a brace. A file that some other program has written anew, with other white space, is not
recognised as signed here, although the add-on itself, which prints what it has read, would.

The add-on keeps the model key in licences alone, wrapped for the key of a customer (or of the maker of the
model); the option ``license`` takes it from there.

What the format does not protect: the ciphertext alone has no integrity. The signature has, and is checked
with the option ``certificate``, against the certificate of who made the model; whether that is still in
force is not looked at. The certificate inside the file proves nothing. Name, version and file names lie in
clear. What a licence demands (time, number of uses, platform), and whether it is authentic, is not looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA512

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.json_scan import JsonScanner
from strongroom.compat.openvino_keys import (
    HEADER_SIZE,
    certified_key,
    model_key,
    salt_in,
    unwrapped_key,
)
from strongroom.compat.streams import pieces, read_range
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, InvalidKey, LimitExceeded
from strongroom.model.memory import allocate
from strongroom.model.storage import Source

__all__ = ["OpenvinoAddonCodec"]

_HEADER_TEXT: Final = 24  # the first characters of base64 that have all of the header
_QUOTE: Final = b'"'
_PIECE: Final = 2 << 20  # of base64; a multiple of four
# The add-on keeps what follows the last slash; JSON can have surrogates, which no text can.
_NOT_IN_NAMES: Final = re.compile("[/\\0\ud800-\udfff]")
_MAX_FILES: Final = 4096


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


@dataclass(frozen=True)
class _Body:
    """Where in the text a file lies, and the SHA-256 of that, quotes included, if the signature is checked."""

    name: str
    start: int
    end: int
    digest: bytes | None


class OpenvinoAddonCodec(Codec):
    """OpenVINO Security Add-on, controlled-access model. Read only, in constant memory."""

    name = "openvino-addon"
    title = "OpenVINO Security Add-on controlled-access model (.dat)"
    unprotected = (
        "Without certificate=FILE, the signature is not checked and there is no other integrity: whoever "
        "could write the file could change the model unnoticed. What a licence demands is not looked at."
    )
    options: ClassVar[Mapping[str, str]] = {
        "license": "licence file (.lic) to take the model key from; the key is then the private key in PEM that "
        "the licence was made for",
        "certificate": "PEM file with the certificate of who made the model: check the signature against it",
    }

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None  # takes_key
        if "license" in self.given:
            self._key = unwrapped_key(key.buffer, self.given["license"])
        else:
            self._key = model_key(key.buffer)
        self._signer: EllipticCurvePublicKey | None = None
        if "certificate" in self.given:
            self._signer = certified_key(self.given["certificate"])
        # A model is opened once to be looked at and once for each of its files; the whole text, which may
        # be gigabytes, is walked through the first time only. What has a digest is compared with it later.
        self._known: dict[tuple[str, int], list[_Body]] = {}

    def recognises(self, path: str, head: bytes) -> bool:
        return head.lstrip()[:1] == b"{" and head.lstrip(b"{ \t\r\n").startswith(b'"name"')

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        known = path, source.size
        if known not in self._known:
            reader = _Reader(source, self._signer)
            bodies = reader.bodies()
            if self._key.model_guid not in (None, reader.guid):
                raise InvalidKey(
                    f"The licence is for another model than {source.name}.",
                    hint="model_guid is the same in a model and its licence.",
                )
            self._known[known] = bodies
        folder = posixpath.dirname(path)
        return [
            PlainFile(posixpath.join(folder, body.name), self._copier(source, body))
            for body in self._known[known]
        ]

    def _copier(self, source: Source, body: _Body) -> Callable[[Write], None]:
        return lambda write: self._copy(source, body, write)

    def _copy(self, source: Source, body: _Body, write: Write) -> None:
        cipher = self._key.decryptor(_salt(source, body))
        digest = hashlib.sha256(_QUOTE)
        out = allocate(_PIECE)
        done = 0

        def consume(text: memoryview) -> None:
            nonlocal done
            if body.digest is not None:
                digest.update(text)
            last = done + len(text) == body.end - body.start
            decoded = memoryview(_decoded(source, body, text, last))
            ciphertext = decoded if done else decoded[HEADER_SIZE:]
            done += len(text)
            write(out[: cipher.update_into(ciphertext, out)])

        pieces(source, body.start, body.end, consume, _PIECE)
        cipher.finalize()
        digest.update(_QUOTE)
        if body.digest is not None and not hmac.compare_digest(digest.digest(), body.digest):
            raise ForeignTampered(f"{source.name} changed while it was read: {body.name}.")


class _Reader:
    """Walks once through the text of a model, and checks its signature if there is somebody's key."""

    def __init__(self, source: Source, signer: EllipticCurvePublicKey | None) -> None:
        self._source = source
        self._signer = signer
        self._scanner = JsonScanner(source)
        self.guid = ""
        self._bodies: list[_Body] = []
        self._digest = hashlib.sha512()
        if signer is not None:
            self._scanner.observers.append(self._digest.update)

    def bodies(self) -> list[_Body]:
        """The files of the model.

        Raises:
            FormatError: it is no controlled-access model.
            ForeignTampered: the signature is not the signer's.
        """
        scanner = self._scanner
        scanner.take(b"{")
        members: set[str] = set()
        signature = None
        signed = self._digest
        while signature is None:
            if members:
                scanner.take(b",")
            member = scanner.string()
            scanner.take(b":")
            if member in members:
                raise self._malformed(f"has the member {member!r} twice")
            members.add(member)
            if member == "signature":
                signature = scanner.string()
            elif member == "files":
                self._files()
            elif member == "model_guid":
                self.guid = scanner.string()
            else:
                scanner.string()
            if signature is None:
                scanner.sync()
                signed = self._digest.copy()
        scanner.take(b"}")  # the signature comes last: what follows it would not be signed
        scanner.finish()
        if "files" not in members:
            raise self._malformed("has no files")
        if self._signer is not None:
            self._verify(self._signer, signed, signature)
        return self._bodies

    def _files(self) -> None:
        scanner = self._scanner
        scanner.take(b"[")
        while not self._bodies or scanner.peek() == b",":
            if self._bodies:
                scanner.take(b",")
            number = len(self._bodies)
            if number == _MAX_FILES:
                raise LimitExceeded(f"{self._source.name} has more than {_MAX_FILES} files.")
            scanner.take(b"{")
            self._member(f"file_name_{number % 100}")
            name = scanner.string()
            if name in ("", ".", "..") or _NOT_IN_NAMES.search(name):
                raise self._malformed(f"names a file {name!r}")
            if any(body.name == name for body in self._bodies):
                raise self._malformed(f"has the file {name!r} twice")
            scanner.take(b",")
            self._member(f"file_body_{number % 100}")
            self._bodies.append(self._body(name))
            scanner.take(b"}")
        scanner.take(b"]")

    def _member(self, wanted: str) -> None:
        if self._scanner.string() != wanted:
            raise self._malformed(f"has no {wanted} where it is expected")
        self._scanner.take(b":")

    def _body(self, name: str) -> _Body:
        scanner = self._scanner
        if self._signer is None:
            body = _Body(name, *scanner.skip_plain_string(), None)
        else:
            digest = hashlib.sha256()
            scanner.peek()
            scanner.sync()
            scanner.observers.append(digest.update)
            start, end = scanner.skip_plain_string()
            scanner.sync()
            scanner.observers.pop()
            body = _Body(name, start, end, digest.digest())
        _salt(self._source, body)
        return body

    def _verify(self, signer: EllipticCurvePublicKey, signed: _Digest, signature: str) -> None:
        signed.update(b"\n}")  # what cJSON prints where the comma is
        try:
            text = signature.replace("\n", "")
            raw = base64.b64decode(text, validate=True)
            if base64.b64encode(raw).decode() != text:  # bits that encode nothing are set
                raise InvalidSignature
            signer.verify(raw, signed.digest(), ECDSA(Prehashed(SHA512())))
        except (ValueError, InvalidSignature):
            pass
        else:
            return
        raise ForeignTampered(
            f"{self._source.name} is not signed with the key of the given certificate.",
            hint="It was changed, printed anew by another program, or signed by somebody else.",
        )

    def _malformed(self, problem: str) -> FormatError:
        return FormatError(f"{self._source.name} is no controlled-access model: it {problem}.")


def _salt(source: Source, body: _Body) -> bytes:
    """The salt of a blob whose beginning is right.

    Raises:
        FormatError: it is none.
    """
    size = body.end - body.start
    if size % 4 == 0 and size >= _HEADER_TEXT:
        text = memoryview(read_range(source, body.start, body.start + _HEADER_TEXT))
        header = _decoded(source, body, text, size == _HEADER_TEXT)
        if (salt := salt_in(header)) is not None:
            return salt
    raise FormatError(
        f"{source.name}: {body.name} does not begin as an encrypted file does.",
        hint="It is cut short, damaged, or of another format.",
    )


def _decoded(source: Source, body: _Body, text: memoryview, last: bool) -> bytes:
    try:
        decoded = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        decoded = b""
    # In the midst of it there is no padding.
    if not decoded or (not last and len(decoded) * 4 != len(text) * 3):
        raise FormatError(f"{source.name}: {body.name} is not base64.", hint="It is damaged.")
    return decoded
