"""NVIDIA GPUs and NVSwitches in confidential-computing mode: their reports, chains and measurements.

How several devices share one piece of evidence: :mod:`.nvidia_evidence`.

Measurements are compared with NVIDIA's reference manifests (RIM), from the evidence's endorsements or
the verifier's source. Where there is none for the driver or the VBIOS of a device, its claim
``measurements`` is "no-reference"; where they differ, "mismatch", and ``differing`` lists the indexes.

Evidence of a GPU can be relayed: it counts only where the evidence of a CPU lists its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.chains import chain_to
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.nvidia_dice import Dice, dice_of
from strongroom.attest.nvidia_evidence import read_devices
from strongroom.attest.nvidia_measurements import Manifests, References, compare
from strongroom.attest.nvidia_ocsp import check_revocation
from strongroom.attest.nvidia_report import ENABLED, SIGNATURE_SIZE, Opaque, Report, parse_report
from strongroom.attest.verify import Context
from strongroom.errors import NotAuthentic

__all__ = ["ARCHITECTURES", "verify"]

ARCHITECTURES: Final[Mapping[str, str]] = {"GH": "HOPPER", "GB": "BLACKWELL", "LS": "LS10"}
"""First letters of a chip → its architecture, as NVIDIA's library names it."""

_MODES: Final = {b"\x00": "SPT", b"\x01": "MPT"}
"""Feature flag: a GPU passed through alone, or several to one guest; firmware for Hopper has none."""


@dataclass(frozen=True, slots=True)
class _Device:
    """A device whose report and chain are right."""

    report: Report
    chain: Sequence[x509.Certificate]
    dice: Dice
    not_after: datetime

    @property
    def model(self) -> str:
        """``GH100 A01 GSP BROM``: the subject of the key that NVIDIA has put into the chip."""
        names = self.chain[1].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""

    @property
    def identity(self) -> str:
        """SHA-256 of the key that NVIDIA has put into the chip; the leaf's changes with the firmware."""
        return _spki_digest(self.chain[1])


def verify(evidence: Evidence, context: Context) -> Claims:
    """Verify reports of one or several devices, all bound to one nonce.

    Raises:
        MalformedEvidence: not in a known form, or a report or manifest is malformed.
        NotAuthentic: a chain, a signature, the firmware's id, a manifest or a revocation is
            against it; two reports are of one device, or bound to different nonces.
        Unavailable: the endorsement source does not answer.
    """
    devices = [
        _verify_device(parse_report(report), chain, context)
        for report, chain in read_devices(evidence.data)
    ]
    identities = sorted(device.identity for device in devices)
    if len(set(identities)) != len(identities):
        raise NotAuthentic("Two of the reports are of the same device.")
    nonces = {device.report.nonce for device in devices}
    if len(nonces) != 1:
        raise NotAuthentic("The reports of the devices are not bound to one nonce.")
    until = [device.not_after for device in devices]
    manifests = Manifests(evidence.endorsements, context)
    values = []
    for device in devices:
        references = compare(device.report, device.model, manifests)
        until += [references.not_after] if references.not_after else []
        values.append(_claims_of(device, references))
    return Claims(
        kind="nvidia",
        values={"devices": values},
        bound=nonces.pop(),
        debug=any("debug" in device.dice.flags for device in devices),
        platform="nvidia:" + hashlib.sha256("".join(identities).encode()).hexdigest(),
        not_after=min(until),
        test_root=context.roots.test,
        faults=[
            f"The firmware of {device.model} says that it is {flag}."
            for device in devices
            for flag in device.dice.flags
            if flag != "debug"
        ],
    )


def _verify_device(report: Report, certificates: list[x509.Certificate], context: Context) -> _Device:
    now = context.now
    chain, until = chain_to(certificates, context.roots.nvidia_device, now)
    if len(chain) < 3:
        raise NotAuthentic(
            "The chain of the GPU does not have a key of its firmware and one of its chip."
        )
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotAuthentic("The report of the GPU is not signed by a P-384 key.")
    half = SIGNATURE_SIZE // 2
    r, s = (int.from_bytes(part) for part in (report.signature[:half], report.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise NotAuthentic("The signature of the GPU's report is wrong.") from None
    dice = dice_of(chain[0])
    if report.opaque.get(Opaque.FWID, dice.fwid) != dice.fwid:
        raise NotAuthentic("The report of the GPU names another firmware than its certificate.")
    # The GPU made the leaf itself, and no responder knows it.
    answers = check_revocation(chain[1:], context.endorsements, now)
    return _Device(report, chain, dice, min([until, *answers]))


def _claims_of(device: _Device, references: References) -> dict[str, Any]:
    report, match = device.report, references.verdict == "match"
    architecture = ARCHITECTURES.get(device.model[:2])
    if architecture is None:
        raise NotAuthentic("The certificates are not of a GPU or switch that is known.")
    return {
        "arch": architecture,
        "model": device.model,
        "device": device.identity,
        # As NVIDIA's own verifier writes it.
        "ueid": str(device.chain[0].serial_number),
        "driver": report.text(Opaque.DRIVER_VERSION),
        "vbios": report.vbios,
        "fwid": device.dice.fwid.hex(),
        "protected_pcie": report.opaque.get(Opaque.PROTECTED_PCIE) == ENABLED,
        "mode": _MODES.get(report.opaque.get(Opaque.FEATURE_FLAG, b"")[:1]),
        "measurements": references.verdict,
        "differing": list(references.differing),
        "references": list(references.ids),
        # A report says neither; firmware in another state measures to something else.
        "secboot": match,
        "dbgstat": "disabled" if match and "debug" not in device.dice.flags else "unknown",
    }


def _spki_digest(certificate: x509.Certificate) -> str:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
