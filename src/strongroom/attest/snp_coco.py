"""SNP evidence as agents of Confidential Containers send it: the report as a JSON object of its fields.

The signature covers the bytes, so they are put together again; a field that was changed, forgotten or
misplaced on the way makes it wrong. The form is that of ``serde`` for ``AttestationReport`` of the
crate ``sev`` from 6 on: numbers, lists of bytes, ``null`` for what a version does not have.
"""

from __future__ import annotations

from typing import Any, Final

from strongroom.attest.limits import MAX_ENDORSEMENT_COUNT
from strongroom.attest.snp_report import PRODUCTS, REPORT_SIZE, SIGNED_SIZE
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import parse_json

__all__ = ["parse_coco", "report_from_fields"]

_NUMBERS: Final = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "vmpl": (0x030, 4),
    "sig_algo": (0x034, 4),
    "plat_info": (0x040, 8),
    "key_info": (0x048, 4),
}
_OPTIONAL: Final = {
    "cpuid_fam_id": (0x188, 1),
    "cpuid_mod_id": (0x189, 1),
    "cpuid_step": (0x18A, 1),
    "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}
_BYTES: Final = {
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "chip_id": (0x1A0, 64),
}
_TCBS: Final = {
    "current_tcb": 0x038,
    "reported_tcb": 0x180,
    "committed_tcb": 0x1E0,
    "launch_tcb": 0x1F0,
}
_FIRMWARE: Final = {"current": 0x1E8, "committed": 0x1EC}
_FIRMWARE_PARTS: Final = ("build", "minor", "major")


def parse_coco(data: bytes) -> tuple[bytes, list[bytes]]:
    """The report, and the certificates that came with it.

    ``{"attestation_report": {…}, "cert_chain": [{"cert_type": …, "data": [bytes]}]}``; the chain may be
    missing or null.

    Raises:
        MalformedEvidence: it is something else.
    """
    try:
        members = parse_json(data)
        report = members["attestation_report"]
        chain = members.get("cert_chain") or []
        if not isinstance(chain, list) or len(chain) > MAX_ENDORSEMENT_COUNT:
            raise ValueError("the chain is no list, or too long")
        return report_from_fields(report), [bytes(_octets(entry["data"])) for entry in chain]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise MalformedEvidence(f"This is no evidence of SEV-SNP in JSON: {reason[:200]}.") from None


def report_from_fields(fields: Any) -> bytes:
    """The 1184 bytes of a report.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: a field is missing or out of its bounds.
    """
    report = bytearray(REPORT_SIZE)

    def put(at: int, size: int, value: Any) -> None:
        report[at : at + size] = _number(value, size)

    for name, (at, size) in _NUMBERS.items():
        put(at, size, fields[name])
    for name, (at, size) in _OPTIONAL.items():
        if fields.get(name) is not None:
            put(at, size, fields[name])
    for name, (at, size) in _BYTES.items():
        report[at : at + size] = _octets(fields[name], size)
    for name, at in _TCBS.items():
        tcb = fields[name]
        layout = PRODUCTS["Milan" if tcb.get("fmc") is None else "Turin"].tcb
        for component, byte in layout.items():
            put(at + byte, 1, tcb[component])
    for name, at in _FIRMWARE.items():
        for byte, part in enumerate(_FIRMWARE_PARTS):
            put(at + byte, 1, fields[name][part])
    signature = fields["signature"]
    for at, part in ((SIGNED_SIZE, "r"), (SIGNED_SIZE + 72, "s")):
        report[at : at + 72] = _octets(signature[part], 72)
    return bytes(report)


def _number(value: Any, size: int) -> bytes:
    if type(value) is not int or not 0 <= value < 1 << 8 * size:
        raise ValueError("a number is none, or out of its bounds")
    return value.to_bytes(size, "little")


def _octets(value: Any, size: int | None = None) -> bytes:
    if not isinstance(value, list) or size not in (None, len(value)):
        raise ValueError("a list of bytes is none, or has a wrong size")
    if not all(type(octet) is int and 0 <= octet < 256 for octet in value):
        raise ValueError("a list of bytes has something else in it")
    return bytes(value)
