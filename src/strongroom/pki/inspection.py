"""What a certificate says, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from strongroom.errors import InvalidKey
from strongroom.pki.certificates import CERTIFICATE_DAYS

__all__ = ["Inspected", "inspect_certificates"]

_OTHER_PEM: Final = {
    b"PRIVATE KEY-----": "This is a private key.",
    b"PUBLIC KEY-----": "This is a public key.",
    b"CERTIFICATE REQUEST-----": "This is a request for a certificate, which no CA has signed yet.",
    b"X509 CRL-----": "This is a revocation list.",
}
"""By the end of the first line, for people who took the wrong file."""

_SOON: Final = timedelta(days=30)
_HINT: Final = "Certificates are PEM, from -----BEGIN CERTIFICATE----- on, or DER."
_MIN_RSA: Final = 2048
_MIN_CURVE: Final = 256
_MIN_SERIAL: Final = 32
"""Bits. The CA/Browser Forum asks for 64 random ones, which are as small as this once in four thousand
million times."""
_WEAK_HASHES: Final = (hashes.MD5, hashes.SHA1)
_PURPOSES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "server",
    ExtendedKeyUsageOID.CLIENT_AUTH: "client",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "any",
}
_USAGES: Final = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign"),
)


@dataclass(frozen=True)
class Inspected:
    """One certificate.

    Attributes:
        names: subject alternative names, as ``DNS:…``, ``IP:…``, ``URI:…``.
        usages: of the key, then its purposes.
        permitted: what a CA may sign for; empty: all.
        fingerprint: SHA-256 of the certificate, hexadecimal.
        problems: sentences; empty if nothing is wrong.
    """

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    ca: bool
    names: tuple[str, ...]
    usages: tuple[str, ...]
    permitted: tuple[str, ...]
    key: str
    signature: str
    fingerprint: str
    problems: tuple[str, ...]


def inspect_certificates(data: bytes, now: datetime) -> list[Inspected]:
    """The certificates in a file, PEM (of which each should be signed by the next) or DER.

    Raises:
        InvalidKey: there is none that can be read.
    """
    try:
        if b"-----BEGIN" in data:
            chain = x509.load_pem_x509_certificates(data)
        else:
            chain = [x509.load_der_x509_certificate(data)]
        found = [_inspect(one, now) for one in chain]
    except (ValueError, x509.DuplicateExtension):
        raise InvalidKey(_instead(data), hint=_HINT) from None
    breaks = [_link_problem(*pair) for pair in pairwise(chain)]
    return [
        one if problem is None else _with(one, problem)
        for one, problem in zip(found, [*breaks, None], strict=True)
    ]


def _instead(data: bytes) -> str:
    """What it is that is no certificate."""
    first = data.partition(b"-----BEGIN")[2].partition(b"\n")[0].strip()
    for end, sentence in _OTHER_PEM.items():
        if first.endswith(end):
            return sentence
    return "There is no certificate in it that can be read."


def _with(one: Inspected, problem: str) -> Inspected:
    return Inspected(**{**one.__dict__, "problems": (*one.problems, problem)})


def _link_problem(one: x509.Certificate, above: x509.Certificate) -> str | None:
    try:
        one.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature):
        return "It is not signed by the one that follows."
    return None


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _general(name: x509.GeneralName) -> str:
    kinds = {
        x509.DNSName: "DNS",
        x509.IPAddress: "IP",
        x509.UniformResourceIdentifier: "URI",
        x509.RFC822Name: "email",
    }
    return f"{kinds.get(type(name), type(name).__name__)}:{name.value}"


def _key(certificate: x509.Certificate) -> tuple[str, str | None]:
    """The kind of the key, and what is wrong with it."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}", "The RSA key is too short." if key.key_size < _MIN_RSA else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        weak = "The curve is too small." if key.curve.key_size < _MIN_CURVE else None
        return f"ECDSA {key.curve.name}", weak
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return type(key).__name__.removesuffix("PublicKey"), None
    return type(key).__name__.removesuffix("PublicKey"), "TLS does not use such keys."


def _time_problems(certificate: x509.Certificate, now: datetime) -> list[str]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return [f"It expired on {end:%Y-%m-%d}."]
    if now < begin:
        return [f"It is not valid before {begin:%Y-%m-%d}."]
    if end - now < _SOON:
        return [f"It ends in {(end - now).days} days."]
    return []


def _role_problems(
    certificate: x509.Certificate, *, ca: bool, signs: bool, purposes: Sequence[str], named: bool
) -> list[str]:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    problems = []
    if ca and not signs:
        problems.append("A CA whose key usage does not allow it to sign certificates.")
    if ca and {"server", "client"} & set(purposes):
        problems.append("A CA that is meant for a server or client too: it could sign certificates.")
    if ca:
        return problems
    if signs:
        problems.append("Its key usage allows it to sign certificates, and it is no CA.")
    if not purposes:
        problems.append("It does not say whether it is for a server or a client.")
    if not purposes or {"server", "any"} & set(purposes):
        if not named:
            problems.append(
                "It has no subject alternative name: clients believe none other of a server."
            )
        if lifetime > timedelta(days=CERTIFICATE_DAYS + 1):
            problems.append(f"It is valid for more than {CERTIFICATE_DAYS + 1} days.")
    return problems


def _inspect(certificate: x509.Certificate, now: datetime) -> Inspected:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    purposes = [
        _PURPOSES.get(one, one.dotted_string)
        for one in _extension(certificate, x509.ExtendedKeyUsage) or ()
    ]
    names = tuple(map(_general, _extension(certificate, x509.SubjectAlternativeName) or ()))
    permitted = _extension(certificate, x509.NameConstraints)
    ca = constraints is not None and constraints.ca
    key, weak_key = _key(certificate)
    digest = certificate.signature_hash_algorithm
    problems = _time_problems(certificate, now)
    problems += _role_problems(
        certificate,
        ca=ca,
        signs=usage.key_cert_sign if usage is not None else ca,
        purposes=purposes,
        named=any(name.startswith(("DNS:", "IP:")) for name in names),
    )
    if weak_key:
        problems.append(weak_key)
    if isinstance(digest, _WEAK_HASHES):
        problems.append(f"It is signed with {digest.name}.")
    if certificate.serial_number.bit_length() < _MIN_SERIAL:
        problems.append("Its serial number is not random: others may have the same.")
    return Inspected(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        ca=ca,
        names=names,
        usages=(*(name for name in _USAGES if usage is not None and getattr(usage, name)), *purposes),
        permitted=tuple(map(_general, (permitted and permitted.permitted_subtrees) or ())),
        key=key,
        signature=certificate.signature_algorithm_oid._name,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        problems=tuple(problems),
    )
