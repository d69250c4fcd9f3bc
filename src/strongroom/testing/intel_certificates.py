"""X.509 as Intel's PKI for SGX and TDX has it: a root, CAs, PCKs with the SGX extension, CRLs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

__all__ = ["certificate", "crl", "name", "pem", "sgx_extension"]

SGX: Final = "1.2.840.113741.1.13.1"


def name(common: str) -> x509.Name:
    """A distinguished name that nobody takes for Intel's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TEST ROOT, NOT FOR PRODUCTION"),
        ]
    )


def pem(*certificates: x509.Certificate) -> str:
    """A chain."""
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def certificate(
    common: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
    *,
    ca: bool,
    extension: bytes | None = None,
) -> x509.Certificate:
    """A certificate; self-signed where ``issuer`` is None; with the SGX extension where there is one."""
    signed_by = issuer_key.public_key()
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name(common) if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(usage, True)
        .add_extension(x509.BasicConstraints(ca, None), True)
    )
    if extension is not None:
        sgx = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX), extension)
        builder = builder.add_extension(sgx, False)
    return builder.sign(issuer_key, hashes.SHA256())


def crl(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
    revoked: Iterable[x509.Certificate] = (),
    number: int | None = 1,
) -> bytes:
    """A revocation list, DER; with None, one that has no number."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(begin)
        .next_update(end)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), False)
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.serial_number)
            .revocation_date(begin - timedelta(minutes=1))
            .build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def sgx_extension(*, ppid: bytes, piid: bytes, fmspc: bytes, svn: int, pce_svn: int) -> bytes:
    """What Intel writes of a platform into its PCK certificate, DER.

    Args:
        ppid: 16 bytes.
        piid: 16 bytes.
        fmspc: 6 bytes: model of the machine.
        svn: of each of the 16 components of the TCB.
        pce_svn: of the provisioning certification enclave.
    """
    components = [_entry(f"{SGX}.2.{index}", _integer(svn)) for index in range(1, 17)]
    components += [
        _entry(f"{SGX}.2.17", _integer(pce_svn)),
        _entry(f"{SGX}.2.18", _der(0x04, bytes([svn] * 16))),
    ]
    configuration = [_entry(f"{SGX}.7.{index}", _der(0x01, b"\xff")) for index in (1, 2, 3)]
    entries = (
        _entry(f"{SGX}.1", _der(0x04, ppid)),
        _entry(f"{SGX}.2", _der(0x30, b"".join(components))),
        _entry(f"{SGX}.3", _der(0x04, bytes(2))),
        _entry(f"{SGX}.4", _der(0x04, fmspc)),
        _entry(f"{SGX}.5", _der(0x0A, b"\x01")),
        _entry(f"{SGX}.6", _der(0x04, piid)),
        _entry(f"{SGX}.7", _der(0x30, b"".join(configuration))),
    )
    return _der(0x30, b"".join(entries))


def _entry(oid: str, value: bytes) -> bytes:
    first, second, *rest = map(int, oid.split("."))
    encoded = bytes([first * 40 + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _der(0x30, _der(0x06, encoded) + value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
