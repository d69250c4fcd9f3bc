"""X.509 for evidence: parsing, signatures, validity, chains to a pinned root, revocation lists.

Vendors' certificates are not those of the web: no host names, no path building, one order, RSA-PSS,
serial numbers of zero. What a rule refuses it refuses with words; nothing here returns False.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from strongroom.attest.certificate_parsing import (
    UNREADABLE,
    extensions_of,
    is_crl,
    load_certificate,
    load_certificates,
    load_crl,
    name_of,
    quiet,
)
from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.errors import NotAuthentic

__all__ = [
    "UNREADABLE",
    "check_authority",
    "check_chain",
    "check_critical",
    "check_crl",
    "check_not_revoked",
    "check_signed_by",
    "check_validity",
    "extensions_of",
    "is_crl",
    "load_certificate",
    "load_certificates",
    "load_crl",
    "name_of",
]

_HASHES: Final = frozenset({"sha256", "sha384", "sha512"})
_MIN_BITS: Final = {True: 2048, False: 256}
"""Of a key, by whether it is one of RSA."""
_KEPT: Final = 256
"""Signatures of certificates that are known to be right; a certificate has 1 to 2 KB."""

_CHECKED: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
"""Critical extensions that :func:`check_chain` takes into account; any other one refuses."""


def check_validity(certificate: x509.Certificate, now: datetime) -> datetime:
    """Until when it holds, both ends included.

    Raises:
        NotAuthentic: ``now`` is before or after.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        when = f"holds from {begin:%Y-%m-%d %H:%M}" if now < begin else f"ended {end:%Y-%m-%d %H:%M}"
        raise NotAuthentic(f"The certificate {name_of(certificate)} is not valid now: it {when} UTC.")
    return end


def check_signed_by(
    signed: x509.Certificate | x509.CertificateRevocationList, by: x509.Certificate
) -> None:
    """``signed`` names ``by`` as its issuer, and has its signature: RSA-PSS, RSA PKCS #1, ECDSA.

    Says nothing of whether ``by`` may sign it: see :func:`check_authority`.

    Raises:
        NotAuthentic: another name, a wrong signature, a weak hash or key.
    """
    what = "revocation list"
    if isinstance(signed, x509.Certificate):
        what = f"certificate {name_of(signed)}"
    try:
        digest, key = signed.signature_hash_algorithm, by.public_key()
        if digest is None or digest.name not in _HASHES:
            raise NotAuthentic(f"The {what} is signed with a hash that is not accepted.")
        if (
            not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
            or key.key_size < _MIN_BITS[isinstance(key, rsa.RSAPublicKey)]
        ):
            raise NotAuthentic(f"The {what} is signed with a key that is not accepted.")
        if signed.issuer != by.subject:
            raise NotAuthentic(f"The {what} was not issued by {name_of(by)}.")
        if isinstance(signed, x509.Certificate):
            _check_signature(signed, by)
        elif not signed.is_signature_valid(key):
            raise InvalidSignature
    except InvalidSignature:
        raise NotAuthentic(f"The {what} does not have the signature of {name_of(by)}.") from None
    except UNREADABLE as error:
        raise NotAuthentic(f"The {what} cannot be checked: {str(error)[:200]}.") from None


@lru_cache(_KEPT)
def _check_signature(signed: x509.Certificate, by: x509.Certificate) -> None:
    # Vendors' chains are the same for days, and their signatures most of the work: of a document of a
    # Nitro enclave, 3.2 of 4.1 ms. Failures raise, and are not kept.
    signed.verify_directly_issued_by(by)


def check_authority(certificate: x509.Certificate, below: int) -> None:
    """It may issue certificates, with ``below`` further authorities between it and the last one.

    Raises:
        NotAuthentic: it is no authority, may not sign certificates, or not that far down.
    """
    name = name_of(certificate)
    try:
        basic = extensions_of(certificate).get_extension_for_class(x509.BasicConstraints).value
        usage = extensions_of(certificate).get_extension_for_class(x509.KeyUsage).value
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise NotAuthentic(f"The certificate {name} is no authority.") from None
    if not basic.ca or not usage.key_cert_sign:
        raise NotAuthentic(f"The certificate {name} may not issue certificates.")
    if basic.path_length is not None and basic.path_length < below:
        raise NotAuthentic(f"The certificate {name} allows no chain that is this long.")


