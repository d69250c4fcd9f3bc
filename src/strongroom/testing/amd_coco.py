"""A report of SEV-SNP as agents of Confidential Containers send it: a JSON object of its fields."""

from __future__ import annotations

from typing import Any

__all__ = ["coco_fields"]

_TURIN = 0x1A


def coco_fields(report: bytes, chain: object = None) -> dict[str, Any]:
    """The object; ``serde`` makes the same of the crate ``sev``'s AttestationReport.

    Args:
        report: 1184 bytes.
        chain: the member ``cert_chain``: null, or a list of objects with the DER as a list of numbers.
    """
    version = _number(report, 0x0, 4)
    turin = version > 2 and report[0x188] == _TURIN
    fields = {
        "version": version,
        "guest_svn": _number(report, 0x4, 4),
        "policy": _number(report, 0x8, 8),
        "family_id": list(report[0x10:0x20]),
        "image_id": list(report[0x20:0x30]),
        "vmpl": _number(report, 0x30, 4),
        "sig_algo": _number(report, 0x34, 4),
        "current_tcb": _tcb(report, 0x38, turin),
        "plat_info": _number(report, 0x40, 8),
        "key_info": _number(report, 0x48, 4),
        "report_data": list(report[0x50:0x90]),
        "measurement": list(report[0x90:0xC0]),
        "host_data": list(report[0xC0:0xE0]),
        "id_key_digest": list(report[0xE0:0x110]),
        "author_key_digest": list(report[0x110:0x140]),
        "report_id": list(report[0x140:0x160]),
        "report_id_ma": list(report[0x160:0x180]),
        "reported_tcb": _tcb(report, 0x180, turin),
        "cpuid_fam_id": report[0x188] if version > 2 else None,
        "cpuid_mod_id": report[0x189] if version > 2 else None,
        "cpuid_step": report[0x18A] if version > 2 else None,
        "chip_id": list(report[0x1A0:0x1E0]),
        "committed_tcb": _tcb(report, 0x1E0, turin),
        "current": _firmware(report, 0x1E8),
        "committed": _firmware(report, 0x1EC),
        "launch_tcb": _tcb(report, 0x1F0, turin),
        "launch_mit_vector": _number(report, 0x1F8, 8) if version > 4 else None,
        "current_mit_vector": _number(report, 0x200, 8) if version > 4 else None,
        "signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])},
    }
    return {"attestation_report": fields, "cert_chain": chain}


def _number(report: bytes, at: int, size: int) -> int:
    return int.from_bytes(report[at : at + size], "little")


def _tcb(report: bytes, at: int, turin: bool) -> dict[str, int | None]:
    fmc, bootloader, tee, snp = (0, 1, 2, 3) if turin else (None, 0, 1, 6)
    return {
        "fmc": None if fmc is None else report[at],
        "bootloader": report[at + bootloader],
        "tee": report[at + tee],
        "snp": report[at + snp],
        "microcode": report[at + 7],
    }


def _firmware(report: bytes, at: int) -> dict[str, int]:
    return {"build": report[at], "minor": report[at + 1], "major": report[at + 2]}
