"""NVIDIA GPUs in confidential-computing mode, by NVML (``nvidia-ml-py``).

Run with a stand-in that has the structures and the functions of NVML by name; not on a GPU in
confidential-computing mode.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from strongroom.attest.collect.base import checked
from strongroom.attest.evidence import Evidence
from strongroom.attest.nvidia_evidence import write_devices
from strongroom.errors import MissingExtra, NotFound, Unavailable, UsageError

__all__ = ["NvidiaCollector"]

_NONCE: Final = 32
_LOCK: Final = threading.Lock()
"""NVML is opened and closed for the whole process."""


class NvidiaCollector:
    """The reports of all GPUs that this machine has, bound to one nonce.

    It is secondary evidence: a CPU must vouch for it.

    Args:
        library: as ``pynvml``; by default that.

    Raises:
        MissingExtra: nvidia-ml-py is not installed.
    """

    kind = "nvidia"

    def __init__(self, library: Any = None) -> None:
        self._nvml = _pynvml() if library is None else library

    def collect(self, bound: bytes) -> Evidence:
        if len(checked(bound, _NONCE)) != _NONCE:
            raise UsageError(f"The nonce of a GPU has {_NONCE} bytes, not {len(bound)}.")
        with _LOCK:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                raise NotFound(
                    f"The driver of NVIDIA does not answer: {error}.",
                    hint="See whether nvidia-smi works for this user.",
                ) from error
            try:
                devices = [self._device(index, bound) for index in range(self._count())]
            except self._nvml.NVMLError as error:
                raise self._explained(error) from error
            finally:
                self._nvml.nvmlShutdown()
        return Evidence(self.kind, write_devices(devices))

    def _count(self) -> int:
        count = int(self._nvml.nvmlDeviceGetCount())
        if count == 0:
            raise NotFound("The driver of NVIDIA knows no GPU.")
        return count

    def _device(self, index: int, nonce: bytes) -> tuple[bytes, bytes]:
        """The report and the chain, in PEM and leaf first, of one GPU."""
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        found = self._nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
        report = bytes(found.attestationReport[: found.attestationReportSize])
        certificate = self._nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
        chain = bytes(certificate.attestationCertChain[: certificate.attestationCertChainSize])
        return report, chain

    def _explained(self, error: Exception) -> UsageError | Unavailable:
        if isinstance(error, self._nvml.NVMLError_NotSupported):
            return UsageError(
                "The GPU makes no reports: it is not in confidential-computing mode.",
                hint="nvidia-smi conf-compute -f shows the mode; the host sets it.",
            )
        return Unavailable(f"The GPU made no report: {error}.")


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        raise MissingExtra("Evidence of NVIDIA GPUs", "nvidia") from None
    return pynvml
