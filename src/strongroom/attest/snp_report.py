"""The attestation report of AMD SEV-SNP: bytes to fields; nothing is verified here.

ATTESTATION_REPORT of AMD's document 56860, versions 2 to 5. All numbers are little-endian. How a TCB
version is laid out depends on the product, which a report of version 2 does not name: the certificate
of the key that signed it does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import MalformedEvidence

__all__ = [
    "CHIP_ID_SIZE",
    "PRODUCTS",
    "REPORT_SIZE",
    "SIGNED_SIZE",
    "Product",
    "Report",
    "parse_report",
]

REPORT_SIZE: Final = 0x4A0
SIGNED_SIZE: Final = 0x2A0
CHIP_ID_SIZE: Final = 64
_SIGNATURE_END: Final = SIGNED_SIZE + 144

_VERSIONS: Final = range(2, 6)
_ECDSA_P384_SHA384: Final = 1
_SIGNERS: Final = {0: "vcek", 1: "vlek"}

_POLICY: Final = {
    16: "smt",
    18: "migrate_ma",
    19: "debug",
    20: "single_socket",
    21: "cxl_allow",
    22: "mem_aes_256_xts",
    23: "rapl_dis",
    24: "ciphertext_hiding_dram",
    25: "page_swap_disable",
}
_MUST_BE_ONE: Final = 17
_PLATFORM_INFO: Final = {
    0: "smt_en",
    1: "tsme_en",
    2: "ecc_en",
    3: "rapl_dis",
    4: "ciphertext_hiding_dram_en",
    5: "alias_check_complete",
    7: "tio_en",
}
_TCBS: Final = {"current": 0x38, "reported": 0x180, "committed": 0x1E0, "launch": 0x1F0}


@dataclass(frozen=True, slots=True)
class Product:
    """A line of processors with a root key of its own.

    Attributes:
        name: as AMD's key server spells it; processors of a line share it (Siena and Bergamo are Genoa).
        tcb: component → byte of the TCB version.
        hwid_size: bytes of a chip's identity; in a report zeros follow.
        models: (family, first model, last model) of CPUID.
    """

    name: str
    tcb: Mapping[str, int]
    hwid_size: int
    models: tuple[tuple[int, int, int], ...]


_OLD_TCB: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TURIN_TCB: Final = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
PRODUCTS: Final[Mapping[str, Product]] = {
    "Milan": Product("Milan", _OLD_TCB, 64, ((0x19, 0x00, 0x0F),)),
    "Genoa": Product("Genoa", _OLD_TCB, 64, ((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF))),
    "Turin": Product("Turin", _TURIN_TCB, 8, ((0x1A, 0x00, 0x11),)),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One report; its fields are read where they are needed.

    Attributes:
        raw: all 1184 bytes.
        version: 2 to 5.
        signer: ``vcek`` (the chip's own key) or ``vlek`` (leased to a cloud provider).
    """

    raw: bytes
    version: int
    signer: str

    def field(self, at: int, size: int) -> bytes:
        """Some bytes."""
        return self.raw[at : at + size]

    def number(self, at: int, size: int) -> int:
        """A number."""
        return int.from_bytes(self.field(at, size), "little")

    @property
    def report_data(self) -> bytes:
        """What the guest has put into it, 64 bytes."""
        return self.field(0x50, 64)

    @property
    def chip_id(self) -> bytes:
        """64 bytes; zeros where the host hides it."""
        return self.field(0x1A0, CHIP_ID_SIZE)

    @property
    def debug(self) -> bool:
        """Whether the guest's policy lets the host read its memory."""
        return bool(self.number(0x8, 8) >> 19 & 1)

    @property
    def signed(self) -> bytes:
        """What the signature covers."""
        return self.raw[:SIGNED_SIZE]

    @property
    def signature(self) -> tuple[int, int]:
        """R and S."""
        return self.number(SIGNED_SIZE, 72), self.number(SIGNED_SIZE + 72, 72)

    @property
    def product(self) -> Product | None:
        """What the processor says it is; None before version 3, and for products that nobody knows."""
        if self.version < 3:
            return None
        family, model = self.raw[0x188], self.raw[0x189]
        for product in PRODUCTS.values():
            if any(family == of and first <= model <= last for of, first, last in product.models):
                return product
        return None

    @property
    def faults(self) -> list[str]:
        """Rules that firmware never breaks, in words."""
        if self.number(0x8, 8) >> _MUST_BE_ONE & 1:
            return []
        return [f"Bit {_MUST_BE_ONE} of the guest policy, which is always one, is zero."]

    def tcb(self, which: str, product: Product) -> dict[str, int]:
        """Component → version number; ``which`` is current, reported, committed or launch."""
        at = _TCBS[which]
        return {name: self.raw[at + byte] for name, byte in product.tcb.items()}

    def values(self, product: Product) -> dict[str, Any]:
        """The claims that stand in the report itself; of the product and signer only their names."""
        values: dict[str, Any] = {
            "version": self.version,
            "guest_svn": self.number(0x4, 4),
            "policy": _policy(self.number(0x8, 8)),
            "family_id": self.field(0x10, 16).hex(),
            "image_id": self.field(0x20, 16).hex(),
            "vmpl": self.number(0x30, 4),
            "platform_info": _flags(_PLATFORM_INFO, self.number(0x40, 8)),
            "measurement": self.field(0x90, 48).hex(),
            "host_data": self.field(0xC0, 32).hex(),
            "id_key_digest": self.field(0xE0, 48).hex(),
            "author_key_digest": self.field(0x110, 48).hex(),
            "report_id": self.field(0x140, 32).hex(),
            "tcb": {which: self.tcb(which, product) for which in _TCBS},
            "product": product.name,
            "signer": self.signer,
        }
        if self.version >= 5:
            # 64 bits do not fit into a number of JSON.
            values["launch_mit_vector"] = f"{self.number(0x1F8, 8):016x}"
            values["current_mit_vector"] = f"{self.number(0x200, 8):016x}"
        return values


