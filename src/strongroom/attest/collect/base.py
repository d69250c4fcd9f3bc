"""What every collector is, and the bytes that it binds evidence to."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from strongroom.attest.evidence import Evidence
from strongroom.errors import UsageError

__all__ = ["REPORT_DATA", "Collector", "checked", "report_data"]

REPORT_DATA: Final = 64
"""Bytes of report data in quotes of SGX and TDX and in reports of SEV-SNP."""


@runtime_checkable
class Collector(Protocol):
    """Makes evidence of the machine that it runs on."""

    @property
    def kind(self) -> str:
        """Of the evidence; known before any is collected, as what it is bound to depends on it."""
        ...

    def collect(self, bound: bytes) -> Evidence:
        """Evidence that carries ``bound``, made now.

        Args:
            bound: report data, nonce or user data, as the kind names it; at most 64 bytes, exactly 32
                for GPUs. Where there is room for 64 and they are fewer, zeros follow.

        Raises:
            UsageError: this machine cannot, or this user may not; says what is missing.
            Unavailable: it could not now.
        """
        ...


def checked(bound: bytes, most: int = REPORT_DATA) -> bytes:
    """``bound``, which is neither empty nor too long.

    Raises:
        UsageError: it is. Evidence that is bound to nothing proves nothing.
    """
    if not 0 < len(bound) <= most:
        raise UsageError(f"Evidence can be bound to 1 to {most} bytes, not to {len(bound)}.")
    return bytes(bound)


def report_data(bound: bytes) -> bytes:
    """The 64 bytes of report data that ``bound`` becomes."""
    return checked(bound).ljust(REPORT_DATA, b"\x00")
