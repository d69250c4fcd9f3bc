"""What a TPM would say, written by a key in software: whatever a test wants, right or wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_evidence import TpmEvidence

ALGORITHMS = {"sha1": 0x04, "sha256": 0x0B, "sha384": 0x0C, "sha512": 0x0D, "sha3_256": 0x27}
SCHEMES = {"rsassa": 0x14, "rsapss": 0x16, "ecdsa": 0x18, "ecdaa": 0x1A, None: 0x10}
CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}

FIXED_TPM, FIXED_PARENT, ORIGIN, USER = 1 << 1, 1 << 4, 1 << 5, 1 << 6
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
AK = FIXED_TPM | FIXED_PARENT | ORIGIN | USER | RESTRICTED | SIGN

KEYS = {
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    "rsassa": rsa.generate_private_key(65537, 2048),
}
KEYS["rsapss"] = KEYS["rsassa"]


def u(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


def sized(data: bytes) -> bytes:
    return u(2, len(data)) + data


def selection(bank: str, indices, size: int = 3) -> bytes:
    bits = sum(1 << index for index in indices)
    return u(2, ALGORITHMS[bank]) + u(1, size) + bits.to_bytes(size, "little")


def pcr_values(indices, bank: str = "sha256") -> dict[int, bytes]:
    return {index: hashlib.new(bank, bytes([index])).digest() for index in indices}


def attest(
    *,
    magic: int = 0xFF544347,
    type: int = 0x8018,
    signer: bytes = b"\x00\x0b" + bytes(32),
    extra: bytes = b"bound to this",
    clock: int = 12345,
    safe: int = 1,
    selections: bytes | None = None,
    count: int = 1,
    digest: bytes = bytes(32),
) -> bytes:
    """TPMS_ATTEST."""
    selections = selection("sha256", [0, 7]) if selections is None else selections
    return b"".join(
        [
            *(u(4, magic), u(2, type), sized(signer), sized(extra)),
            *(u(8, clock), u(4, 3), u(4, 1), u(1, safe), bytes.fromhex("0102030405060708")),
            *(u(4, count), selections, sized(digest)),
        ]
    )


def public(
    key: Any,
    *,
    attributes: int = AK,
    scheme: str | None = "ecdsa",
    scheme_hash: str = "sha256",
    name_hash: str = "sha256",
    **changes: Any,
) -> bytes:
    """TPM2B_PUBLIC; ``changes`` replace single fields."""
    numbers = key.public_key().public_numbers()
    tail = b"" if scheme is None else u(2, ALGORITHMS[scheme_hash])
    parameters = u(2, 0x10) + u(2, SCHEMES[scheme]) + tail
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = changes.get("modulus", u(key.key_size // 8, numbers.n))
        parameters += u(2, changes.get("bits", key.key_size)) + u(4, changes.get("exponent", 0))
        kind, unique = 1, sized(modulus)
    else:
        size = (key.curve.key_size + 7) // 8
        parameters += u(2, changes.get("curve", CURVES[key.curve.name])) + u(
            2, changes.get("kdf", 0x10)
        )
        kind = 0x23
        unique = sized(u(size, numbers.x)) + sized(changes.get("y", u(size, numbers.y)))
    area = u(2, changes.get("kind", kind)) + u(2, ALGORITHMS[name_hash]) + u(4, attributes)
    return sized(area + sized(b"") + parameters + unique)


def signature(key: Any, message: bytes, *, scheme: str = "ecdsa", hash_name: str = "sha256") -> bytes:
    """TPMT_SIGNATURE over the message."""
    algorithm = getattr(hashes, hash_name.upper())()
    head = u(2, SCHEMES[scheme]) + u(2, ALGORITHMS[hash_name])
    if scheme == "ecdsa":
        parts = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm)))
        return head + b"".join(sized(u((key.curve.key_size + 7) // 8, part)) for part in parts)
    if scheme == "rsapss":
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
        return head + sized(key.sign(message, pss, algorithm))
    return head + sized(key.sign(message, padding.PKCS1v15(), algorithm))


@dataclass
class SoftwareAk:
    """An attestation key that lies in no TPM."""

    scheme: str = "ecdsa"
    hash_name: str = "sha256"
    attributes: int = AK
    key: Any = None
    pcrs: dict[int, bytes] = field(default_factory=lambda: pcr_values([0, 7]))

    def __post_init__(self) -> None:
        self.key = self.key or KEYS[self.scheme]

    @property
    def public(self) -> bytes:
        return public(
            self.key, attributes=self.attributes, scheme=self.scheme, scheme_hash=self.hash_name
        )

    def quote(self, bound: bytes, **changes: Any) -> bytes:
        digest = hashlib.new(self.hash_name, b"".join(self.pcrs[one] for one in sorted(self.pcrs)))
        said = {"selections": selection("sha256", self.pcrs), "digest": digest.digest(), **changes}
        return attest(extra=bound, **said)

    def sign(self, message: bytes) -> bytes:
        return signature(self.key, message, scheme=self.scheme, hash_name=self.hash_name)

    def evidence(self, bound: bytes = b"bound", *, endorsements=(), **changes: Any) -> Evidence:
        quote = self.quote(bound, **changes)
        made = TpmEvidence.build(self.public, quote, self.sign(quote), {"sha256": self.pcrs})
        return Evidence("tpm", made.data, tuple(endorsements))


SINCE, UNTIL = datetime(2026, 1, 1), datetime(2030, 1, 1)  # noqa: DTZ001 - x509 takes UTC


@dataclass
class Ca:
    """A CA for endorsement keys and attestation keys."""

    name: str = "maker"
    parent: Ca | None = None
    ca: bool = True
    path_length: int | None = None
    cert_sign: bool = True
    until: datetime = UNTIL

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        usage = {"key_cert_sign": self.cert_sign, "crl_sign": not self.cert_sign}
        self.certificate = (self.parent or self)._issue(
            self.name,
            self.key.public_key(),
            [(x509.BasicConstraints(self.ca, self.path_length), True), (key_usage(**usage), True)],
            self.until,
        )

    def _issue(self, name, key, extensions, until, hash=None) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=_name(self.name),
            subject_name=_name(name),
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=SINCE,
            not_valid_after=until,
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hash or hashes.SHA256())

    def certify(
        self, key: Any, *, use=None, usage="digital_signature", extra=(), until=UNTIL, **more: Any
    ) -> bytes:
        """DER of a certificate for a key of a TPM."""
        extensions = [(x509.BasicConstraints(more.pop("ca", False), None), True), *extra]
        extensions += [(key_usage(**{usage: True}), True)] if usage else []
        extensions += [(x509.ExtendedKeyUsage([use]), False)] if use else []
        return self._issue("key", key.public_key(), extensions, until, **more).public_bytes(
            Encoding.DER
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def key_usage(**members: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    names += ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**(dict.fromkeys(names, False) | members))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


__all__ = [
    "AK",
    "DECRYPT",
    "FIXED_PARENT",
    "FIXED_TPM",
    "KEYS",
    "ORIGIN",
    "RESTRICTED",
    "SIGN",
    "UNTIL",
    "Ca",
    "SoftwareAk",
    "attest",
    "pcr_values",
    "public",
    "selection",
    "signature",
    "sized",
    "u",
]
