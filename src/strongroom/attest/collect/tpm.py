"""TPM 2.0: quotes of all PCRs of the SHA-256 bank, by ``tpm2-pytss``.

The attestation key is a primary key of the endorsement hierarchy, made anew from the TPM's seed each time
it is needed: always the same one, with nothing stored, until the TPM's maker seed is replaced. Keys that
are there already, such as those of a cloud, are used by their handle.

Run against swtpm; not against a TPM in hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from strongroom.attest.collect.base import checked
from strongroom.attest.collect.tpm_device import DEFAULT_TCTI, handle_at, opened, read_certificate, tpm2
from strongroom.attest.collect.tpm_ek import ek_certificate, recover_secret
from strongroom.attest.evidence import Evidence
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.tpm_keys import parse_public, parse_signature
from strongroom.attest.tpm_structures import parse_attest
from strongroom.errors import NotAuthentic, NotFound, Unavailable, UsageError

__all__ = ["TpmCollector"]

_BANK: Final = "sha256"
_PCRS: Final = 24
_ATTEMPTS: Final = 8
"""A PCR can change between reading and quoting: the kernel's IMA extends PCR 10 with every new file."""

_TEMPLATE: Final = "ecc256:ecdsa-sha256:null"


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
        with opened(self._tcti) as tpm, self._attestation_key(tpm) as (handle, public):
            self._check_bank(tpm)
            quote, signature, pcrs = self._quote(tpm, handle, data)
            endorsements = self._endorsements(tpm)
            certificate = ek_certificate(tpm)
        evidence = TpmEvidence.build(public, quote, signature, {_BANK: pcrs}, certificate)
        return Evidence(evidence.kind, evidence.data, endorsements)

    def activate(self, credential: bytes) -> bytes:
        """The secret in a credential that somebody has made for this TPM and its attestation key.

        Args:
            credential: as :func:`.tpm_credential.enrol` gives it.

        Raises:
            UsageError: it is none, or for another TPM or another key.
            Unavailable: the TPM refuses or does not answer.
        """
        with opened(self._tcti) as tpm, self._attestation_key(tpm) as (handle, _):
            return recover_secret(tpm, handle, credential)

    @contextmanager
    def _attestation_key(self, tpm: Any) -> Iterator[tuple[Any, bytes]]:
        library = tpm2()
        if self._key is not None:
            found = handle_at(tpm, self._key)
            if found is None:
                raise NotFound(f"The TPM has no key at {self._key:#x}.")
            handle = found
            public, _, _ = tpm.read_public(handle)
        else:
            attributes = library.TPMA_OBJECT.parse(
                "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
            )
            template = library.TPM2B_PUBLIC.parse(_TEMPLATE, objectAttributes=attributes)
            handle, public, *_ = tpm.create_primary(
                None, template, primary_handle=library.ESYS_TR.ENDORSEMENT
            )
        try:
            marshalled = public.marshal()
            try:
                parse_public(marshalled).check_attestation_key()
            except NotAuthentic as error:
                raise UsageError(str(error), hint=error.hint) from None
            yield handle, marshalled
        finally:
            if self._key is None:
                tpm.flush_context(handle)
            else:
                tpm.tr_close(handle)

    @staticmethod
    def _check_bank(tpm: Any) -> None:
        library = tpm2()
        _, found = tpm.get_capability(library.TPM2_CAP.PCRS, 0)
        banks = {
            selection.hash for selection in found.data.assignedPCR if any(bytes(selection.pcrSelect))
        }
        if library.TPM2_ALG.SHA256 not in banks:
            raise UsageError(
                "The TPM keeps no PCRs in SHA-256.",
                hint="Allocate the bank in the firmware's set-up, or: tpm2_pcrallocate sha256:all",
            )

    def _quote(self, tpm: Any, handle: Any, data: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
        every = f"{_BANK}:" + ",".join(map(str, range(_PCRS)))
        for _ in range(_ATTEMPTS):
            pcrs = self._read_pcrs(tpm)
            attest, signature = tpm.quote(handle, every, data)
            quote, signed = bytes(attest), signature.marshal()
            try:
                parse_attest(quote).check_pcrs({_BANK: pcrs}, parse_signature(signed).hash_name)
            except NotAuthentic:
                continue
            return quote, signed, pcrs
        raise Unavailable("The PCRs of the TPM change faster than they can be quoted.")

    @staticmethod
    def _read_pcrs(tpm: Any) -> dict[int, bytes]:
        """A TPM gives at most eight values at once."""
        values: dict[int, bytes] = {}
        for first in range(0, _PCRS, 8):
            indices = range(first, first + 8)
            _, _, digests = tpm.pcr_read(f"{_BANK}:" + ",".join(map(str, indices)))
            if len(digests) != len(indices):
                raise Unavailable("The TPM does not give all of its PCRs.")
            values.update(zip(indices, map(bytes, digests), strict=True))
        return values

    def _endorsements(self, tpm: Any) -> tuple[bytes, ...]:
        if self._certificate is None:
            return ()
        found = read_certificate(tpm, self._certificate)
        if found is None:
            raise NotFound(f"The TPM has no certificate at {self._certificate:#x}.")
        return (found,)
