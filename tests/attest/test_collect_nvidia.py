"""NVML: the real ``pynvml``, with its own structures, over a library that answers as the driver does."""

from __future__ import annotations

import ctypes
from datetime import UTC, datetime

import pytest
from recorded import fixed_time, read

from strongroom.attest.collect import open_collector
from strongroom.attest.collect.nvidia import NvidiaCollector
from strongroom.attest.nvidia_evidence import read_devices
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MissingExtra, NotFound, Unavailable, UsageError
from strongroom.testing.nvidia import NvidiaPki

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

NONCE = bytes(range(32))
SUCCESS, NOT_SUPPORTED, UNKNOWN = 0, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN


class Library:
    """libnvidia-ml.so.1: the functions that the collector needs, by their names in C.

    Args:
        devices: of each the chain, PEM, and what makes its report from the nonce.
    """

    def __init__(self, devices, status: int = SUCCESS) -> None:
        self.devices, self.status = devices, status
        self.open = 0
        self.nvmlErrorString = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(
            lambda code: b"an error"
        )

    def nvmlInitWithFlags(self, flags) -> int:
        self.open += 1
        return SUCCESS

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return SUCCESS

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = len(self.devices)
        return SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        self.handle = index.value
        return SUCCESS

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle, found) -> int:
        _, make = self.devices[self.handle]
        report = make(bytes(found._obj.nonce))
        found._obj.attestationReport[: len(report)] = report
        found._obj.attestationReportSize = len(report)
        return self.status

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle, found) -> int:
        chain, _ = self.devices[self.handle]
        # The driver counts the zero at the end, and what lies behind it is not cleared.
        data = chain + b"\x00"
        found._obj.attestationCertChain[:] = [0xEE] * len(found._obj.attestationCertChain)
        found._obj.attestationCertChain[: len(data)] = data
        found._obj.attestationCertChainSize = len(data)
        return self.status


@pytest.fixture
def driver(monkeypatch):
    """Puts a library where pynvml has loaded it, were it there."""

    def put(library: Library) -> Library:
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return library

    return put


def test_the_report_and_the_chain_of_a_real_gpu(driver):
    """Recorded; its nonce is its own."""
    library = driver(Library([(read("nvidia/h100.pem"), lambda nonce: read("nvidia/h100.report"))]))
    evidence = open_collector("nvidia").collect(NONCE)
    ((report, chain),) = read_devices(evidence.data)
    assert report == read("nvidia/h100.report")
    assert len(chain) == 4, "the root is left out"
    assert library.open == 0
    context = Context(fixed_time("nvidia/h100.report"), production())
    assert verify(evidence, context).values["devices"][0]["arch"] == "HOPPER"


def test_all_gpus_bind_to_the_nonce(driver):
    pki = NvidiaPki(datetime(2026, 1, 1, tzinfo=UTC))
    gpus = [pki.gpu() for _ in range(3)]
    driver(Library([(gpu.chain, gpu.report) for gpu in gpus]))
    evidence = NvidiaCollector().collect(NONCE)
    claims = verify(evidence, Context(datetime(2026, 11, 1, tzinfo=UTC), pki.roots(production())))
    assert claims.bound == NONCE
    assert len(claims.values["devices"]) == 3


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_the_nonce_has_32_bytes(driver, size):
    driver(Library([]))
    with pytest.raises(UsageError, match="32"):
        NvidiaCollector().collect(bytes(size))


def test_a_gpu_that_is_not_in_confidential_computing_mode(driver):
    library = driver(Library([(b"", lambda nonce: b"")], NOT_SUPPORTED))
    with pytest.raises(UsageError, match="confidential-computing mode") as caught:
        NvidiaCollector().collect(NONCE)
    assert "nvidia-smi" in (caught.value.hint or "")
    assert library.open == 0, "the library is closed after an error too"


def test_another_error(driver):
    driver(Library([(b"", lambda nonce: b"")], UNKNOWN))
    with pytest.raises(Unavailable, match="made no report"):
        NvidiaCollector().collect(NONCE)


def test_a_machine_without_a_gpu(driver):
    library = driver(Library([]))
    with pytest.raises(NotFound, match="knows no GPU"):
        NvidiaCollector().collect(NONCE)
    assert library.open == 0


def test_a_machine_without_the_driver(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError("no such library")))
    with pytest.raises(NotFound, match="driver of NVIDIA"):
        NvidiaCollector().collect(NONCE)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(MissingExtra) as caught:
        NvidiaCollector()
    assert "nvidia" in (caught.value.hint or "")
