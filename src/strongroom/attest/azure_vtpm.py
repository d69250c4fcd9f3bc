"""Confidential virtual machines of Azure: a quote of their virtual TPM, and a processor that vouches for it.

Three signatures lead from what the guest measured to the processor: the TPM's key signs the quote; the
report of the processor carries the SHA-256 of a document with that key; the vendor's key signs the
report. The report is as old as the machine's last start: only the quote is fresh.

Run with evidence that was recorded on SEV-SNP; for TDX with synthetic evidence alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

from strongroom.attest import dcap
from strongroom.attest.azure_evidence import AzureEvidence, HclReport
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.snp import verify_report
from strongroom.attest.snp_endorsements import Brought
from strongroom.attest.snp_report import parse_report
from strongroom.attest.tpm_keys import Signature, fingerprint
from strongroom.attest.verify import Context
from strongroom.errors import MissingEndorsement, NotAuthentic

__all__ = ["describe", "verify"]

_CONFIGURATION: Final = {
    "secure-boot": "secure_boot",
    "console-enabled": "console_enabled",
    "tpm-enabled": "tpm_enabled",
    "vmUniqueId": "vm_id",
}


def verify(evidence: Evidence, context: Context) -> Claims:
    """The claims of a virtual machine; see :func:`.verify.verify`.

    They are those of its processor, as for ``snp`` or ``tdx``, with the same endorsements, and:

    ==================== =========================================================================
    claim                what
    ==================== =========================================================================
    ak                   SHA-256 of the SubjectPublicKeyInfo of the virtual TPM's key; ``platform`` too
    pcr                  index → value, SHA-256, only of what was quoted
    vm                   secure_boot, console_enabled, tpm_enabled, vm_id, as the paravisor says
    ==================== =========================================================================

    ``bound`` is the qualifying data of the quote. ``measurement`` is that of the paravisor, and says
    nothing of the system in the machine: the PCRs do.

    Raises:
        NotAuthentic: besides all else: the report was not made for the paravisor, at VMPL 0. A guest of
            its own making could get one that vouches for any key.
    """
    parts = AzureEvidence.parse(evidence.data)
    Signature("rsassa", "sha256", parts.signature).verify(parts.hcl.key, parts.message)
    parts.attest.check_pcrs({"sha256": parts.pcrs}, "sha256")
    claims = _processor(parts, evidence, context)
    digest = hashlib.sha256(parts.hcl.runtime).digest()
    if claims.bound != digest.ljust(64, b"\0"):
        raise NotAuthentic("The report of the processor vouches for another virtual TPM than this one.")
    ak = fingerprint(parts.hcl.key)
    return replace(
        claims,
        kind=evidence.kind,
        values={**claims.values, **_values(parts), "ak": ak},
        bound=parts.attest.extra_data,
        platform=f"ak:{ak}",
    )


def _processor(parts: AzureEvidence, evidence: Evidence, context: Context) -> Claims:
    if parts.hcl.tee == "tdx":
        if parts.td_quote is None:
            raise MissingEndorsement(
                "The report of TDX was not made into a quote, and nobody else can check it.",
                hint="Send the quote along, as the member td_quote.",
            )
        quote = Evidence("tdx", parts.td_quote, evidence.endorsements)
        return dcap.verify(quote, context)
    report = parse_report(parts.hcl.report)
    sent = [] if parts.vcek is None else [parts.vcek]
    claims = verify_report(
        report, Brought.parse([*sent, *evidence.endorsements]), evidence.kind, context
    )
    if claims.values["vmpl"] != 0:
        raise NotAuthentic("The report of the processor was not made for the paravisor.")
    return claims


def describe(evidence: Evidence) -> dict[str, Any]:
    """What the evidence says, for people; nothing of it is verified.

    Raises:
        MalformedEvidence: it is none of a virtual machine of Azure.
    """
    parts = AzureEvidence.parse(evidence.data)
    return {
        "tee": parts.hcl.tee,
        "ak": fingerprint(parts.hcl.key),
        **_values(parts),
        "report_data": parts.attest.extra_data.hex(),
    }


def _values(parts: AzureEvidence) -> dict[str, Any]:
    return {
        "pcr": {str(index): parts.pcrs[index].hex() for index in sorted(parts.pcrs)},
        "vm": _vm(parts.hcl),
    }


def _vm(hcl: HclReport) -> dict[str, Any]:
    """Of the configuration, what is true, false or a short text."""
    said = {name: hcl.configuration.get(member) for member, name in _CONFIGURATION.items()}
    return {
        name: value
        for name, value in said.items()
        if isinstance(value, bool)
        or (isinstance(value, str) and len(value) <= 64 and value.isprintable())
    }
