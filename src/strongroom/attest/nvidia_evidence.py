"""Evidence of NVIDIA devices as it travels: one JSON object for all devices of a machine.

``{"devices": [{"report": base64url, "certificates": PEM}, …], "certificates": PEM}``. The chain of a
device is leaf first; what all chains end with stands once, on the outside, and roots are left out, for
eight GPUs with whole chains have 84 KB and evidence at most 64. ``arch`` and ``uuid`` of a device may be
there and are not believed. The form of Confidential Containers, ``device_evidence_list``, is read too.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.certificates import load_certificates
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import b64url, parse_json, unb64url_text

__all__ = ["MAX_DEVICES", "read_devices", "write_devices"]

MAX_DEVICES: Final = 16
"""Eight GPUs and the switches between them."""


def write_devices(devices: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The data of evidence, from the report and the chain (PEM, leaf first) of each device.

    Raises:
        MalformedEvidence: there is no device, or a chain cannot be read.
    """
    if not devices:
        raise MalformedEvidence("There is no device to give evidence of.")
    chains = [
        [one for one in load_certificates(chain) if one.subject != one.issuer] for _, chain in devices
    ]
    common: list[x509.Certificate] = []
    while len(devices) > 1 and all(chains) and all(chain[-1] == chains[0][-1] for chain in chains):
        common.insert(0, chains[0][-1])
        for chain in chains:
            chain.pop()
    entries = [
        {"report": b64url(report), "certificates": _pem(chain)}
        for (report, _), chain in zip(devices, chains, strict=True)
    ]
    members = {"devices": entries} | ({"certificates": _pem(common)} if common else {})
    return json.dumps(members, separators=(",", ":")).encode()


def read_devices(data: bytes) -> list[tuple[bytes, list[x509.Certificate]]]:
    """The report and the chain of each device; nothing is verified.

    Raises:
        MalformedEvidence: it is in neither form, or of more than :data:`MAX_DEVICES`.
    """
    try:
        members = parse_json(data)
    except ValueError as error:
        raise MalformedEvidence(f"The evidence of the GPU {error}.") from None
    containers = "device_evidence_list" in members
    entries = members.get("device_evidence_list" if containers else "devices")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_DEVICES:
        raise MalformedEvidence(f"The evidence is not of one to {MAX_DEVICES} devices.")
    common = b"" if containers else _text(members.get("certificates", ""))
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise MalformedEvidence("A device in the evidence is not an object.")
        if containers:
            report, pem = (
                _base64_or_hex(entry.get("evidence")),
                _base64_or_hex(entry.get("certificate")),
            )
        else:
            report, pem = _base64url(entry.get("report")), _text(entry.get("certificates"))
        found.append((report, list(load_certificates(pem + b"\n" + common))))
    return found


def _pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode("ascii") for one in certificates)


def _text(value: object) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        raise MalformedEvidence("The certificates of a GPU are not PEM.")
    return value.encode("ascii")


def _base64url(value: object) -> bytes:
    try:
        return unb64url_text(value)
    except ValueError as error:
        raise MalformedEvidence(f"The report of a GPU {error}.") from None


def _base64_or_hex(value: object) -> bytes:
    try:
        if not isinstance(value, str):
            raise ValueError
        try:
            return bytes.fromhex(value)
        except ValueError:
            return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise MalformedEvidence("The evidence of a GPU is neither base64 nor hexadecimal.") from None
