"""A client of Gramine's secret provisioning that needs no enclave: certificates of RA-TLS, and the protocol.

Every part can be made wrongly. The quotes are those of :mod:`.intel`, under a root for tests: a server that
does not believe that root gives nothing to what is made here.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from strongroom.testing.intel import IntelPki

__all__ = [
    "REQUEST",
    "RESPONSE",
    "GramineClient",
    "certificate",
    "claims_about",
    "dice_evidence",
    "public_der",
]

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extension = tuple[bytes, bytes]
"""The contents of its identifier in DER, and its value."""

REQUEST: Final = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
RESPONSE: Final = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"

LEGACY: Final = bytes.fromhex("06092a864886f84d8a3906")
DICE: Final = bytes.fromhex("678105050409")
_BASIC_CONSTRAINTS: Final = (bytes.fromhex("551d13"), bytes.fromhex("3000"))
_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_RSA_SHA256: Final = bytes.fromhex("300d06092a864886f70d01010b0500")
_NAME: Final = x509.Name(
    [
        x509.NameAttribute(NameOID.COMMON_NAME, "RATLS"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "GramineDevelopers"),
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
    ]
)


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def public_der(key: Key) -> bytes:
    """The public key as a certificate has it, of which Gramine takes the hash."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate(
    key: Key,
    extensions: Sequence[Extension],
    *,
    ends: str = "20301231235959",
    subject: Key | None = None,
) -> bytes:
    """A self-signed certificate as Gramine makes it, DER; a library would refuse some extensions.

    Args:
        key: that signs.
        extensions: in this order, also twice.
        ends: when, as ``YYYYMMDDhhmmss``.
        subject: whose key is in it; that of ``key`` if None.
    """
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    algorithm = _RSA_SHA256 if is_rsa else _ECDSA_SHA256
    name = _NAME.public_bytes()
    listed = [
        _der(0x30, _der(0x06, oid), _der(0x04, value))
        for oid, value in (_BASIC_CONSTRAINTS, *extensions)
    ]
    tbs = _der(
        0x30,
        bytes.fromhex("a003020102"),
        bytes.fromhex("020101"),
        algorithm,
        name,
        _der(0x30, *(_der(0x18, f"{one}Z".encode()) for one in ("20010101000000", ends))),
        name,
        public_der(subject or key),
        _der(0xA3, _der(0x30, *listed)),
    )
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return _der(0x30, tbs, algorithm, _der(0x03, b"\0", signature))


def _cbor(kind: int, number: int) -> bytes:
    for size, small in ((1, 24), (2, 25), (4, 26)):
        if number < 24:
            return bytes([kind << 5 | number])
        if number < 1 << (8 * size):
            return bytes([kind << 5 | small]) + number.to_bytes(size, "big")
    raise ValueError("the number is too large")


def _string(data: bytes | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return _cbor(3 if isinstance(data, str) else 2, len(raw)) + raw


def claims_about(public: bytes, *, algorithm: int = 1, more: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """The claims of DICE evidence about a key, in CBOR.

    Args:
        public: the key in DER.
        algorithm: of the hash: 1, 7 or 8.
        more: claims behind that of the key, with values in CBOR.
    """
    digest = {1: hashlib.sha256, 7: hashlib.sha384, 8: hashlib.sha512}[algorithm](public).digest()
    said = b"\x82" + _cbor(0, algorithm) + _string(digest)
    members = [("pubkey-hash", _string(said)), *more]
    return _cbor(5, len(members)) + b"".join(_string(name) + value for name, value in members)


def dice_evidence(quote: bytes, claims: bytes) -> bytes:
    """The value of the DICE extension."""
    return _cbor(6, 60000) + b"\x82" + _string(quote) + _string(claims)


def _unchanged(value: bytes) -> bytes:
    return value


@dataclass
class GramineClient:
    """An application of Gramine that asks for its secret.

    Attributes:
        pki: of the machine.
        parts: of its quotes, as for :meth:`.IntelPki.sgx_quote`.
        legacy: whether the certificate has the extension of before 1.8.
        dice: whether it has that of 1.8 and later.
        tls13: whether TLS 1.3 is offered, as from 1.8 on.
        key: of the certificate.
        change_dice: applied to the value of the DICE extension.
        change_legacy: applied to that of the other.
        ends: of the certificate.
        extra: more extensions.
    """

    pki: IntelPki
    parts: dict[str, Any] = field(default_factory=dict)
    legacy: bool = True
    dice: bool = True
    tls13: bool = True
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    change_dice: Callable[[bytes], bytes] = _unchanged
    change_legacy: Callable[[bytes], bytes] = _unchanged
    ends: str = "20301231235959"
    extra: Sequence[Extension] = ()

    def quote(self, report_data: bytes) -> bytes:
        """A quote of the enclave."""
        return self.pki.sgx_quote(report_data, **self.parts)

    def certificate(self) -> bytes:
        """Made anew, with its quotes."""
        public = public_der(self.key)
        extensions: list[Extension] = []
        if self.legacy:
            quote = self.quote(hashlib.sha256(public).digest())
            extensions.append((LEGACY, self.change_legacy(quote)))
        if self.dice:
            claims = claims_about(public)
            evidence = dice_evidence(self.quote(hashlib.sha256(claims).digest()), claims)
            extensions.append((DICE, self.change_dice(evidence)))
        return certificate(self.key, [*extensions, *self.extra], ends=self.ends)

    def context(self, ca: str, shown: bytes | None = None) -> ssl.SSLContext:
        """TLS as Gramine's library begins it.

        Args:
            ca: PEM, of the server's CA.
            shown: the certificate, DER; one of :meth:`certificate` if None, and none where it is empty.
        """
        context = ssl.create_default_context(cadata=ca)
        if not self.tls13:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        shown = self.certificate() if shown is None else shown
        if shown:
            private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
            try:
                os.write(descriptor, private + ssl.DER_cert_to_PEM_cert(shown).encode())
                context.load_cert_chain(f"/proc/self/fd/{descriptor}")
            finally:
                os.close(descriptor)
        return context

    def connect(
        self, port: int, ca: str, *, host: str = "localhost", shown: bytes | None = None
    ) -> ssl.SSLSocket:
        """A connection after its handshake.

        Raises:
            OSError: the server is away, or refuses.
        """
        context = self.context(ca, shown)
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return context.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise

    def ask(self, port: int, ca: str, **options: Any) -> bytes:
        """The secret, by all of the protocol; nothing where the server closes the connection.

        Raises:
            OSError: the server is away, or refuses in the handshake.
        """
        with closing(self.connect(port, ca, **options)) as connection:
            connection.sendall(REQUEST)
            head = exactly(connection, len(RESPONSE) + 4)
            if not head:
                return b""
            if not head.startswith(RESPONSE):
                raise OSError("the server speaks another protocol")
            return exactly(connection, int.from_bytes(head[len(RESPONSE) :], "big"))


def exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none where the connection ends before."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data
