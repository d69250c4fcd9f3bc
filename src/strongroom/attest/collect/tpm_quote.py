"""TPM 2.0: the attestation key, and a quote of all PCRs by it.

The key is a primary key of the endorsement hierarchy, made anew from the TPM's seed each time it is needed:
always the same one, with nothing stored, until the TPM's maker seed is replaced. Keys that are there
already, such as those of a cloud, are used by their handle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from strongroom.attest.collect.tpm_device import handle_at, tpm2
from strongroom.attest.tpm_keys import parse_public, parse_signature
from strongroom.attest.tpm_structures import parse_attest
from strongroom.errors import NotAuthentic, NotFound, Unavailable, UsageError

__all__ = ["BANK", "attestation_key", "quote_pcrs"]

BANK: Final = "sha256"
_PCRS: Final = 24
_ATTEMPTS: Final = 8
"""A PCR can change between reading and quoting: the kernel's IMA extends PCR 10 with every new file."""

_TEMPLATE: Final = "ecc256:ecdsa-sha256:null"
_ATTRIBUTES: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"


@contextmanager
def attestation_key(tpm: Any, place: int | None = None) -> Iterator[tuple[Any, bytes]]:
    """The library's handle of the key, and its TPM2B_PUBLIC.

    Args:
        tpm: connection.
        place: persistent handle; None makes the key from the endorsement seed.

    Raises:
        NotFound: there is no key at that place.
        UsageError: it is no attestation key.
    """
    library = tpm2()
    if place is not None:
        handle = handle_at(tpm, place)
        if handle is None:
            raise NotFound(f"The TPM has no key at {place:#x}.")
        public, _, _ = tpm.read_public(handle)
    else:
        attributes = library.TPMA_OBJECT.parse(_ATTRIBUTES)
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
        if place is None:
            tpm.flush_context(handle)
        else:
            tpm.tr_close(handle)


def quote_pcrs(tpm: Any, handle: Any, bound: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
    """TPMS_ATTEST, TPMT_SIGNATURE, and the values of all PCRs that it is about, by index.

    Raises:
        UsageError: the TPM does not keep the bank.
        Unavailable: PCRs change all the time.
    """
    _check_bank(tpm)
    every = f"{BANK}:" + ",".join(map(str, range(_PCRS)))
    for _ in range(_ATTEMPTS):
        pcrs = read_pcrs(tpm)
        attest, signature = tpm.quote(handle, every, bound)
        quote, signed = bytes(attest), signature.marshal()
        try:
            parse_attest(quote).check_pcrs({BANK: pcrs}, parse_signature(signed).hash_name)
        except NotAuthentic:
            continue
        return quote, signed, pcrs
    raise Unavailable("The PCRs of the TPM change faster than they can be quoted.")


def _check_bank(tpm: Any) -> None:
    library = tpm2()
    _, found = tpm.get_capability(library.TPM2_CAP.PCRS, 0)
    banks = {selection.hash for selection in found.data.assignedPCR if any(bytes(selection.pcrSelect))}
    if library.TPM2_ALG.SHA256 not in banks:
        raise UsageError(
            "The TPM keeps no PCRs in SHA-256.",
            hint="Allocate the bank in the firmware's set-up, or: tpm2_pcrallocate sha256:all",
        )


def read_pcrs(tpm: Any) -> dict[int, bytes]:
    """The values now; a TPM gives at most eight at once."""
    values: dict[int, bytes] = {}
    for first in range(0, _PCRS, 8):
        indices = range(first, first + 8)
        _, _, digests = tpm.pcr_read(f"{BANK}:" + ",".join(map(str, indices)))
        if len(digests) != len(indices):
            raise Unavailable("The TPM does not give all of its PCRs.")
        values.update(zip(indices, map(bytes, digests), strict=True))
    return values
