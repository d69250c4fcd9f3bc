"""Azure's confidential virtual machines with SEV-SNP: a quote of the virtual TPM, and the paravisor's report.

The report, which vouches for the TPM's key, was made when the machine started and lies in the TPM; see
:mod:`..azure_evidence`. The certificate of the processor is for the verifier to fetch.

Run against swtpm with a synthetic report in it; not in Azure.
"""

from __future__ import annotations

import json
from typing import Final

from strongroom.attest.azure_evidence import HclReport
from strongroom.attest.collect.base import checked
from strongroom.attest.collect.tpm_device import DEFAULT_TCTI, opened, read_nv, tpm2
from strongroom.attest.collect.tpm_quote import attestation_key, quote_pcrs
from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_keys import fingerprint, parse_public, parse_signature
from strongroom.errors import NotFound, UsageError
from strongroom.format.encoding import b64url

__all__ = ["AzureCollector"]

_REPORT: Final = 0x01400001
_KEY: Final = 0x81000003


class AzureCollector:
    """Quotes of the virtual TPM of a confidential virtual machine.

    Args:
        tcti: how to reach the TPM, in the TSS's words.

    Raises:
        MissingExtra: tpm2-pytss is not installed.
    """

    kind = "azure-vtpm"

    def __init__(self, tcti: str = DEFAULT_TCTI) -> None:
        tpm2()
        self._tcti = tcti

    def collect(self, bound: bytes) -> Evidence:
        data = checked(bound)
        with opened(self._tcti) as tpm:
            report = read_nv(tpm, _REPORT)
            if report is None:
                raise NotFound(
                    "The TPM has no report of a paravisor: this is no confidential machine of Azure.",
                    hint="Its series are called DC and EC; for a plain TPM, take tpm.",
                )
            with attestation_key(tpm, _KEY) as (handle, public):
                quote, signature, pcrs = quote_pcrs(tpm, handle, data)
        try:
            hcl = HclReport.parse(report)
        except ValueError as error:
            raise UsageError(f"The TPM {error}.") from None
        if hcl.tee != "snp":
            raise UsageError(
                "This machine has TDX, whose quote only a service of the host makes.",
                hint="Fetch it with a program of yours: exec:COMMAND",
            )
        if fingerprint(hcl.key) != fingerprint(parse_public(public).key):
            raise UsageError(f"The key at {_KEY:#x} is not the one that the processor vouches for.")
        members = {
            "version": 2,
            "tpm_quote": {
                "message": quote.hex(),
                "signature": parse_signature(signature).value.hex(),
                "pcrs": [pcrs[index].hex() for index in sorted(pcrs)],
            },
            "hcl_report": b64url(report),
        }
        return Evidence(self.kind, json.dumps(members, separators=(",", ":")).encode())
