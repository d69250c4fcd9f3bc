"""TPM 2.0: public keys and signatures.

TPM2B_PUBLIC and TPMT_SIGNATURE of the TPM 2.0 Library, part 2 (sections 11.3, 12.2). RSA from 2048 bits
on and the curves of NIST; RSASSA, RSAPSS and ECDSA with SHA-2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from strongroom.attest.tpm_structures import HASHES, StructureReader
from strongroom.errors import MalformedEvidence, NotAuthentic

__all__ = [
    "AttestationKey",
    "Public",
    "Signature",
    "fingerprint",
    "hash_algorithm",
    "parse_public",
    "parse_signature",
    "parse_spki",
]

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_RSA, _ECC, _NULL = 0x0001, 0x0023, 0x0010
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_SCHEMES: Final[Mapping[int, str]] = {_RSASSA: "rsassa", _RSAPSS: "rsapss", _ECDSA: "ecdsa"}
_CURVES: Final[Mapping[int, type[ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
_MIN_RSA, _MAX_RSA = 2048, 4096
_EXPONENT: Final = 65537

# TPMA_OBJECT
_FIXED_TPM, _FIXED_PARENT, _ORIGIN = 1 << 1, 1 << 4, 1 << 5
_RESTRICTED, _DECRYPT, _SIGN = 1 << 16, 1 << 17, 1 << 18
_OF_AN_AK: Final[Mapping[str, int]] = {
    "restricted": _RESTRICTED,
    "sign": _SIGN,
    "fixedTPM": _FIXED_TPM,
    "fixedParent": _FIXED_PARENT,
    "sensitiveDataOrigin": _ORIGIN,
}


@dataclass(frozen=True, slots=True)
class Public:
    """The public area of a key.

    Attributes:
        key: the key itself.
        attributes: TPMA_OBJECT.
        scheme: of its signatures: rsassa, rsapss, ecdsa; None where the key leaves it open or does not sign.
        scheme_hash: of its signatures, or None.
        name: TPM2B_NAME without its length: nameAlg ‖ hash of the public area.
    """

    key: AttestationKey
    attributes: int
    scheme: str | None
    scheme_hash: str | None
    name: bytes

    def check_attestation_key(self) -> None:
        """It is a key that signs what its TPM says, and that never leaves the TPM which made it.

        Raises:
            NotAuthentic: an attribute speaks against it. An unrestricted key signs whatever somebody
                hands to it, quotes that he has written himself among it.
        """
        missing = [name for name, bit in _OF_AN_AK.items() if not self.attributes & bit]
        if missing or self.attributes & _DECRYPT or self.scheme is None:
            reason = (
                f"lacks {', '.join(missing)}" if missing else "is for decryption, or for any scheme"
            )
            raise NotAuthentic(
                f"The attestation key is none: it {reason}.",
                hint="Make it with the attributes of an attestation key, as tpm2_createak does.",
            )


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE; ``value`` is what ``cryptography`` takes: raw for RSA, DER for ECDSA."""

    scheme: str
    hash_name: str
    value: bytes

    def verify(self, key: AttestationKey, message: bytes) -> None:
        """The key has signed the message.

        Raises:
            NotAuthentic: it has not, or the signature is for another kind of key.
        """
        algorithm = hash_algorithm(self.hash_name)
        try:
            if isinstance(key, rsa.RSAPublicKey) and self.scheme == "rsassa":
                key.verify(self.value, message, padding.PKCS1v15(), algorithm)
            elif isinstance(key, rsa.RSAPublicKey) and self.scheme == "rsapss":
                # The salt of a TPM is as long as it can be, or as the digest under FIPS rules.
                pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
                key.verify(self.value, message, pss, algorithm)
            elif isinstance(key, ec.EllipticCurvePublicKey) and self.scheme == "ecdsa":
                key.verify(self.value, message, ec.ECDSA(algorithm))
            else:
                raise NotAuthentic("The signature of the quote is for another kind of key.")
        except InvalidSignature:
            raise NotAuthentic("The attestation key has not signed this quote.") from None


def hash_algorithm(name: str) -> hashes.HashAlgorithm:
    """One of :data:`.HASHES` as ``cryptography`` names it."""
    known = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
    return known[name]


