"""A PKI like that of AWS Nitro Enclaves under a root of its own: documents in the real format.

Whatever it makes verifies under its own root only, with the real verifier; whoever believes that root
believes anybody who has the keys. It is for tests and demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots

__all__ = ["NitroPki"]

_DAY: Final = timedelta(days=1)
_AUTHORITIES: Final = {"root": None, "region": 2, "zone": 1, "instance": 0}
"""Name → how many authorities may follow; each is issued by the one before."""

_LEAF_LIFE: Final = timedelta(hours=3)


@dataclass(frozen=True)
class NitroPki:
    """The authorities of one region, and one enclave.

    Attributes:
        keys: root, region, zone, instance, leaf.
        certificates: of the same.
        now: when it was made.
        module_id: of the enclave.
    """

    keys: Mapping[str, ec.EllipticCurvePrivateKey]
    certificates: Mapping[str, x509.Certificate]
    now: datetime
    module_id: str

    @classmethod
    def create(
        cls,
        now: datetime,
        *,
        instance_id: str = "i-0123456789abcdef0",
        lengths: Mapping[str, int | None] | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> NitroPki:
        """New keys; the authorities hold from a day before ``now`` on, the enclave's key for three hours.

        Args:
            now: with a time zone.
            instance_id: of the virtual machine.
            lengths: authority → how many may follow, where that differs.
            curve: of the enclave's key; P-384, if None.
        """
        allowed = {**_AUTHORITIES, **(lengths or {})}
        keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in allowed}
        certificates: dict[str, x509.Certificate] = {}
        issuer = "root"
        for name, length in allowed.items():
            certificates[name] = _certificate(
                f"{name}.test.nitro-enclaves",
                keys[name],
                certificates.get(issuer),
                keys[issuer],
                now - _DAY,
                now + 30 * _DAY,
                length=length,
            )
            issuer = name
        module_id = f"{instance_id}-enc0123456789abcdef"
        pki = cls(keys, certificates, now, module_id)
        return pki.at(now, curve=curve)

    def at(
        self,
        now: datetime,
        *,
        curve: ec.EllipticCurve | None = None,
        authority: bool = False,
        bare: bool = False,
    ) -> NitroPki:
        """The same enclave with a new key, as it gets every three hours.

        Args:
            now: when; with a time zone.
            curve: of the key; P-384, if None.
            authority: the certificate of the key says that it may issue others, as none of AWS does.
            bare: it does not say what it is for.
        """
        leaf = ec.generate_private_key(curve or ec.SECP384R1())
        certificate = _certificate(
            f"{self.module_id}.test.aws",
            leaf,
            self.certificates["instance"],
            self.keys["instance"],
            now - timedelta(seconds=3),
            now + _LEAF_LIFE,
            length=0 if authority else -1,
            bare=bare,
        )
        return replace(
            self,
            keys={**self.keys, "leaf": leaf},
            certificates={**self.certificates, "leaf": certificate},
            now=now,
        )

    @property
    def root_pem(self) -> bytes:
        """The root, for whoever shall believe it."""
        return self.certificates["root"].public_bytes(Encoding.PEM)

    def roots(self, base: Roots) -> Roots:
        """``base`` with this root in the place of AWS's, and marked as for tests."""
        return replace(base, nitro=self.root_pem, test=True)

    def document(
        self,
        user_data: bytes | None,
        *,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
        pcrs: Mapping[int, bytes] | None = None,
        debug: bool = False,
        changes: Mapping[str, Any] | None = None,
    ) -> bytes:
        """A signed document.

        Args:
            user_data: what it is bound to.
            nonce: at most 512 bytes.
            public_key: at most 1024 bytes.
            pcrs: index → 48 bytes, where they are not those of an image that the test makes up.
            debug: PCR0 to PCR2 are zero.
            changes: member → value, put in before it is signed; the whole map is of definite length.
        """
        registers = {index: bytes(48) for index in range(16)}
        registers |= {index: bytes([index + 1]) * 48 for index in (0, 1, 2, 4)}
        registers |= pcrs or {}
        if debug:
            registers |= {index: bytes(48) for index in range(3)}
        members: dict[str, Any] = {
            "module_id": self.module_id,
            "digest": "SHA384",
            "timestamp": int(self.now.timestamp() * 1000),
            "pcrs": registers,
            "certificate": self._der("leaf"),
            "cabundle": [self._der(name) for name in _AUTHORITIES],
            "public_key": public_key,
            "user_data": user_data,
            "nonce": nonce,
            **(changes or {}),
        }
        import cbor2

        return self.sign(cbor2.dumps(members))

    def sign(self, payload: bytes, *, algorithm: int = -35) -> bytes:
        """A COSE_Sign1 around any bytes.

        Args:
            payload: what is signed.
            algorithm: that its header names; it is signed by ES384 all the same.
        """
        import cbor2

        protected = cbor2.dumps({1: algorithm})
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        signature = self.keys["leaf"].sign(signed, ec.ECDSA(hashes.SHA384()))
        raw = b"".join(number.to_bytes(48, "big") for number in decode_dss_signature(signature))
        return cbor2.dumps([protected, {}, payload, raw])

    def _der(self, name: str) -> bytes:
        return self.certificates[name].public_bytes(Encoding.DER)

    def evidence(self, user_data: bytes, **parts: Any) -> Evidence:
        """A document as a machine sends it; ``parts`` as for the document."""
        return Evidence("nitro", self.document(user_data, **parts))


def _certificate(
    common: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
    *,
    length: int | None,
    bare: bool = False,
) -> x509.Certificate:
    """An authority with that many others behind it; for -1, a key that signs documents."""
    ca = length != -1
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TEST ROOT, NOT FOR PRODUCTION"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )
    usage = x509.KeyUsage(True, not ca, False, False, False, ca, ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if not bare:
        constraints = x509.BasicConstraints(ca, length if ca else None)
        builder = builder.add_extension(constraints, True).add_extension(usage, ca)
    return builder.sign(issuer_key, hashes.SHA384())
