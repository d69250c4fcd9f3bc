"""Certificates and revocation lists from bytes, PEM or DER; nothing is verified here."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from strongroom.attest.limits import MAX_CERTIFICATES, MAX_ENDORSEMENTS
from strongroom.errors import MalformedEvidence

__all__ = [
    "UNREADABLE",
    "extensions_of",
    "is_crl",
    "load_certificate",
    "load_certificates",
    "load_crl",
    "name_of",
    "quiet",
]

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates of strangers: at loading, and for names and extensions later."""

_PEM: Final = b"-----BEGIN "
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_CRL: Final = b"-----BEGIN X509 CRL-----"
_MAX_CHAIN: Final = 64 << 10
"""Bytes; a certificate of AMD has 2 KB in PEM. What is parsed is kept, hence the limit."""

_FILTERS: Final = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings in the block: the library warns of serial numbers of 0, as all of AMD's keys have, and
    of odd names, which anybody can send.

    The filters of warnings belong to the process, and not to a thread: hence the lock.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_crl(data: bytes) -> bool:
    """Whether it is a revocation list rather than certificates; of anything else, False."""
    data = data.lstrip()
    if data.startswith(_PEM):
        return data.startswith(_CRL)
    try:
        load_crl(data)
    except MalformedEvidence:
        return False
    return True


@lru_cache(64)
def load_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM bundle, in its order, or the one in DER.

    Raises:
        MalformedEvidence: there is none, one cannot be parsed, or there are more than 8.
    """
    if len(data) > _MAX_CHAIN or data.count(_CERTIFICATE) > MAX_CERTIFICATES:
        raise MalformedEvidence(f"A chain has more than {MAX_CERTIFICATES} certificates.")
    data = bytes(data)
    try:
        with quiet():
            if data.lstrip().startswith(_PEM):
                found = x509.load_pem_x509_certificates(data)
            else:
                found = [x509.load_der_x509_certificate(data)]
            for certificate in found:
                _read(certificate)
            return tuple(found)
    except UNREADABLE as error:
        raise MalformedEvidence(f"This is not a certificate: {_why(error, data)}.") from None


def _read(certificate: x509.Certificate) -> None:
    """Have the library parse what it parses late, and keeps: here it warns nobody."""
    _ = certificate.subject, certificate.issuer
    # What is wrong with an extension is for whoever looks at it.
    with suppress(*UNREADABLE):
        _ = certificate.extensions


def name_of(certificate: x509.Certificate) -> str:
    """Its common name, or all of its subject, for messages.

    Raises:
        MalformedEvidence: the subject cannot be read, as of a certificate that was not loaded here.
    """
    try:
        subject = certificate.subject
    except UNREADABLE as error:
        raise MalformedEvidence(f"A certificate's name cannot be read: {_reason(error)}.") from None
    common = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(common[0].value)[:100] if common else subject.rfc4514_string()[:100] or "without a name"


def extensions_of(signed: x509.Certificate | x509.CertificateRevocationList) -> x509.Extensions:
    """Its extensions.

    Raises:
        UNREADABLE: one of them cannot be parsed. Those are parsed anew each time, and warn anew.
    """
    with quiet():
        return signed.extensions


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def _why(error: Exception, data: bytes) -> str:
    """The parser's reason; for what is in none of the encodings, a sentence that says so."""
    data = data.lstrip()
    if not data.startswith((_PEM, b"\x30")):
        return "it is neither PEM nor DER"
    return _reason(error)


def load_certificate(data: bytes) -> x509.Certificate:
    """The one certificate in PEM or DER.

    Raises:
        MalformedEvidence: it is none, or more than one.
    """
    found = load_certificates(data)
    if len(found) != 1:
        raise MalformedEvidence(f"One certificate is expected here, and there are {len(found)}.")
    return found[0]


@lru_cache(8)
def load_crl(data: bytes) -> x509.CertificateRevocationList:
    """A revocation list in PEM or DER.

    Raises:
        MalformedEvidence: it is none, or has more than 1 MiB.
    """
    if len(data) > MAX_ENDORSEMENTS:
        raise MalformedEvidence(f"A revocation list has more than {MAX_ENDORSEMENTS} bytes.")
    data = bytes(data)
    try:
        with quiet():
            pem = data.lstrip().startswith(_PEM)
            crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
            _ = crl.issuer
            return crl
    except UNREADABLE as error:
        raise MalformedEvidence(f"This is not a revocation list: {_why(error, data)}.") from None
