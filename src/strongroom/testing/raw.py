"""Sealed files built byte by byte from the text of the format, with room for one fault each.

Nothing here calls the code that it tests: HKDF, HMAC, AES-GCM and AES key wrap come straight from
``cryptography``. What would be random comes from SHAKE-256 of a label, so that bytes repeat.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

__all__ = [
    "BUNDLE",
    "DEK",
    "KEY",
    "MAGIC",
    "OTHER_KEY",
    "PASSPHRASE",
    "SEGMENT",
    "Vector",
    "area",
    "b64",
    "header",
    "header_key",
    "passphrase_entry",
    "pattern",
    "sealed",
    "segments",
    "symmetric_entry",
    "to_json",
]

MAGIC: Final = b"\x89SRM\r\n\x1a\n"
SEGMENT: Final = 65536


def pattern(label: str, size: int) -> bytes:
    """``size`` bytes that look random and are the same every time."""
    return hashlib.shake_256(b"strongroom test vectors\x00" + label.encode()).digest(size)


DEK: Final = pattern("DEK", 32)
BUNDLE: Final = pattern("bundle", 16)
KEY: Final = pattern("symmetric key", 32)
OTHER_KEY: Final = pattern("another symmetric key", 32)
PASSPHRASE: Final = "Käse und Brot"


@dataclass(frozen=True)
class Vector:
    """One test vector.

    Attributes:
        name: of the fault, or of what is special in a valid one.
        content: a sealed file, or path → bytes of a directory.
        key: which of the keys in ``vectors.json`` to open it with.
        plain: path → plaintext, of a valid one.
        expect: ``ok`` or the name of the error's class.
        detail: attributes of the error: ``field``, ``path``; ``segments`` has those that ``segment`` may be.
        inspect: whether looking at it without a key fails in the same way.
    """

    name: str
    content: bytes | Mapping[str, bytes]
    key: str = "symmetric"
    plain: Mapping[str, bytes] = field(default_factory=dict)
    expect: str = "ok"
    detail: Mapping[str, Any] = field(default_factory=dict)
    inspect: bool = False


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(ikm)


def header_key(dek: bytes, bundle: bytes) -> bytes:
    """K_header."""
    return _hkdf(dek, bundle, b"strongroom/v1/header")


def symmetric_entry(key: bytes = KEY, dek: bytes = DEK) -> dict[str, Any]:
    """A recipient ``A256KW``."""
    jwk = json.dumps({"k": b64(key), "kty": "oct"}, separators=(",", ":"), sort_keys=True)
    return {
        "alg": "A256KW",
        "kid": b64(hashlib.sha256(jwk.encode()).digest()),
        "encrypted_key": b64(aes_key_wrap(key, dek)),
    }


def passphrase_entry(
    passphrase: str = PASSPHRASE, label: str = "salt", t: int = 1, m: int = 8, p: int = 1
) -> dict[str, Any]:
    """A recipient ``Argon2id+A256KW``, with the least memory there can be."""
    salt = pattern(f"Argon2id {label}", 16)
    kdf = Argon2id(salt=salt, length=32, iterations=t, lanes=p, memory_cost=m)
    kek = kdf.derive(passphrase.encode())
    return {
        "alg": "Argon2id+A256KW",
        "salt": b64(salt),
        "t": t,
        "m": m,
        "p": p,
        "encrypted_key": b64(aes_key_wrap(kek, DEK)),
    }


def header(**members: Any) -> dict[str, Any]:
    """A valid header, with ``members`` in place of its own; ``...`` leaves one out."""
    whole = {
        "v": 1,
        "bundle": b64(BUNDLE),
        "path": "model.bin",
        "segment": SEGMENT,
        "recipients": [symmetric_entry()],
        "meta": {"name": "test"},
        **members,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def area(
    members: Mapping[str, Any] | bytes,
    *,
    dek: bytes = DEK,
    bundle: bytes = BUNDLE,
    size: int = 4096,
    said_size: int | None = None,
    said_header: int | None = None,
) -> bytes:
    """A header area of ``size`` bytes with a correct MAC over whatever it says."""
    encoded = members if isinstance(members, bytes) else to_json(members)
    sizes = struct.pack(
        ">II",
        size if said_size is None else said_size,
        len(encoded) if said_header is None else said_header,
    )
    signed = MAGIC + sizes + encoded
    mac = hmac.HMAC(header_key(dek, bundle), hashes.SHA256())
    mac.update(signed)
    return (signed + mac.finalize()).ljust(size, b"\x00")


def segments(
    plain: bytes,
    path: str = "model.bin",
    *,
    dek: bytes = DEK,
    bundle: bytes = BUNDLE,
    segment: int = SEGMENT,
    label: str = "",
    empty_last: bool = False,
) -> list[bytes]:
    """The payload of ``plain``, one item a segment; the 40 bytes before the first belong to it.

    ``label`` changes salt and nonce prefix. ``empty_last`` adds the empty segment that is invalid.
    """
    salt, prefix = pattern(f"file salt {label}{path}", 32), pattern(f"prefix {label}{path}", 7)
    associated = b"strongroom/v1/file\x00" + bundle + path.encode()
    file_key = _hkdf(_hkdf(dek, bundle, b"strongroom/v1/payload"), salt, associated)
    pieces = [plain[: segment - 56]]
    pieces += [plain[x : x + segment - 16] for x in range(segment - 56, len(plain), segment - 16)]
    if empty_last:
        pieces.append(b"")
    cipher = AESGCM(file_key)
    sealed_pieces = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        nonce = prefix + struct.pack(">IB", number, last)
        sealed_pieces.append(cipher.encrypt(nonce, piece, None))
    sealed_pieces[0] = bytes([40]) + salt + prefix + sealed_pieces[0]
    return sealed_pieces


def sealed(plain: bytes, **members: Any) -> bytes:
    """A valid sealed file, or one whose header says ``members``."""
    said = header(**members)
    path = said["path"] if isinstance(said.get("path"), str) else "model.bin"
    segment = said["segment"] if type(said.get("segment")) is int else SEGMENT
    payload = segments(plain, path, segment=max(SEGMENT, segment))
    return area(said) + b"".join(payload)
