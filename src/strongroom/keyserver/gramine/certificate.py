"""RA-TLS: from the certificate of a client of Gramine to evidence, and to what that must be bound to.

The certificate is self-signed, by a key that was made in the enclave for it. Its quote stands in one of two
extensions, or, since Gramine 1.8, in both: that of TCG DICE then counts alone, whatever is wrong with it.
That the client has the key is for TLS to prove; here nothing is verified but what ties key and quote.

Stricter than Gramine's own verifier, which finds extensions by a search for bytes, and takes DICE evidence
without a hash of the key, and report data with anything in the upper half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.certificate_parsing import UNREADABLE, extensions_of, load_certificate
from strongroom.attest.evidence import Evidence
from strongroom.errors import MalformedEvidence
from strongroom.keyserver.gramine.cbor import Tagged, decode

__all__ = ["DICE", "LEGACY", "MAX_CERTIFICATE", "RaTls", "read_certificate"]

LEGACY: Final = x509.ObjectIdentifier("0.6.9.42.840.113741.1337.6")
"""As a parser reads what Gramine writes: it has put a tag and a length into the identifier itself."""

DICE: Final = x509.ObjectIdentifier("2.23.133.5.4.9")

MAX_CERTIFICATE: Final = 16 << 10
"""Bytes: Gramine's own buffer. Real ones have some 6 KB with one quote and 10 KB with two."""

_MAX_QUOTE: Final = 8 << 10
"""Bytes, as in Gramine; real ones have 4.7 KB."""

_EVIDENCE_TAG: Final = 60000
_HASHES: Final[Mapping[int, Callable[[bytes], Any]]] = {
    1: hashlib.sha256,
    7: hashlib.sha384,
    8: hashlib.sha512,
}
"""By their numbers among the named information hash algorithms of IANA; Gramine writes the first."""


@dataclass(frozen=True, slots=True)
class RaTls:
    """What a certificate brings.

    Attributes:
        evidence: the quote, not verified.
        bound: 64 bytes that the quote must have as its report data.
    """

    evidence: Evidence
    bound: bytes


def read_certificate(der: bytes) -> RaTls:
    """The evidence in the certificate that a client has proved to have the key of.

    Raises:
        MalformedEvidence: there is none, or it is not in the form of Gramine, or not about this key.
    """
    if len(der) > MAX_CERTIFICATE:
        raise MalformedEvidence(f"The certificate has more than {MAX_CERTIFICATE} bytes.")
    certificate = load_certificate(der)
    try:
        key, extensions = certificate.public_key(), extensions_of(certificate)
    except UNREADABLE:
        raise MalformedEvidence("The certificate cannot be read.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP384R1 | ec.SECP256R1
    ):
        raise MalformedEvidence("The key of the certificate is none of P-384 or P-256.")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = {
        one.oid: one.value.value
        for one in extensions
        if isinstance(one.value, x509.UnrecognizedExtension)
    }
    if DICE in found:
        quote, bound = _dice(found[DICE], spki)
    elif LEGACY in found:
        quote, bound = found[LEGACY], hashlib.sha256(spki).digest()
    else:
        raise MalformedEvidence("The certificate has no quote.")
    if len(quote) > _MAX_QUOTE:
        raise MalformedEvidence(f"The quote has more than {_MAX_QUOTE} bytes.")
    return RaTls(Evidence("sgx", quote), bound + bytes(32))


def _dice(value: bytes, spki: bytes) -> tuple[bytes, bytes]:
    try:
        tagged = decode(value)
        if not isinstance(tagged, Tagged) or tagged.tag != _EVIDENCE_TAG:
            raise ValueError("it has another tag")
        quote, claims = _pair(tagged.value, bytes, bytes)
        members = decode(claims)
        said = members.get("pubkey-hash") if isinstance(members, dict) else None
        if not isinstance(said, bytes):
            raise ValueError("it has no hash of the key")
        number, digest = _pair(decode(said), int, bytes)
        if number not in _HASHES or digest != _HASHES[number](spki).digest():
            raise ValueError("it is about another key")
    except (ValueError, UnicodeDecodeError) as error:
        reason = "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise MalformedEvidence(f"The DICE evidence is not valid: {reason}.") from None
    return quote, hashlib.sha256(claims).digest()


def _pair(value: object, first: type, second: type) -> tuple[Any, Any]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not isinstance(value[0], first)
        or not isinstance(value[1], second)
    ):
        raise ValueError("it is not the two things that it should be")
    return value[0], value[1]
