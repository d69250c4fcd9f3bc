"""Certificates and revocation lists as AMD makes them, for a PKI under a test root."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from strongroom.attest.certificates import load_certificate

__all__ = ["authority", "certificate_table", "key_certificate", "revocation_list"]

_AMD: Final = "1.3.6.1.4.1.3704.1"
_LEVELS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_ENTRY: Final = struct.Struct("<16sII")
_GUIDS: Final = {
    "vcek": "63da758de6644564adc5f4b93be8accd",
    "vlek": "a8074bc2a25a483eaae639c045a0b8a1",
    "ask": "4ab7b379bbac4fe4a02f05aef327c782",
    "ark": "c0b406a4a803495297433fb6014cd0ae",
}
_HASH: Final = hashes.SHA384()
_PSS: Final = padding.PSS(padding.MGF1(_HASH), 48)
_SERIAL_ONE: Final = bytes.fromhex("a003020102020101")
"""Version 3, serial number 1, as every certificate with that number begins."""


def _name(common: str) -> x509.Name:
    organisation = "TEST ROOT, NOT FOR PRODUCTION"
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    common: str,
    issuer: x509.Certificate | None,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    begin: datetime,
    end: datetime,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(_name(common) if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def authority(
    common: str,
    key: rsa.RSAPrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: rsa.RSAPrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.Certificate:
    """An ARK, where ``issuer`` is None, or an ASK or ASVK; that one may not issue revocation lists."""
    root = issuer is None
    usage = x509.KeyUsage(False, False, False, False, False, True, root, False, False)
    return (
        _builder(common, issuer, key.public_key(), begin, end, x509.random_serial_number())
        .add_extension(x509.BasicConstraints(True, None if root else 0), True)
        .add_extension(usage, True)
        .sign(issuer_key, _HASH, rsa_padding=_PSS)
    )


def key_certificate(
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate,
    issuer_key: rsa.RSAPrivateKey,
    begin: datetime,
    end: datetime,
    *,
    product: str,
    levels: Mapping[str, int],
    hwid: bytes | None,
    serial: int,
    extensions: Mapping[str, bytes | None],
) -> x509.Certificate:
    """The certificate of a VCEK, or of a VLEK where ``hwid`` is None; ``extensions`` replace some."""
    builder = _builder("SEV-VLEK" if hwid is None else "SEV-VCEK", issuer, key, begin, end, serial or 1)
    values: dict[str, bytes | None] = {
        "1": _der(0x02, b"\0"),
        "2": _der(0x16, product.encode()),
        **{_LEVELS[name]: _der(0x02, _integer(level)) for name, level in levels.items()},
        **({"4": hwid} if hwid is not None else {"5": _der(0x16, b"CN=cc-test.example")}),
        **extensions,
    }
    for arc, value in values.items():
        if value is None:
            continue
        oid = x509.ObjectIdentifier(f"{_AMD}.{arc}")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), False)
    certificate = builder.sign(issuer_key, _HASH, rsa_padding=_PSS)
    return certificate if serial else _serial_zero(certificate, issuer_key)


def _serial_zero(certificate: x509.Certificate, issuer_key: rsa.RSAPrivateKey) -> x509.Certificate:
    """The same with the serial number 0, which the library makes for nobody, signed once more."""
    signed = certificate.tbs_certificate_bytes
    changed = signed.replace(_SERIAL_ONE, _SERIAL_ONE[:-1] + b"\0", 1)
    signature = issuer_key.sign(changed, _PSS, _HASH)
    der = certificate.public_bytes(Encoding.DER)
    return load_certificate(der.replace(signed, changed).replace(certificate.signature, signature))


def revocation_list(
    issuer: x509.Certificate,
    key: rsa.RSAPrivateKey,
    begin: datetime,
    end: datetime,
    revoked: Iterable[x509.Certificate],
    number: int = 1,
) -> bytes:
    """A revocation list in DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(begin)
        .next_update(end)
        .add_extension(x509.CRLNumber(number), False)
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.serial_number)
            .revocation_date(begin - timedelta(minutes=1))
            .build()
        )
    return builder.sign(key, _HASH, rsa_padding=_PSS).public_bytes(Encoding.DER)


def certificate_table(certificates: Mapping[str, x509.Certificate]) -> bytes:
    """The table of an extended report; names are those of the GUIDs."""
    at = _ENTRY.size * (len(certificates) + 1)
    entries, parts = b"", b""
    for name, certificate in certificates.items():
        der = certificate.public_bytes(Encoding.DER)
        entries += _ENTRY.pack(bytes.fromhex(_GUIDS[name]), at + len(parts), len(der))
        parts += der
    return entries + bytes(_ENTRY.size) + parts


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content
