"""Quotes of Intel SGX and TDX: what they say, before anybody knows whether it is true.

Layouts: Intel SGX ECDSA QuoteGenReq/QuoteVerify library reference (v3), Intel TDX DCAP Quoting Library
API (v4, v5). All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import MalformedEvidence

__all__ = ["Quote"]

_HEADER: Final = 48
_SGX, _TDX = 0x00, 0x81

_SGX_BODY: Final = {
    "cpu_svn": (0, 16),
    "misc_select": (16, 4),
    "isv_ext_prod_id": (32, 16),
    "attributes": (48, 16),
    "mr_enclave": (64, 32),
    "mr_signer": (128, 32),
    "config_id": (192, 64),
    "isv_prod_id": (256, 2),
    "isv_svn": (258, 2),
    "config_svn": (260, 2),
    "isv_family_id": (304, 16),
    "report_data": (320, 64),
}
_TD_BODY: Final = {
    "tee_tcb_svn": (0, 16),
    "mr_seam": (16, 48),
    "mr_signer_seam": (64, 48),
    "seam_attributes": (112, 8),
    "td_attributes": (120, 8),
    "xfam": (128, 8),
    "mr_td": (136, 48),
    "mr_config_id": (184, 48),
    "mr_owner": (232, 48),
    "mr_owner_config": (280, 48),
    "rtmr0": (328, 48),
    "rtmr1": (376, 48),
    "rtmr2": (424, 48),
    "rtmr3": (472, 48),
    "report_data": (520, 64),
}
_TD15_BODY: Final = {**_TD_BODY, "tee_tcb_svn2": (584, 16), "mr_service_td": (600, 48)}
_NUMBERS: Final = {"isv_prod_id", "isv_svn", "config_svn", "misc_select"}

# Version and TEE, or the type of the body in version 5, to the kind, the size of the body and its parts.
# Body type 4 of version 5 (TD report 1.5 with migration) has never been seen, and is refused.
_Layout = tuple[str, int, Mapping[str, tuple[int, int]]]
_BY_TEE: Final[Mapping[tuple[int, int], _Layout]] = {
    (3, _SGX): ("sgx", 384, _SGX_BODY),
    (4, _TDX): ("tdx", 584, _TD_BODY),
}
_BY_BODY: Final[Mapping[tuple[int, int], _Layout]] = {
    (_TDX, 2): ("tdx", 584, _TD_BODY),
    (_TDX, 3): ("tdx", 648, _TD15_BODY),
}


@dataclass(frozen=True, slots=True)
class Quote:
    """The signed part of a quote.

    Attributes:
        kind: of the evidence: ``sgx`` or ``tdx``.
        version: of the quote's format.
        values: the members of the report, hexadecimal text or numbers, without the report data.
        report_data: 64 bytes, the choice of the one who asked for the quote.
        debug: the host can look into the enclave or trust domain.
    """

    kind: str
    version: int
    values: Mapping[str, Any]
    report_data: bytes
    debug: bool

    @classmethod
    def parse(cls, data: bytes) -> Quote:
        """Parse a quote of version 3, 4 or 5.

        Zero bytes behind its end are accepted, since kernels hand quotes out in buffers of 8000
        bytes; others are not.

        Raises:
            MalformedEvidence: it is something else, or cut.
        """
        if len(data) < _HEADER + 6:
            raise MalformedEvidence("The quote is cut: not even its header is there.")
        version, tee = _number(data, 0, 2), _number(data, 4, 4)
        start = _HEADER
        if version == 5:
            layout = _BY_BODY.get((tee, _number(data, start, 2)))
            if layout is not None and _number(data, start + 2, 4) != layout[1]:
                raise MalformedEvidence("The body of the quote does not have the size of its type.")
            start += 6
        else:
            layout = _BY_TEE.get((version, tee))
        if layout is None:
            raise MalformedEvidence(
                f"This is not a quote of a known form: version {version}, TEE type {tee:#x}.",
                hint="Known are SGX in version 3 and TDX in versions 4 and 5, with ECDSA signatures.",
            )
        kind, size, parts = layout
        body, end = data[start : start + size], start + size + 4
        end += _number(data, start + size, 4)
        if len(body) < size or len(data) < end:
            raise MalformedEvidence("The quote is cut: it ends before its signature does.")
        if data.count(0, end) != len(data) - end:
            raise MalformedEvidence("Something stands behind the end of the quote.")
        values: dict[str, Any] = {}
        for name, (offset, length) in parts.items():
            part = body[offset : offset + length]
            values[name] = int.from_bytes(part, "little") if name in _NUMBERS else part.hex()
        report_data = bytes.fromhex(values.pop("report_data"))
        # SGX ATTRIBUTES.DEBUG is bit 1; the TUD byte of TDX must be zero outside of debugging.
        debug = bool(body[48] & 2) if kind == "sgx" else body[120] != 0
        return cls(kind, version, values, report_data, debug)


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")
