"""Intel SGX under Gramine: ``/dev/attestation`` inside of the enclave.

Run against files that behave as Gramine's documentation says; not in an enclave.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from strongroom.attest.collect.base import report_data
from strongroom.attest.dcap_quote import Quote
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.errors import NotFound, Unavailable, UsageError, os_errors

__all__ = ["DEFAULT_PATH", "GramineCollector"]

DEFAULT_PATH: Final = "/dev/attestation"
_LOCK: Final = threading.Lock()
"""The report data belong to the whole process: what one thread writes, another's quote would carry."""


class GramineCollector:
    """Quotes of the enclave that this process runs in.

    Args:
        path: directory of the pseudo-files.

    Raises:
        NotFound: this does not run under Gramine.
        UsageError: Gramine runs without SGX, or the manifest does not switch DCAP on.
    """

    kind = "sgx"

    def __init__(self, path: str = DEFAULT_PATH) -> None:
        self._path = path
        if not os.path.isdir(path):
            raise NotFound(
                f"There is no {path}: this does not run under Gramine with SGX.",
                hint='Run it by gramine-sgx, with sgx.remote_attestation = "dcap" in the manifest.',
            )
        kind = self._read("attestation_type", 100).decode("ascii", "replace").strip()
        if kind != "dcap":
            raise UsageError(
                f"The remote attestation of this enclave is {kind!r}, not 'dcap'.",
                hint='Set sgx.remote_attestation = "dcap" in the manifest, and sign it again.',
            )

    def collect(self, bound: bytes) -> Evidence:
        data = report_data(bound)
        with _LOCK:
            where = os.path.join(self._path, "user_report_data")
            with os_errors(where), open(where, "wb", buffering=0) as file:
                file.write(data)
            quote = self._read("quote", MAX_EVIDENCE)
        # Older versions of Gramine pad the quote to 8192 bytes.
        if Quote.parse(quote).report_data != data:
            raise Unavailable(
                "The quote is not bound to what was asked: something else writes there too."
            )
        return Evidence(self.kind, quote)

    def _read(self, name: str, most: int) -> bytes:
        where = os.path.join(self._path, name)
        with os_errors(where), open(where, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise Unavailable(f"{where} has more than {most} bytes.")
        return data
