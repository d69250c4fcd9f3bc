"""A CA of the server's own, and the certificates that it signs.

P-256 with SHA-256, which every TLS client takes; Ed25519 certificates are refused by browsers and by
the FIPS builds of OpenSSL.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom.errors import InvalidKey

__all__ = ["CA_DAYS", "CERTIFICATE_DAYS", "end_of", "hosts_of", "issue", "new_ca"]

CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 397
"""What browsers accept at most; a server reads a renewed certificate without a restart."""

_BACKDATED: Final = timedelta(hours=1)
"""Clocks of clients are not all right."""


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def new_ca(common_name: str, now: datetime) -> tuple[bytes, bytes]:
    """A self-signed CA that signs end certificates only: certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(common_name), _name(common_name), key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def issue(
    ca: bytes,
    ca_key: bytes,
    common_name: str,
    hosts: Sequence[str],
    now: datetime,
    *,
    days: int = CERTIFICATE_DAYS,
) -> tuple[bytes, bytes]:
    """A certificate and its new key, in PEM: for a server with ``hosts``, for a client without.

    Args:
        ca: certificate of the CA, PEM.
        ca_key: its key, PEM.
        common_name: of the subject; nobody believes it of a server.
        hosts: names and addresses by which clients reach the server.
        now: from when it is valid.
        days: for how long.

    Raises:
        InvalidKey: the CA's files are not what they should be.
    """
    try:
        authority = x509.load_pem_x509_certificate(ca)
        signer = load_pem_private_key(ca_key, None)
    except (ValueError, TypeError):
        raise InvalidKey("The CA's certificate or key cannot be read.") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise InvalidKey("The CA's key is not an elliptic-curve key.")
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(common_name), authority.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if hosts:
        names = [_alternative_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def _load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise InvalidKey("The certificate cannot be read.") from None


def end_of(certificate: bytes) -> datetime:
    """When a certificate, PEM, ends.

    Raises:
        InvalidKey: it is none.
    """
    return _load(certificate).not_valid_after_utc


def hosts_of(certificate: bytes) -> list[str]:
    """The names and addresses in a server's certificate, PEM.

    Raises:
        InvalidKey: it is none, or has none.
    """
    try:
        names = _load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise InvalidKey("The certificate names no server.") from None
    return [str(name.value) for name in names.value]
