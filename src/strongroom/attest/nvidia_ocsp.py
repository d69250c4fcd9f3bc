"""Revocation of NVIDIA's certificates (RFC 6960), where a source answers for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from strongroom.attest.certificates import check_chain
from strongroom.attest.endorsements import EndorsementSource, Wanted
from strongroom.errors import MalformedEvidence, MissingEndorsement, NotAuthentic

__all__ = ["check_revocation", "ocsp_request", "verify_response"]

_UNUSABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    MalformedEvidence,
)
"""What a response that is none, or not signed as it should be, may raise."""


def ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """The request for one certificate, DER; NVIDIA's responder wants SHA-384 in the CertID."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384())
    return builder.build().public_bytes(Encoding.DER)


def check_revocation(
    chain: Sequence[x509.Certificate], source: EndorsementSource | None, now: datetime
) -> list[datetime]:
    """Ask for each certificate of a verified chain, but the root. What the source does not have is
    not held against the chain; what it has must be right and say "good".

    Returns:
        Until when each answer holds.

    Raises:
        NotAuthentic: one is revoked, or an answer is not authentic or not current.
        Unavailable: the source did not answer.
    """
    if source is None:
        return []
    until = []
    for certificate, issuer in pairwise(chain):
        wanted = Wanted("nvidia-ocsp", {"request": ocsp_request(certificate, issuer).hex()})
        try:
            response = source.fetch(wanted)
        except MissingEndorsement:
            continue
        until.append(verify_response(response, certificate, issuer, now))
    return until


def verify_response(
    data: bytes, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime
) -> datetime:
    """Verify an OCSP response, and return until when it holds.

    It is signed by the issuer itself, or by a responder that this issuer has appointed.

    Raises:
        NotAuthentic: it is not for this certificate, not authentic, not current, or not "good".
    """
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise ValueError
        signer = _signer(response, issuer, now)
        _check_signature(signer, response)
        asked = ocsp.load_der_ocsp_request(ocsp_request(certificate, issuer))
        same = (
            isinstance(response.hash_algorithm, hashes.SHA384)
            and response.issuer_name_hash == asked.issuer_name_hash
            and response.issuer_key_hash == asked.issuer_key_hash
            and response.serial_number == asked.serial_number
        )
        since, until, status = (
            response.this_update_utc,
            response.next_update_utc,
            response.certificate_status,
        )
    except _UNUSABLE:
        raise NotAuthentic("An answer about revocation is not authentic.") from None
    if not same:
        raise NotAuthentic("An answer about revocation is for another certificate.")
    if until is None or not since <= now < until:
        raise NotAuthentic("An answer about revocation is not current.")
    if status is not ocsp.OCSPCertStatus.GOOD:
        raise NotAuthentic("A certificate of the GPU or of its reference manifest is revoked.")
    return until


def _signer(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime) -> x509.Certificate:
    appointed = response.certificates
    if not appointed or appointed[0] == issuer:
        return issuer
    responder = appointed[0]
    check_chain(responder, [], issuer, now, known=frozenset({ExtensionOID.EXTENDED_KEY_USAGE}))
    usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        raise ValueError
    return responder


def _check_signature(signer: x509.Certificate, response: ocsp.OCSPResponse) -> None:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(algorithm, hashes.SHA384):
        raise ValueError
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
