"""Certificates of endorsement keys and attestation keys, up to a CA that the owner believes.

TCG EK Credential Profile 2.5, section 3.2; there is no revocation in it, so that a maker's CA is believed
until its end. Certificates of clouds' attestation keys (Azure, GCP) have the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from strongroom.attest.certificates import check_chain, check_signed_by, load_certificates
from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.attest.tpm_keys import AttestationKey
from strongroom.attest.verify import Context
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic

__all__ = ["AK_USE", "EK_USE", "Chain", "certificate_of", "chain_of", "parse_certificates"]

EK_USE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate"""

AK_USE: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate"""

_CHECKED_HERE: Final = frozenset(
    {ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME}
)
"""Critical in certificates of EKs; the alternative name is the TPM's model and says nothing to go by."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate that leads to a root; ``not_after`` is the first end among all of them."""

    leaf: x509.Certificate
    not_after: datetime


def parse_certificates(endorsements: Sequence[bytes]) -> list[x509.Certificate]:
    """The certificates among the endorsements, each in DER, or several in PEM.

    Raises:
        MalformedEvidence: something else is among them, or too many.
    """
    found: list[x509.Certificate] = []
    for data in endorsements:
        found += load_certificates(data)
        if len(found) > MAX_CERTIFICATES:
            raise MalformedEvidence(f"There are more than {MAX_CERTIFICATES} certificates of the TPM.")
    return found


def certificate_of(
    key: AttestationKey, certificates: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """The certificate of this key, if it is there."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return next((one for one in certificates if _spki(one) == spki), None)


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def chain_of(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    context: Context,
    use: x509.ObjectIdentifier,
) -> Chain | None:
    """The way from ``leaf`` to one of ``context.roots.tpm``, or None where there is none.

    Args:
        leaf: certificate of a TPM's key.
        others: that may be on the way; those that are not are not looked at.
        context: moment and roots.
        use: :data:`EK_USE` or :data:`AK_USE`.

    Raises:
        NotAuthentic: there is one, and a certificate on it does not hold now, may not sign others, or
            is for another use.
    """
    anchors = [anchor for pem in context.roots.tpm for anchor in load_certificates(pem)]
    path = _path(leaf, anchors, [one for one in others if one != leaf])
    if path is None:
        return None
    _, *between, anchor = path
    not_after = check_chain(leaf, between, anchor, context.now, known=_CHECKED_HERE)
    _check_use(leaf, use)
    return Chain(leaf, not_after)


def _path(
    leaf: x509.Certificate, anchors: Sequence[x509.Certificate], others: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """Depth first, and no certificate twice: certificates that sign each other cost no more than others."""
    left = list(others)
    paths = [[leaf]]
    while paths:
        path = paths.pop()
        for anchor in anchors:
            if _issued(path[-1], anchor):
                return [*path, anchor]
        for other in [one for one in left if _issued(path[-1], one)]:
            left.remove(other)
            paths.append([*path, other])
    return None


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        check_signed_by(certificate, issuer)
    except EvidenceError:
        return False
    return True


def _check_use(leaf: x509.Certificate, use: x509.ObjectIdentifier) -> None:
    """An AK's certificate need not name its use; where it does not, it must be for signatures."""
    extensions = {one.oid: one.value for one in leaf.extensions}
    basic = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    if isinstance(basic, x509.BasicConstraints) and basic.ca:
        raise NotAuthentic("The certificate of the TPM's key is that of a CA.")
    uses = extensions.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if isinstance(uses, x509.ExtendedKeyUsage):
        fits = use in uses
    else:
        usage = extensions.get(ExtensionOID.KEY_USAGE)
        fits = use == AK_USE and isinstance(usage, x509.KeyUsage) and usage.digital_signature
    if not fits:
        raise NotAuthentic("The certificate of the TPM's key is for another use.")
