"""TPM 2.0: what a quote says, before anybody knows whether it is true.

TPMS_ATTEST and TPML_PCR_SELECTION of the TPM 2.0 Library, part 2 (sections 10.6, 10.12); keys and
signatures are in :mod:`.tpm_keys`. All numbers are big-endian. A structure has one length: what is
left over at its end is an error, as are algorithms that nobody should use any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import MalformedEvidence, NotAuthentic

__all__ = ["HASHES", "Attest", "PcrSelection", "StructureReader", "parse_attest", "pcr_digest"]

HASHES: Final[Mapping[int, str]] = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID → the name in hashlib. SHA-1 is refused: of signatures, of names, of PCR banks."""

_MAGIC: Final = 0xFF544347
_QUOTE: Final = 0x8018
_PCRS: Final = 24
_MAX_SELECT: Final = 8
"""Bytes of a PCR bitmap; three in every TPM for PCs."""

_MAX_STRUCTURE: Final = 2048
"""Bytes. A quote has some 150, a key with RSA 4096 some 560."""

_MAX_CLOCK: Final = 1 << 53
"""Milliseconds, 285 000 years: above it is no clock, and JSON does not keep it."""


class StructureReader:
    """Takes one structure of the TPM apart; ``what`` is its name in messages."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > _MAX_STRUCTURE:
            raise MalformedEvidence(f"The {what} has more than {_MAX_STRUCTURE} bytes.")
        self._data = data
        self._at = 0
        self._what = what

    def fault(self, problem: str) -> MalformedEvidence:
        """The error to raise."""
        return MalformedEvidence(f"The {self._what} {problem}.")

    def take(self, size: int) -> bytes:
        """The next bytes."""
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise self.fault("is cut off")
        self._at += size
        return data

    def number(self, size: int) -> int:
        """The next big-endian number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """The content of a TPM2B: 16 bits of length, and that many bytes."""
        return self.take(self.number(2))

    def hash_name(self) -> str:
        """The next algorithm, which must be a hash of :data:`HASHES`."""
        algorithm = self.number(2)
        if algorithm not in HASHES:
            raise self.fault(f"uses the hash {algorithm:#06x}, which is not accepted")
        return HASHES[algorithm]

    def end(self) -> None:
        """Nothing is left."""
        if self._at != len(self._data):
            raise self.fault(f"has {len(self._data) - self._at} bytes too many")


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """PCRs of one bank: ``bank`` is the name of its hash, ``indices`` are ascending."""

    bank: str
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attest:
    """A quote: TPMS_ATTEST of the type TPM_ST_ATTEST_QUOTE.

    Attributes:
        qualified_signer: qualified name of the key that signs, as it stands there.
        extra_data: the qualifying data that the caller gave, at most 64 bytes.
        clock: milliseconds that the TPM has been powered on for, all in all.
        reset_count: of TPM resets; another one each time the machine starts.
        restart_count: of resumes and restarts since.
        safe: no higher clock was reported before.
        firmware_version: 8 bytes. This and the counts are blinded, for keys outside of the hierarchies of
            endorsement and platform.
        selections: what was quoted, no bank twice.
        pcr_digest: over the values of those PCRs.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: bytes
    selections: Sequence[PcrSelection]
    pcr_digest: bytes

    def check_pcrs(self, pcrs: Mapping[str, Mapping[int, bytes]], hash_name: str) -> None:
        """These are the values that were quoted.

        Args:
            pcrs: bank → index → value, of all PCRs that the quote selects; further ones are not looked at.
            hash_name: that of the signature: the TPM takes the same for the digest.

        Raises:
            MalformedEvidence: one is missing or has a wrong size.
            NotAuthentic: another value was quoted.
        """
        if pcr_digest(self.selections, pcrs, hash_name) != self.pcr_digest:
            raise NotAuthentic("The PCR values are not those that the TPM has quoted.")

    def values(self) -> dict[str, Any]:
        """Firmware and clock in the form of claims."""
        return {
            "firmware_version": self.firmware_version.hex(),
            "clock": {
                "milliseconds": self.clock,
                "resets": self.reset_count,
                "restarts": self.restart_count,
                "safe": self.safe,
            },
        }


def parse_attest(data: bytes) -> Attest:
    """Parse TPMS_ATTEST.

    A restricted key signs nothing from outside that begins with the magic number: whoever has the TPM
    cannot make it sign a quote that he wrote himself.

    Raises:
        MalformedEvidence: it is no quote, is cut off or too long, or has a hash that is not accepted.
    """
    reader = StructureReader(data, "quote")
    if reader.number(4) != _MAGIC:
        raise reader.fault("was not made by a TPM")
    if reader.number(2) != _QUOTE:
        raise reader.fault("is another statement of a TPM than a quote")
    signer, extra = reader.sized(), reader.sized()
    if len(extra) > 64:
        raise reader.fault("has more than 64 bytes of qualifying data")
    clock, resets, restarts = reader.number(8), reader.number(4), reader.number(4)
    if clock >= _MAX_CLOCK:
        raise reader.fault("has a clock that runs since too long")
    safe = reader.number(1)
    if safe > 1:
        raise reader.fault("has a truth value that is neither")
    firmware = reader.take(8)
    selections = _selections(reader)
    digest = reader.sized()
    reader.end()
    return Attest(signer, extra, clock, resets, restarts, safe == 1, firmware, selections, digest)


def _selections(reader: StructureReader) -> tuple[PcrSelection, ...]:
    count = reader.number(4)
    if not 0 < count <= len(HASHES):
        raise reader.fault(f"selects PCRs of {count} banks")
    found = []
    for _ in range(count):
        bank, size = reader.hash_name(), reader.number(1)
        if not 0 < size <= _MAX_SELECT:
            raise reader.fault("has a PCR bitmap of a wrong size")
        bits = int.from_bytes(reader.take(size), "little")
        if bits >> _PCRS:
            raise reader.fault(f"selects a PCR above {_PCRS - 1}")
        found.append(PcrSelection(bank, tuple(index for index in range(_PCRS) if bits >> index & 1)))
    if len({selection.bank for selection in found}) != len(found):
        raise reader.fault("selects one bank twice")
    if not any(selection.indices for selection in found):
        raise reader.fault("is of no PCR at all")
    return tuple(found)


def pcr_digest(
    selections: Sequence[PcrSelection], pcrs: Mapping[str, Mapping[int, bytes]], hash_name: str
) -> bytes:
    """The digest that a TPM quotes for these values: in the order of the selections, then of the indices.

    Args:
        selections: as in the quote.
        pcrs: bank → index → value.
        hash_name: one of :data:`HASHES`.

    Raises:
        MalformedEvidence: a value is missing or has another size than its bank.
    """
    digest = hashlib.new(hash_name)
    for selection in selections:
        size = hashlib.new(selection.bank).digest_size
        bank = pcrs.get(selection.bank, {})
        for index in selection.indices:
            if len(bank.get(index, b"")) != size:
                raise MalformedEvidence(
                    f"The value of PCR {index} of the bank {selection.bank} is missing or cut off."
                )
            digest.update(bank[index])
    return digest.digest()
