"""TPM 2.0: quotes of all PCRs of the SHA-256 bank, by ``tpm2-pytss``.

Run against swtpm; not against a TPM in hardware.
"""

from __future__ import annotations

from typing import Any

from strongroom.attest.collect.base import checked
from strongroom.attest.collect.tpm_device import DEFAULT_TCTI, opened, read_certificate, tpm2
from strongroom.attest.collect.tpm_ek import ek_certificate, recover_secret
from strongroom.attest.collect.tpm_quote import BANK, attestation_key, quote_pcrs
from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.errors import NotFound

__all__ = ["TpmCollector"]


class TpmCollector:
    """Quotes of the TPM of this machine.

    Args:
        tcti: how to reach it, in the TSS's words.
        key: persistent handle of the attestation key, such as 0x81000003 in Azure; by default the
            one that is made from the endorsement seed.
        certificate: NV index of that key's certificate, such as 0x1C101D0 in Azure; it becomes an
            endorsement.

    Raises:
        MissingExtra: tpm2-pytss is not installed.
    """

    kind = "tpm"

    def __init__(
        self, tcti: str = DEFAULT_TCTI, *, key: int | None = None, certificate: int | None = None
    ) -> None:
        tpm2()
        self._tcti = tcti
        self._key = key
        self._certificate = certificate

    def collect(self, bound: bytes) -> Evidence:
        data = checked(bound)
        with opened(self._tcti) as tpm, attestation_key(tpm, self._key) as (handle, public):
            quote, signature, pcrs = quote_pcrs(tpm, handle, data)
            endorsements = self._endorsements(tpm)
            certificate = ek_certificate(tpm)
        evidence = TpmEvidence.build(public, quote, signature, {BANK: pcrs}, certificate)
        return Evidence(evidence.kind, evidence.data, endorsements)

    def activate(self, credential: bytes) -> bytes:
        """The secret in a credential that somebody has made for this TPM and its attestation key.

        Args:
            credential: as :func:`.tpm_credential.enrol` gives it.

        Raises:
            UsageError: it is none, or for another TPM or another key.
            Unavailable: the TPM refuses or does not answer.
        """
        with opened(self._tcti) as tpm, attestation_key(tpm, self._key) as (handle, _):
            return recover_secret(tpm, handle, credential)

    def _endorsements(self, tpm: Any) -> tuple[bytes, ...]:
        if self._certificate is None:
            return ()
        found = read_certificate(tpm, self._certificate)
        if found is None:
            raise NotFound(f"The TPM has no certificate at {self._certificate:#x}.")
        return (found,)
