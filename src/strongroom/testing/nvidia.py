"""GPUs that do not exist: chains, reports and reference manifests in NVIDIA's formats, under test roots."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from strongroom.attest.evidence import Evidence
from strongroom.attest.nvidia_evidence import write_devices
from strongroom.attest.roots import Roots
from strongroom.testing.authority import Authority
from strongroom.testing.nvidia_manifests import manifest_xml, sign_manifest

__all__ = ["Gpu", "NvidiaPki"]

DRIVER: Final = "580.95.05"
VBIOS: Final = "96.00.CF.00.02"
DISABLED: Final = b"\x55"

_FOREVER: Final = timedelta(days=3650)
_SHA384: Final = bytes.fromhex("0609608648016503040202")
_DRIVER_INDEXES: Final = (*range(21, 41), 7)
_VBIOS_INDEXES: Final = (*range(7), *range(8, 13))


@dataclass(frozen=True)
class Gpu:
    """One device: its chain, leaf first, and its firmware's key.

    Attributes:
        leaf: the key of the firmware.
        chain: PEM, with the root.
        fwid: 48 bytes.
        model: as in the certificates.
    """

    leaf: Authority
    chain: bytes
    fwid: bytes
    model: str

    def report(
        self,
        nonce: bytes,
        *,
        driver: str = DRIVER,
        vbios: str = VBIOS,
        measurements: Mapping[int, bytes] | None = None,
        opaque: Mapping[int, bytes] | None = None,
    ) -> bytes:
        """A signed report.

        Args:
            nonce: 32 bytes, those of the request.
            driver: version that the report names.
            vbios: version that the report names.
            measurements: index, from 0 on → 48 bytes, instead of :func:`measured`.
            opaque: fields instead of, or besides, the usual ones.
        """
        values = {index: measured(index) for index in range(64)} | dict(measurements or {})
        fields = {
            6: _vbios(vbios),
            15: b"882\x00",
            17: b"1010\x00",
            18: b"0200\x00",
            3: driver.encode() + b"\x00",
            11: DISABLED,
            20: self.fwid,
            21: DISABLED,
        }
        if self.model.startswith("GB"):
            fields |= {35: b"GB100\x00", 36: b"\x01"}
        fields |= opaque or {}
        record = b"".join(
            struct.pack("<BBHBH", index + 1, 1, len(value) + 3, 1, len(value)) + value
            for index, value in sorted(values.items())
        )
        said = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items())
        body = (
            bytes([0x11, 0xE0, 0x01, 0xFF, *nonce, 0x00])
            + bytes([0x11, 0x60, 0, 0, len(values)])
            + len(record).to_bytes(3, "little")
            + record
            + hashlib.sha256(b"of the device" + nonce).digest()
            + struct.pack("<H", len(said))
            + said
        )
        return body + self.leaf.sign(body)


def measured(index: int) -> bytes:
    """What a synthetic GPU measures at ``index``."""
    return hashlib.sha384(b"measurement %d" % index).digest()


@dataclass
class NvidiaPki:
    """Test roots for devices and manifests, and what they vouch for.

    Args:
        since: from when everything is valid; for ten years.
    """

    since: datetime
    until: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.until = self.since + _FOREVER
        self.device_root = self._authority("TEST Device Identity CA")
        self._identity = self._authority("TEST GPU Identity", self.device_root)
        self.issuer = self._authority("TEST Provisioner ICA", self._identity)
        self.rim_root = self._authority("TEST CoRIM signing Root CA")
        self.rim_issuer = self._authority("TEST Reference Value L3", self.rim_root)
        self.rim_signer = self._authority("TEST RIM Signer", self.rim_issuer, ca=False)

    def _authority(self, name: str, by: Authority | None = None, **more: Any) -> Authority:
        return Authority.make(name, self.since, self.until, by, **more)

    def roots(self, base: Roots) -> Roots:
        """``base`` with the test roots for devices and manifests."""
        return replace(
            base, nvidia_device=self.device_root.pem, nvidia_rim=self.rim_root.pem, test=True
        )

    def gpu(self, model: str = "GH100 A01 GSP BROM", *, flags: int = 0) -> Gpu:
        """A device.

        Args:
            model: first letters GH, GB or LS; GB says its firmware's id in Blackwell's form.
            flags: of the firmware, Blackwell only: 0x40 not secure, 0x20 in recovery, 0x10 debug.
        """
        chip = self._authority(model, self.issuer)
        fwid = hashlib.sha384(b"firmware").digest()
        key = chip.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        said = _der(0x30, _SHA384 + _der(0x04, fwid))
        if model.startswith("GB"):
            zero = _der(0x30, _SHA384 + _der(0x04, bytes(48)))
            oid = "2.23.133.5.4.1.1"
            members = (
                _der(0x80, b"NVIDIA")
                + _der(0xA6, said + zero)
                + _der(0x87, bytes([0, 0x80 | flags, 0, 0, 1]))
            )
            value = _der(0x30, members)
        else:
            oid = "2.23.133.5.4.1"
            value = _der(0x30, _der(0x02, b"\x01") + key + said)
        dice = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        leaf = self._authority(model[:9] + " FMC LF", chip, ca=False, extensions=[(dice, False)])
        chain = [leaf, chip, self.issuer, self._identity, self.device_root]
        return Gpu(leaf, b"".join(one.pem for one in chain), fwid, model)

    def evidence(self, nonce: bytes, gpus: Sequence[Gpu] | None = None, **report: Any) -> Evidence:
        """Evidence of ``gpus``, or of one, with the manifests that fit.

        Args:
            nonce: 32 bytes.
            gpus: of one model.
            report: as for :meth:`Gpu.report`.
        """
        found = gpus or [self.gpu()]
        devices = [(gpu.report(nonce, **report), gpu.chain) for gpu in found]
        return Evidence("nvidia", write_devices(devices), self.manifests(found[0].model))

    def manifests(self, model: str = "GH100 A01 GSP BROM") -> list[bytes]:
        """The manifests of the driver and the VBIOS of synthetic devices."""
        chip = model.split(" ")[0]
        return [
            self.manifest(DRIVER, {index: [measured(index)] for index in _DRIVER_INDEXES}, chip),
            self.manifest(VBIOS, {index: [measured(index)] for index in _VBIOS_INDEXES}, chip),
        ]

    def manifest(
        self, version: str, values: Mapping[int, Sequence[bytes]], product: str = "GH100"
    ) -> bytes:
        """A signed manifest.

        Args:
            version: of a driver or a VBIOS.
            values: index → what is allowed.
            product: the chip.
        """
        chain = [self.rim_signer, self.rim_issuer, self.rim_root]
        return sign_manifest(manifest_xml(version, values, product), chain)

    def ocsp(
        self, request: bytes, now: datetime, *, revoked: bool = False, by: Authority | None = None
    ) -> bytes:
        """An OCSP response to ``request``, signed by the certificate's issuer or by ``by``.

        Args:
            request: DER.
            now: from when it holds, for a day.
            revoked: what it says.
            by: somebody else to sign it.
        """
        asked = ocsp.load_der_ocsp_request(request)
        issuers = [self.device_root, self._identity, self.issuer, self.rim_root, self.rim_issuer]
        issuer = next(one for one in issuers if _key_hash(one) == asked.issuer_key_hash)
        builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
            issuer_name_hash=asked.issuer_name_hash,
            issuer_key_hash=asked.issuer_key_hash,
            serial_number=asked.serial_number,
            algorithm=asked.hash_algorithm,
            cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update=now,
            next_update=now + timedelta(days=1),
            revocation_time=now if revoked else None,
            revocation_reason=None,
        )
        signer = by or issuer
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
        if by is not None:
            builder = builder.certificates([by.certificate])
        return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([size]) if size < 0x80 else bytes([0x81, size]) if size < 0x100 else b""
    return bytes([tag]) + (head or b"\x82" + size.to_bytes(2)) + content


def _vbios(version: str) -> bytes:
    parts = bytes.fromhex(version.replace(".", ""))
    return (bytes(3) + parts[4:] + parts[:4])[::-1]


def _key_hash(authority: Authority) -> bytes:
    point = authority.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha384(point).digest()
