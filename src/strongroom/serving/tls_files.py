"""Certificate, key and client CAs from their files, each of which may be sealed."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import InvalidKey, NoKey, NoMatchingRecipient, os_errors
from strongroom.format.header import MAGIC, Header
from strongroom.keys import Identity
from strongroom.model.reader import open_model
from strongroom.providers import sources
from strongroom.providers.keyserver.source import ALG, KeyOfHeader
from strongroom.serving.settings import Tls

__all__ = ["Material", "read", "stamp"]

_MAX_FILE: Final = 1 << 20
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Material:
    """What a handshake needs, in PEM with lines of 64.

    Attributes:
        certificate: with those above it.
        key: without a passphrase.
        client_ca: None asks no client for a certificate.
        valid: since when, and until when, the certificate is.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    valid: tuple[datetime, datetime]


def stamp(tls: Tls) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file is replaced.

    Raises:
        NotFound, StorageError: one cannot be looked at.
    """
    found = []
    for path in (tls.certificate, tls.key, tls.client_ca, tls.config):
        if path is not None:
            with os_errors(path):
                found.append(os.stat(path))
    return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)


def read(tls: Tls) -> Material:
    """Read the files. What was sealed is opened into memory, and comes to no disk.

    Raises:
        InvalidKey: they are not certificate and key, or do not belong together.
        StrongroomError: one cannot be read or opened.
    """
    if tls.config is not None:
        return _from_config(tls.config, _content(tls.config, tls))
    assert tls.certificate is not None
    assert tls.key is not None
    authorities = None if tls.client_ca is None else _content(tls.client_ca, tls)
    return _checked(
        _content(tls.certificate, tls),
        _content(tls.key, tls),
        authorities,
        f"{tls.certificate} and {tls.key}",
        tls.client_ca or "",
    )


def _content(path: str, tls: Tls) -> bytes:
    with os_errors(path), open(path, "rb") as file:
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise InvalidKey(f"{path} has more than {_MAX_FILE >> 20} MiB.")
    if not content.startswith(MAGIC):
        return content
    with open_model(path, lambda: _identities(tls.open_with)) as sealed:
        return sealed.read()


class _KeyServer:
    """The key server that the file names, where it names one."""

    def unwrap(self, header: Header) -> SecretBytes:
        if not any(one["alg"] == ALG for one in header.recipients):
            raise NoMatchingRecipient("It is in no key server.")
        return KeyOfHeader(NoKey("It is in no key server.")).unwrap(header)


def _identities(source: str | None) -> list[Identity]:
    found = sources.identities(source)
    # What is said to open models need not be what opens this.
    return found if source is None else [*found, _KeyServer()]


@cache
def _config_message() -> type[Any]:
    """``SSLConfig`` of TensorFlow Serving's ``ssl_config.proto``."""
    file = descriptor_pb2.FileDescriptorProto(name="ssl_config.proto", syntax="proto3")
    kind = file.message_type.add(name="SSLConfig")
    fields = (("server_key", 9), ("server_cert", 9), ("custom_ca", 9), ("client_verify", 8))
    for number, (name, type_) in enumerate(fields, 1):
        kind.field.add(name=name, number=number, type=type_, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName("SSLConfig"))
    return found


def _from_config(path: str, content: bytes) -> Material:
    said = _config_message()()
    try:
        text_format.Parse(content.decode(), said)
    except (text_format.ParseError, ValueError):
        said = None  # the error quotes the line, which may be the key
    if said is None:
        raise InvalidKey(f"{path} is no SSLConfig in protobuf's text format.")
    authorities = said.custom_ca.encode() if said.client_verify else None
    return _checked(said.server_cert.encode(), said.server_key.encode(), authorities, path, path)


def _folded(pem: bytes) -> bytes:
    """PEM in lines of 64: OpenSSL reads none that are longer, and ssl.cfg has all in one."""
    blocks = []
    for kind, content in _BLOCK.findall(pem):
        if b":" in content:  # headers of an encrypted key
            raise ValueError
        text = base64.b64encode(base64.b64decode(b"".join(content.split()), validate=True))
        lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (kind, lines, kind))
    return b"".join(blocks)


def _checked(certificate: bytes, key: bytes, authorities: bytes | None, pair: str, ca: str) -> Material:
    leaf = _certificate_of(certificate, key)
    if leaf is None:
        raise InvalidKey(
            f"{pair}: not a certificate and its key, in PEM and without a passphrase.",
            hint="A key with a passphrase is better sealed: strongroom seal.",
        )
    if authorities is not None and not _are_certificates(authorities):
        raise InvalidKey(f"{ca} holds no certificates in PEM of those who sign for clients.")
    return Material(
        _folded(certificate),
        _folded(key),
        None if authorities is None else _folded(authorities),
        (leaf.not_valid_before_utc, leaf.not_valid_after_utc),
    )


def _certificate_of(certificate: bytes, key: bytes) -> x509.Certificate | None:
    """The first one, unless the key is another's."""
    try:
        leaf = x509.load_pem_x509_certificates(_folded(certificate))[0]
        public = load_pem_private_key(_folded(key), None).public_key()
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        return leaf if leaf.public_key().public_bytes(*form) == public.public_bytes(*form) else None
    except (ValueError, TypeError, IndexError, UnsupportedAlgorithm):
        return None


def _are_certificates(pem: bytes) -> bool:
    try:
        return bool(x509.load_pem_x509_certificates(_folded(pem)))
    except ValueError:
        return False
