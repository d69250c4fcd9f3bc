"""A PKI like AMD's under a root of its own: reports of SEV-SNP in the real format, without hardware.

Whatever it makes verifies under its own root only, with the real verifier; whoever believes that root
believes anybody who has the keys. It is for tests and demonstrations. Its RSA keys have 2048 bits, and
AMD's 4096: making those takes seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots
from strongroom.attest.snp_report import CHIP_ID_SIZE, PRODUCTS, REPORT_SIZE, SIGNED_SIZE
from strongroom.testing.amd_certificates import (
    authority,
    certificate_table,
    key_certificate,
    revocation_list,
)

__all__ = ["SnpPki"]

_DAY: Final = timedelta(days=1)
_SNP_POLICY: Final = 0x30000
"""SMT, and the bit that is always one."""

_DEBUG: Final = 1 << 19
_TCB: Final = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
_CPUID: Final = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}


@dataclass(frozen=True)
class SnpPki:
    """One processor, its product's root and what is between them.

    Attributes:
        product: Milan, Genoa or Turin.
        signer: ``vcek`` or ``vlek``: what signs the reports.
        issuer_keys: ark, ask.
        key: of the processor, or leased: what signs reports.
        certificates: ark, ask, vek; with a VLEK the ``ask`` is the ASVK.
        tcb: version numbers that the key is for.
        chip_id: 64 bytes, of Turin 8 and zeros.
        now: when it was made; validity is counted from here where nothing else is said.
    """

    product: str
    signer: str
    issuer_keys: Mapping[str, rsa.RSAPrivateKey]
    key: ec.EllipticCurvePrivateKey
    certificates: Mapping[str, x509.Certificate]
    tcb: Mapping[str, int]
    chip_id: bytes
    now: datetime

    @classmethod
    def create(
        cls,
        now: datetime,
        *,
        product: str = "Milan",
        signer: str = "vcek",
        chip_id: bytes = bytes(range(1, 65)),
        days: int = 365,
    ) -> SnpPki:
        """New keys, and certificates that hold from a day before ``now``.

        Args:
            now: with a time zone.
            product: Milan, Genoa or Turin.
            signer: ``vcek`` or ``vlek``.
            chip_id: identity of the processor; what is too long for the product is cut off.
            days: how long the certificate of the key that signs holds.
        """
        ark, ask = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        begin, end = now - _DAY, now + 3650 * _DAY
        root = authority(f"ARK-{product}", ark, None, ark, begin, end)
        name = f"SEV-{product}" if signer == "vcek" else f"SEV-VLEK-{product}"
        issuing = authority(name, ask, root, ark, begin, end)
        tcb = {**_TCB, "fmc": 1} if product == "Turin" else dict(_TCB)
        key = ec.generate_private_key(ec.SECP384R1())
        held = {"ark": root, "ask": issuing}
        pki = cls(product, signer, {"ark": ark, "ask": ask}, key, held, tcb, b"", now)
        return pki.another(chip_id=chip_id, days=days)

    def another(
        self,
        *,
        chip_id: bytes,
        days: int = 365,
        tcb: Mapping[str, int] | None = None,
        serial: int = 0,
        extensions: Mapping[str, bytes | None] | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> SnpPki:
        """The same PKI with another processor.

        Args:
            chip_id: its identity; what is too long for the product is cut off.
            days: how long the certificate of its key holds.
            tcb: version numbers that differ from those of this one.
            serial: of the certificate; AMD's all have 0.
            extensions: arc below 1.3.6.1.4.1.3704.1 → DER, where the certificate says something else
                than it should; None leaves one out.
            curve: of the key; P-384, if None.
        """
        levels = {**self.tcb, **(tcb or {})}
        hwid = chip_id[: PRODUCTS[self.product].hwid_size]
        vek = ec.generate_private_key(curve or ec.SECP384R1())
        certificate = key_certificate(
            vek.public_key(),
            self.certificates["ask"],
            self.issuer_keys["ask"],
            self.now - _DAY,
            self.now + days * _DAY,
            product="Milan-B0" if self.product == "Milan" else self.product,
            levels=levels,
            hwid=hwid if self.signer == "vcek" else None,
            serial=serial,
            extensions=extensions or {},
        )
        return replace(
            self,
            key=vek,
            certificates={**self.certificates, "vek": certificate},
            tcb=levels,
            chip_id=hwid.ljust(CHIP_ID_SIZE, b"\0"),
        )

    @property
    def root_pem(self) -> bytes:
        """The root, for whoever shall believe it."""
        return self.certificates["ark"].public_bytes(Encoding.PEM)

    def roots(self, base: Roots) -> Roots:
        """``base`` with this root in the place of AMD's for this product, and marked as for tests."""
        return replace(base, amd={**base.amd, self.product: self.root_pem}, test=True)

    def report(
        self,
        report_data: bytes,
        *,
        version: int = 3,
        measurement: bytes = bytes(48),
        host_data: bytes = bytes(32),
        policy: int = _SNP_POLICY,
        debug: bool = False,
        vmpl: int = 0,
        guest_svn: int = 0,
        id_key_digest: bytes = bytes(48),
        author_key_digest: bytes = bytes(48),
        report_id: bytes = bytes(32),
        committed: Mapping[str, int] | None = None,
        hide_chip: bool = False,
        changes: Mapping[int, bytes] | None = None,
    ) -> bytes:
        """A signed report; report data of less than 64 bytes are filled up with zeros.

        Args:
            report_data: what it is bound to.
            version: 2 to 5.
            measurement: of the launch, 48 bytes.
            host_data: 32 bytes.
            policy: of the guest, as a number.
            debug: sets the bit of the policy that lets the host read.
            vmpl: 0 to 3.
            guest_svn: version of the guest.
            id_key_digest: 48 bytes.
            author_key_digest: 48 bytes.
            report_id: 32 bytes.
            committed: version numbers below which the firmware does not go any more; as the key, if None.
            hide_chip: the host does not let reports say the processor's identity.
            changes: offset → bytes, put in before it is signed.
        """
        report = bytearray(REPORT_SIZE)
        struct.pack_into("<IIQ", report, 0, version, guest_svn, policy | _DEBUG * debug)
        struct.pack_into("<II", report, 0x30, vmpl, 1)
        struct.pack_into("<QI", report, 0x40, 1, (self.signer == "vlek") << 2)
        tcb = self._tcb(self.tcb)
        parts = {
            0x38: tcb,
            0x50: report_data.ljust(64, b"\0"),
            0x90: measurement,
            0xC0: host_data,
            0xE0: id_key_digest,
            0x110: author_key_digest,
            0x140: report_id,
            0x160: b"\xff" * 32,
            0x180: tcb,
            0x188: bytes(_CPUID[self.product]) if version >= 3 else b"",
            0x1A0: bytes(CHIP_ID_SIZE) if hide_chip else self.chip_id,
            0x1E0: self._tcb({**self.tcb, **(committed or {})}),
            0x1F0: tcb,
            **(changes or {}),
        }
        for at, part in parts.items():
            report[at : at + len(part)] = part
        if len(report) != REPORT_SIZE:
            raise ValueError("A part is longer than the report has room for it.")
        signature = self.key.sign(bytes(report[:SIGNED_SIZE]), ec.ECDSA(hashes.SHA384()))
        for index, number in enumerate(decode_dss_signature(signature)):
            at = SIGNED_SIZE + 72 * index
            report[at : at + 72] = number.to_bytes(72, "little")
        return bytes(report)

    def _tcb(self, levels: Mapping[str, int]) -> bytes:
        raw = bytearray(8)
        for component, byte in PRODUCTS[self.product].tcb.items():
            raw[byte] = levels[component]
        return bytes(raw)

    @property
    def key_der(self) -> bytes:
        """The certificate of the key that signs reports, in DER."""
        return self.certificates["vek"].public_bytes(Encoding.DER)

    @property
    def chain_pem(self) -> bytes:
        """ASK or ASVK, then ARK, as AMD's key server gives them."""
        return b"".join(self.certificates[name].public_bytes(Encoding.PEM) for name in ("ask", "ark"))

    def crl(
        self,
        *,
        revoked: Collection[str] = (),
        issued: datetime | None = None,
        days: int = 30,
        by: str = "ark",
        number: int = 1,
    ) -> bytes:
        """A revocation list in DER.

        Args:
            revoked: which of ask and vek are on it.
            issued: when it begins; an hour before this PKI was made, if None.
            days: how long it holds.
            by: whose list it is; AMD's are those of the ARK.
            number: of the list.
        """
        begin = issued or self.now - timedelta(hours=1)
        listed = [self.certificates[name] for name in revoked]
        return revocation_list(
            self.certificates[by], self.issuer_keys[by], begin, begin + days * _DAY, listed, number
        )

    def table(self, *names: str) -> bytes:
        """The certificate table of an extended report, with the certificates of ``names``."""
        kinds = {"vek": self.signer}
        return certificate_table({kinds.get(name, name): self.certificates[name] for name in names})

    def evidence(self, report_data: bytes, **parts: Any) -> Evidence:
        """A report with its chain and a revocation list: what a machine sends; ``parts`` as for the report."""
        report = self.report(report_data, **parts)
        return Evidence("snp", report, (self.key_der, self.chain_pem, self.crl()))
