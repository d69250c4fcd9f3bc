"""A CA of one's own, and the certificates that it signs.

P-256 with SHA-256, which every TLS client takes; Ed25519 certificates are refused by browsers and by
the FIPS builds of OpenSSL. Serial numbers are 159 random bits.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strongroom.errors import InvalidKey, UsageError

__all__ = ["CA_DAYS", "CERTIFICATE_DAYS", "end_of", "hosts_of", "issue", "new_ca"]

CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 397
"""What browsers accept at most; a server reads a renewed certificate without a restart."""

_BACKDATED: Final = timedelta(hours=1)
"""Clocks of clients are not all right."""
_MAX_NAME: Final = 64
"""Characters of a common name: ub-common-name of RFC 5280."""
_EVERY_ADDRESS: Final[tuple[x509.GeneralName, ...]] = tuple(
    x509.IPAddress(ipaddress.ip_network(network)) for network in ("0.0.0.0/0", "::/0")
)
_EVERY_DNS_NAME: Final[tuple[x509.GeneralName, ...]] = (x509.DNSName(""),)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_MAX_NAME])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
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


def _constraints(permitted: Sequence[str]) -> x509.NameConstraints:
    """Only these: a kind of name that is not among them is not allowed at all."""
    addresses: list[x509.GeneralName] = []
    domains: list[x509.GeneralName] = []
    for one in permitted:
        try:
            addresses.append(x509.IPAddress(ipaddress.ip_network(one)))
        except ValueError:
            domains.append(_dns_name(one))
    excluded = [] if addresses else list(_EVERY_ADDRESS)
    excluded += [] if domains else list(_EVERY_DNS_NAME)
    return x509.NameConstraints([*domains, *addresses], excluded or None)


def new_ca(
    common_name: str, now: datetime, *, days: int = CA_DAYS, permitted: Sequence[str] = ()
) -> tuple[bytes, bytes]:
    """A self-signed CA that signs end certificates only: certificate and key in PEM.

    Args:
        common_name: its subject; what is longer than 64 characters is cut.
        now: from when it is valid.
        days: for how long.
        permitted: the domains, with what is below them, and networks that servers may be in; none
            allows all.

    Raises:
        UsageError: a name that cannot be one.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    builder = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
    )
    if permitted:
        builder = builder.add_extension(_constraints(permitted), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM), _key_pem(key)


def _dns_name(name: str) -> x509.DNSName:
    labels = name.removeprefix("*.").split(".")
    if not all(
        label and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    ):
        raise UsageError(f"{name} is neither a DNS name nor an address.")
    return x509.DNSName(name)


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return _dns_name(host)


def _authority(ca: bytes, ca_key: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        authority = x509.load_pem_x509_certificate(ca)
    except ValueError:
        raise InvalidKey("The CA's certificate cannot be read: it is not in PEM.") from None
    try:
        signer = load_pem_private_key(ca_key, None)
    except TypeError:
        raise InvalidKey(
            "The CA's key is under a passphrase, which nobody is asked for here."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidKey("The CA's key cannot be read: it is no private key in PEM.") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise InvalidKey("The CA's key is not an elliptic-curve key.")
    if signer.public_key() != authority.public_key():
        raise InvalidKey("The CA's key does not belong to its certificate.")
    return authority, signer


def _allowed(name: x509.GeneralName, constraints: x509.NameConstraints) -> bool:
    def within(subtree: x509.GeneralName) -> bool:
        if isinstance(name, x509.IPAddress) and isinstance(subtree, x509.IPAddress):
            address, network = name.value, subtree.value
            assert isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)
            return address in network
        if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
            host, domain = name.value.removeprefix("*.").lower(), subtree.value.lower()
            return not domain or host == domain or host.endswith("." + domain)
        return False

    same = [one for one in constraints.permitted_subtrees or () if type(one) is type(name)]
    return (not same or any(map(within, same))) and not any(
        map(within, constraints.excluded_subtrees or ())
    )


def _check_names(authority: x509.Certificate, names: Sequence[x509.GeneralName]) -> None:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return
    for name in names:
        if not _allowed(name, constraints):
            raise UsageError(
                f"The CA may not sign for {name.value}.", hint="See: strongroom pki inspect"
            )


def issue(
    ca: bytes,
    ca_key: bytes,
    common_name: str,
    hosts: Sequence[str],
    now: datetime,
    *,
    days: int = CERTIFICATE_DAYS,
    uris: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """A certificate and its new key, in PEM: for a server with ``hosts``, for a client without.

    It ends with the CA at the latest.

    Args:
        ca: certificate of the CA, PEM; of several the first.
        ca_key: its key, PEM.
        common_name: of the subject; nobody believes it of a server. What is longer than 64 characters is cut.
        hosts: names and addresses by which clients reach the server.
        now: from when it is valid.
        days: for how long.
        uris: more names, such as ``spiffe://example.org/loader``.

    Raises:
        InvalidKey: the CA's files are not what they should be, or it has ended.
        UsageError: a name that cannot be one, or that the CA may not sign for.
    """
    authority, signer = _authority(ca, ca_key)
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    if end <= now:
        raise InvalidKey(f"The CA ended on {end:%Y-%m-%d}.")
    names = [_alternative_name(host) for host in dict.fromkeys(hosts)]
    try:
        names += [x509.UniformResourceIdentifier(uri) for uri in dict.fromkeys(uris)]
    except ValueError:
        raise UsageError("A URI in a certificate is ASCII.") from None
    _check_names(authority, names)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(common_name), authority.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names:
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