def _flags(names: Mapping[int, str], bits: int) -> dict[str, Any]:
    return {name: bool(bits >> bit & 1) for bit, name in names.items()}


def _policy(bits: int) -> dict[str, Any]:
    return {"abi_minor": bits & 0xFF, "abi_major": bits >> 8 & 0xFF, **_flags(_POLICY, bits)}


def parse_report(data: bytes) -> Report:
    """A report of exactly 1184 bytes.

    Raises:
        MalformedEvidence: another size, version or algorithm, or no key has signed it.
    """
    if len(data) != REPORT_SIZE:
        raise MalformedEvidence(f"A report of SEV-SNP has {REPORT_SIZE} bytes, and not {len(data)}.")
    (version,) = struct.unpack_from("<I", data)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    (key_info,) = struct.unpack_from("<I", data, 0x48)
    if version not in _VERSIONS:
        raise MalformedEvidence(
            f"Reports of SEV-SNP of the version {version} are not known.",
            hint=f"Known are {_VERSIONS[0]} to {_VERSIONS[-1]}.",
        )
    if algorithm != _ECDSA_P384_SHA384:
        raise MalformedEvidence(f"The report names the signature algorithm {algorithm}, which is none.")
    if vmpl > 3:
        raise MalformedEvidence(f"The report is of the privilege level {vmpl}; there are 0 to 3.")
    signer = _SIGNERS.get(key_info >> 2 & 7)
    if data[_SIGNATURE_END:].strip(b"\0"):
        raise MalformedEvidence("The report has something behind its signature.")
    if signer is None or key_info >> 1 & 1:
        raise MalformedEvidence(
            "The report is not signed.",
            hint="The host hides the keys of its processor (MASK_CHIP_KEY).",
        )
    return Report(bytes(data), version, signer)
