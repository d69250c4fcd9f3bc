"""Enrolment of a TPM: that an attestation key lies in the TPM whose endorsement key has a certificate.

The verifier seals a secret to the endorsement key and the *name* of the attestation key; only a TPM that
holds both gives it out (TPM2_ActivateCredential). The name covers the key's attributes, so that a key
that was enrolled is an attestation key, and its private part has never been outside of the TPM.

TPM2_MakeCredential in Python: TPM 2.0 Library, part 1, section 24 and annexes B.10.4, C.6.4. What the
endorsement key's cipher and hash are follows from its certificate: TCG EK Credential Profile, annex B.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from strongroom.attest.certificates import UNREADABLE, load_certificate
from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_certificates import EK_USE, chain_of, parse_certificates
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.tpm_keys import AttestationKey, Public, fingerprint, hash_algorithm
from strongroom.attest.verify import Context
from strongroom.errors import MalformedEvidence, MissingEndorsement, NotAuthentic

__all__ = ["SECRET_SIZE", "Enrolment", "Vouched", "enrol", "make_credential", "vouched"]

SECRET_SIZE: Final = 32
"""Bytes of the secret in a credential: what the hash of every endorsement key's name has room for."""

_PROFILES: Final = {
    "rsa2048": ("sha256", 128),
    "rsa3072": ("sha384", 256),
    "secp256r1": ("sha256", 128),
    "secp384r1": ("sha384", 256),
    "secp521r1": ("sha512", 256),
}
"""Endorsement key → hash of its name, bits of its AES-CFB."""

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Vouched:
    """An attestation key, and the TPM with a certificate that it is said to lie in; not proved yet.

    Attributes:
        platform: what to list in policies afterwards, ``ak:…``.
        ak_name: the TPM's name of the key, hexadecimal.
        ek: SHA-256 of the endorsement key's SubjectPublicKeyInfo: the TPM itself, for records.
    """

    platform: str
    ak_name: str
    ek: str
    _ak: Public = field(repr=False)
    _ek: AttestationKey = field(repr=False)

    def credential(self, secret: bytes, *, random: Random = os.urandom) -> bytes:
        """The secret as only this TPM with this key can open it: see :func:`make_credential`."""
        return make_credential(self._ek, self._ak, secret, random=random)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A question to one TPM, whose answer shows that it holds the attestation key.

    Attributes:
        platform: what to list in policies afterwards, ``ak:…``.
        ak_name: the TPM's name of the key, hexadecimal.
        ek: SHA-256 of the endorsement key's SubjectPublicKeyInfo: the TPM itself, for records.
        credential: for the machine: TPM2B_ID_OBJECT ‖ TPM2B_ENCRYPTED_SECRET.
    """

    platform: str
    ak_name: str
    ek: str
    credential: bytes
    _secret: bytes = field(repr=False)

    def confirm(self, answer: bytes) -> None:
        """The TPM holds the key; the platform may be listed.

        Args:
            answer: what the machine has got out of the credential.

        Raises:
            NotAuthentic: it is something else.
        """
        if not hmac.compare_digest(answer, self._secret):
            raise NotAuthentic("The TPM has not opened the credential: the key is not in it.")


def enrol(evidence: Evidence, context: Context, *, random: Random = os.urandom) -> Enrolment:
    """Ask whether the attestation key of ``evidence`` lies in the TPM that its EK certificate is of.

    Args:
        evidence, context: as for :func:`vouched`.
        random: a source of so many random bytes.

    Raises:
        EvidenceError: as :func:`vouched`.
    """
    found = vouched(evidence, context)
    secret = random(SECRET_SIZE)
    credential = found.credential(secret, random=random)
    return Enrolment(found.platform, found.ak_name, found.ek, credential, secret)


def vouched(evidence: Evidence, context: Context) -> Vouched:
    """The keys of ``evidence``, once the certificate of its endorsement key leads to a root.

    Args:
        evidence: of a TPM, with its EK's certificate; the quote in it need not be fresh. Endorsements
            are the certificates above the EK's.
        context: whose ``roots.tpm`` the certificate must lead to.

    Raises:
        MalformedEvidence: it is no such evidence, or its keys are of a kind that is not known here.
        MissingEndorsement: it has no certificate of an EK.
        NotAuthentic: the key is no attestation key, or the certificate leads to no root or is for
            another use.
    """
    parts = TpmEvidence.parse(evidence.data)
    if parts.public is None or parts.ek_certificate is None:
        raise MissingEndorsement(
            "The evidence has no certificate of the TPM's endorsement key, and nothing can be proved.",
            hint="Read the key from the machine itself, and list it in the policy.",
        )
    parts.public.check_attestation_key()
    certificate = load_certificate(parts.ek_certificate)
    chain = chain_of(certificate, parse_certificates(evidence.endorsements), context, EK_USE)
    if chain is None:
        raise NotAuthentic(
            "The certificate of the TPM's endorsement key leads to no CA that is believed.",
            hint="Add the CA of the TPM's maker to the roots, or the certificates in between.",
        )
    try:
        key: object = certificate.public_key()
    except UNREADABLE:
        # Such as RSAES-OAEP, as which makers have certified keys of TPM 1.2.
        key = None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise MalformedEvidence("The endorsement key is of neither RSA nor ECC.")
    platform = f"ak:{fingerprint(parts.key)}"
    return Vouched(platform, parts.public.name.hex(), fingerprint(key), parts.public, key)


def make_credential(
    ek: AttestationKey, ak: Public, secret: bytes, *, random: Random = os.urandom
) -> bytes:
    """TPM2_MakeCredential: TPM2B_ID_OBJECT ‖ TPM2B_ENCRYPTED_SECRET.

    Args:
        ek: endorsement key, from its certificate.
        ak: to whose name the secret is bound.
        secret: at most as long as the hash of the EK's name.
        random: a source of so many random bytes; one-time keys for ECC are from ``cryptography``.

    Raises:
        MalformedEvidence: the EK is of a kind that is not known here.
    """
    name = f"rsa{ek.key_size}" if isinstance(ek, rsa.RSAPublicKey) else ek.curve.name
    if name not in _PROFILES:
        raise MalformedEvidence(f"Endorsement keys of the kind {name} are not supported.")
    hash_name, bits = _PROFILES[name]
    if isinstance(ek, rsa.RSAPublicKey):
        seed, sealed = _seal_rsa(ek, hash_name, random)
    else:
        seed, sealed = _seal_ec(ek, hash_name)
    cipher_key = _kdf_a(hash_name, seed, b"STORAGE", ak.name, bits)
    encryptor = Cipher(algorithms.AES(cipher_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    mac_key = _kdf_a(hash_name, seed, b"INTEGRITY", b"", hashlib.new(hash_name).digest_size * 8)
    mac = hmac.digest(mac_key, identity + ak.name, hash_name)
    return _sized(_sized(mac) + identity) + _sized(sealed)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _kdf_a(hash_name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa: SP 800-108 in counter mode, with the label's terminating zero as the separator."""
    return KBKDFHMAC(
        algorithm=hash_algorithm(hash_name),
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)


def _seal_rsa(ek: rsa.RSAPublicKey, hash_name: str, random: Random) -> tuple[bytes, bytes]:
    seed = random(hashlib.new(hash_name).digest_size)
    algorithm = hash_algorithm(hash_name)
    oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\x00")
    return seed, ek.encrypt(seed, oaep)


def _seal_ec(ek: ec.EllipticCurvePublicKey, hash_name: str) -> tuple[bytes, bytes]:
    own = ec.generate_private_key(ek.curve)
    size = (ek.key_size + 7) // 8
    point, theirs = own.public_key().public_numbers(), ek.public_numbers()
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    info = b"IDENTITY\x00" + x + theirs.x.to_bytes(size, "big")
    length = hashlib.new(hash_name).digest_size
    seed = ConcatKDFHash(hash_algorithm(hash_name), length, info).derive(own.exchange(ec.ECDH(), ek))
    return seed, _sized(x) + _sized(y)
