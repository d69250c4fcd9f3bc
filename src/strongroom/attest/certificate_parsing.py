"""Certificates and revocation lists from bytes, PEM or DER; nothing is verified here."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.errors import MalformedEvidence

__all__ = ["is_crl", "load_certificate", "load_certificates", "load_crl", "serial_zero_allowed"]

_PEM: Final = b"-----BEGIN "
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_CRL: Final = b"-----BEGIN X509 CRL-----"
_MAX_CHAIN: Final = 64 << 10
"""Bytes; a certificate of AMD has 2 KB in PEM. What is parsed is kept, hence the limit."""

_FILTERS: Final = threading.Lock()


@contextmanager
def serial_zero_allowed() -> Iterator[None]:
    """No warning in the block of the serial number 0, which all of AMD's keys have.

    The filters of warnings belong to the process, and not to a thread: hence the lock.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Parsed a serial number")
        yield


def is_crl(data: bytes) -> bool:
    """Whether it is a revocation list rather than certificates; of anything else, False."""
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
        with serial_zero_allowed():
            if data.lstrip().startswith(_PEM):
                return tuple(x509.load_pem_x509_certificates(data))
            return (x509.load_der_x509_certificate(data),)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedEvidence(f"This is not a certificate: {str(error)[:200]}.") from None


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
        MalformedEvidence: it is none.
    """
    data = bytes(data)
    try:
        if data.lstrip().startswith(_PEM):
            return x509.load_pem_x509_crl(data)
        return x509.load_der_x509_crl(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedEvidence(f"This is not a revocation list: {str(error)[:200]}.") from None
