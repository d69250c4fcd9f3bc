"""The attestation report of an NVIDIA GPU or NVSwitch: bytes to fields; nothing is verified here.

A report is an SPDM 1.1 exchange (DMTF DSP0274): the GET_MEASUREMENTS request of 37 bytes, then the
MEASUREMENTS response, whose signature covers both. The nonce of whoever asked stands in the request;
the one in the response is the device's own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from strongroom.errors import MalformedEvidence

__all__ = ["ENABLED", "MAX_REPORT", "NONCE_SIZE", "SIGNATURE_SIZE", "Opaque", "Report", "parse_report"]

MAX_REPORT: Final = 8 << 10
"""Bytes. The largest known has 4.1 KB."""

NONCE_SIZE: Final = 32
SIGNATURE_SIZE: Final = 96
"""ECDSA P-384, r and s, each big endian."""

ENABLED: Final = b"\xaa"
"""What a field of the opaque data holds for "on"; 0x55 means "off"."""

_REQUEST_SIZE: Final = 37
_VERSION: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_SIGNED: Final = 0x01
_ALL_BLOCKS: Final = 0xFF
_DMTF: Final = 0x01
_MAX_VALUE: Final = 64


class Opaque:
    """Types of the fields in the opaque data, by NVIDIA's numbers."""

    DRIVER_VERSION: Final = 3
    VBIOS_VERSION: Final = 6
    NVDEC0_STATUS: Final = 11
    CHIP_SKU: Final = 15
    PROJECT: Final = 17
    PROJECT_SKU: Final = 18
    FWID: Final = 20
    PROTECTED_PCIE: Final = 21
    CHIP_INFO: Final = 35
    FEATURE_FLAG: Final = 36


@dataclass(frozen=True, slots=True)
class Report:
    """One report.

    Attributes:
        nonce: of the request, 32 bytes: what the report is bound to.
        measurements: number of the SPDM block, from 1 on → value.
        opaque: type → what the driver and firmware say of themselves, signed as everything.
        signed: what the signature covers.
        signature: r and s, 48 bytes each.
    """

    nonce: bytes
    measurements: Mapping[int, bytes] = field(repr=False)
    opaque: Mapping[int, bytes] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def text(self, kind: int) -> str:
        """A field of the opaque data that is text; empty where there is none.

        Raises:
            MalformedEvidence: it is not printable ASCII, up to the zero that ends it.
        """
        raw = self.opaque.get(kind, b"").split(b"\x00", 1)[0]
        if not raw.isascii() or not raw.decode("ascii").isprintable():
            raise MalformedEvidence("A version in the report of the GPU is not text.")
        return raw.decode("ascii").strip()

    @property
    def vbios(self) -> str:
        """``96.00.9F.00.01``; a GPU says it in eight bytes, little endian, a switch as text."""
        raw = self.opaque.get(Opaque.VBIOS_VERSION, b"")
        if len(raw) != 8:
            return self.text(Opaque.VBIOS_VERSION).upper()
        value = raw[::-1]
        return ".".join(f"{byte:02X}" for byte in value[4:] + value[3:4])


def parse_report(data: bytes) -> Report:
    """Split a report into its fields; every byte is accounted for.

    Raises:
        MalformedEvidence: it is something else, or longer than :data:`MAX_REPORT`.
    """
    if len(data) > MAX_REPORT:
        raise MalformedEvidence(f"The report of a GPU has more than {MAX_REPORT} bytes.")
    try:
        return _parse(data)
    except (struct.error, ValueError):
        raise MalformedEvidence("The report of the GPU is not a signed SPDM 1.1 exchange.") from None


def _parse(data: bytes) -> Report:
    version, code, attributes, which = struct.unpack_from("<4B", data)
    if (version, code, which) != (_VERSION, _GET_MEASUREMENTS, _ALL_BLOCKS) or not attributes & _SIGNED:
        raise ValueError
    response = memoryview(data)[_REQUEST_SIZE:]
    version, code, _, _, blocks, low, high = struct.unpack_from("<5BHB", response)
    if (version, code) != (_VERSION, _MEASUREMENTS):
        raise ValueError
    record = bytes(_take(response, 8, low | high << 16))
    at = 8 + len(record) + NONCE_SIZE
    (opaque_size,) = struct.unpack_from("<H", response, at)
    opaque = bytes(_take(response, at + 2, opaque_size))
    end = at + 2 + opaque_size
    if len(response) != end + SIGNATURE_SIZE:
        raise ValueError
    return Report(
        nonce=data[4 : 4 + NONCE_SIZE],
        measurements=_measurements(record, blocks),
        opaque=_opaque(opaque),
        signed=data[:-SIGNATURE_SIZE],
        signature=data[-SIGNATURE_SIZE:],
    )


def _take(data: bytes | memoryview, at: int, size: int) -> bytes | memoryview:
    part = data[at : at + size]
    if len(part) != size:
        raise ValueError
    return part


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    for _ in range(count):
        index, specification, size, _kind, value_size = struct.unpack_from("<BBHBH", record, at)
        if specification != _DMTF or size != value_size + 3 or not 0 < value_size <= _MAX_VALUE:
            raise ValueError
        if index in found or index == 0:
            raise ValueError
        found[index] = bytes(_take(record, at + 7, value_size))
        at += 7 + value_size
    if at != len(record) or not found:
        raise ValueError
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<HH", data, at)
        # Said twice, a driver version could be one to us and another to somebody else.
        if kind in found:
            raise ValueError
        found[kind] = bytes(_take(data, at + 4, size))
        at += 4 + size
    return found