def fingerprint(key: AttestationKey) -> str:
    """SHA-256 over the DER of the SubjectPublicKeyInfo, in hexadecimal: the claim ``ak``."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def parse_signature(data: bytes) -> Signature:
    """Parse TPMT_SIGNATURE.

    Raises:
        MalformedEvidence: it is cut off, too long, or of a scheme or hash that is not accepted.
    """
    reader = StructureReader(data, "signature of the quote")
    scheme = _SCHEMES.get(reader.number(2))
    if scheme is None:
        raise reader.fault("is of a scheme that is not accepted")
    hash_name = reader.hash_name()
    value = reader.sized()
    if scheme == "ecdsa":
        value = encode_dss_signature(*(int.from_bytes(part, "big") for part in (value, reader.sized())))
    reader.end()
    return Signature(scheme, hash_name, value)


def parse_public(data: bytes) -> Public:
    """Parse TPM2B_PUBLIC of an RSA or ECC key.

    Raises:
        MalformedEvidence: it is cut off or too long, no such key, too weak, or not on its curve.
    """
    what = "public area of the key"
    outer = StructureReader(data, what)
    area = outer.sized()
    outer.end()
    reader = StructureReader(area, what)
    kind = reader.number(2)
    if kind not in (_RSA, _ECC):
        raise reader.fault("is of neither RSA nor ECC")
    name_algorithm = reader.number(2)
    if name_algorithm not in HASHES:
        raise reader.fault("has a name by a hash that is not accepted")
    attributes = reader.number(4)
    reader.sized()  # authPolicy: who may use the key, not what it is
    if reader.number(2) != _NULL:
        reader.take(4)  # bits and mode of a storage key's cipher
    scheme, scheme_hash = _scheme(reader)
    key = _rsa_key(reader) if kind == _RSA else _ecc_key(reader)
    reader.end()
    digest = hashlib.new(HASHES[name_algorithm], area).digest()
    return Public(key, attributes, scheme, scheme_hash, name_algorithm.to_bytes(2, "big") + digest)


def _scheme(reader: StructureReader) -> tuple[str | None, str | None]:
    scheme = reader.number(2)
    if scheme == _NULL:
        return None, None
    if scheme not in _SCHEMES:
        raise reader.fault("is of a key for another scheme than RSASSA, RSAPSS, ECDSA")
    return _SCHEMES[scheme], reader.hash_name()


def _rsa_key(reader: StructureReader) -> AttestationKey:
    bits, exponent, modulus = reader.number(2), reader.number(4) or _EXPONENT, reader.sized()
    if len(modulus) * 8 != bits:
        raise reader.fault("has a modulus of another size than it says")
    numbers = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big"))
    try:
        return _acceptable(numbers.public_key())
    except ValueError:
        raise reader.fault("has an RSA key that is none") from None


def _ecc_key(reader: StructureReader) -> AttestationKey:
    curve = _CURVES.get(reader.number(2))
    if curve is None:
        raise reader.fault("is on a curve that is not accepted")
    if reader.number(2) != _NULL:
        raise reader.fault("is of a key for key agreement")
    x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError:
        raise reader.fault("has a point that is not on its curve") from None


def parse_spki(data: bytes) -> AttestationKey:
    """Parse a SubjectPublicKeyInfo in DER.

    Raises:
        MalformedEvidence: it is none, not in DER, or of a key that is not accepted.
    """
    try:
        key = load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MalformedEvidence("The attestation key is no public key.") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise MalformedEvidence("The attestation key is of neither RSA nor ECC.")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != data:
        raise MalformedEvidence("The attestation key is not spelled in DER.")
    return _acceptable(key)


def _acceptable(key: AttestationKey) -> AttestationKey:
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA <= key.key_size <= _MAX_RSA or key.public_numbers().e != _EXPONENT:
            raise MalformedEvidence(
                f"An RSA key has {_MIN_RSA} to {_MAX_RSA} bits and the exponent 65537."
            )
    elif not isinstance(key.curve, tuple(_CURVES.values())):
        raise MalformedEvidence("The key is on a curve that is not accepted.")
    return key