def check_critical(certificate: x509.Certificate, known: frozenset[x509.ObjectIdentifier]) -> None:
    """Nothing in it is critical and not known.

    Raises:
        NotAuthentic: something is, or its extensions cannot be read.
    """
    try:
        unknown = [
            one.oid for one in extensions_of(certificate) if one.critical and one.oid not in known
        ]
    except UNREADABLE as error:
        raise NotAuthentic(
            f"The extensions of {name_of(certificate)} cannot be read: {str(error)[:200]}."
        ) from None
    if unknown:
        raise NotAuthentic(
            f"The certificate {name_of(certificate)} has a critical extension that is not known,"
            f" {unknown[0].dotted_string}."
        )


def check_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, now: datetime) -> datetime:
    """Until when a revocation list of ``issuer`` holds.

    Raises:
        NotAuthentic: it is somebody else's, from the future, expired, or has no end.
    """
    check_signed_by(crl, issuer)
    name, end = name_of(issuer), crl.next_update_utc
    if end is None:
        raise NotAuthentic(f"The revocation list of {name} does not say until when it holds.")
    begin = crl.last_update_utc
    if not begin <= now <= end:
        when = f"holds from {begin:%Y-%m-%d %H:%M}" if now < begin else f"ended {end:%Y-%m-%d %H:%M}"
        raise NotAuthentic(f"The revocation list of {name} is not valid now: it {when} UTC.")
    try:
        usage = extensions_of(issuer).get_extension_for_class(x509.KeyUsage).value
    except (*UNREADABLE, x509.ExtensionNotFound):
        usage = None
    if usage is None or not usage.crl_sign:
        raise NotAuthentic(f"The certificate {name} may not issue revocation lists.")
    if not _covers_everything(crl):
        raise NotAuthentic(f"The revocation list of {name} does not cover everything.")
    return end


def _covers_everything(crl: x509.CertificateRevocationList) -> bool:
    """Neither a list of changes to another one, nor one for some reasons, for users or for others."""
    try:
        for extension in extensions_of(crl):
            point = extension.value
            if isinstance(point, x509.IssuingDistributionPoint):
                partly = point.only_some_reasons, point.only_contains_user_certs, point.indirect_crl
                if any(partly) or point.only_contains_attribute_certs:
                    return False
            elif extension.critical:
                return False
    except UNREADABLE:
        return False
    return True


def check_not_revoked(certificate: x509.Certificate, crl: x509.CertificateRevocationList) -> None:
    """The list, of the certificate's issuer and checked before, does not name it.

    Raises:
        NotAuthentic: it does.
    """
    with quiet():
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if entry is not None:
        raise NotAuthentic(f"The certificate {name_of(certificate)} has been revoked.")


def check_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    root: x509.Certificate,
    now: datetime,
    crls: Sequence[x509.CertificateRevocationList] = (),
    *,
    known: frozenset[x509.ObjectIdentifier] = frozenset(),
) -> datetime:
    """A chain to ``root``, which is trusted as it stands; until when all of it holds.

    Args:
        leaf: the end of the chain; an authority or not.
        intermediates: in order, from the issuer of ``leaf`` to what ``root`` has issued; perhaps none.
        root: pinned. Its own signature proves nothing and is not looked at.
        now: the moment at which everything must be valid.
        crls: each is of an authority of this chain, and holds now; authorities without one are not
            checked for revocation.
        known: critical extensions of ``leaf`` that the caller looks at.

    Raises:
        NotAuthentic: a name, signature, date, constraint, critical extension or revocation list is
            against it.
        MalformedEvidence: a certificate cannot be read.
    """
    if len(intermediates) > MAX_CERTIFICATES:
        raise NotAuthentic(f"A chain has more than {MAX_CERTIFICATES} certificates.")
    chain = [leaf, *intermediates, root]
    ends = [check_validity(certificate, now) for certificate in chain]
    check_critical(leaf, _CHECKED | known)
    for below, (signed, by) in enumerate(pairwise(chain)):
        check_critical(by, _CHECKED)
        check_authority(by, below)
        check_signed_by(signed, by)
    for crl in crls:
        index = next((i for i, by in enumerate(chain[1:]) if by.subject == crl.issuer), None)
        if index is None:
            raise NotAuthentic("A revocation list is of an authority that is not in the chain.")
        ends.append(check_crl(crl, chain[index + 1], now))
        check_not_revoked(chain[index], crl)
    return min(ends)
