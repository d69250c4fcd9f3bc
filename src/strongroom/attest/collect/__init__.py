"""Collectors: evidence of the machine that this runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from strongroom.attest.collect.base import Collector
from strongroom.errors import UsageError

__all__ = ["Collector", "open_collector"]


def open_collector(spec: str) -> Collector:
    """The collector that a spec names.

    =========================================== ==================================================
    spec                                        evidence
    =========================================== ==================================================
    ``tsm[:PATH]``                              TDX or SEV-SNP, by the kernel's configfs-tsm
    ``gramine[:PATH]``                          SGX, inside of an enclave by Gramine
    ``nitro[:DEVICE]``                          AWS Nitro Enclaves
    ``tpm[:TCTI][;key=HANDLE][;certificate=N]`` TPM 2.0; persistent key and NV index of its certificate
    ``azure[:TCTI]``                            confidential virtual machines of Azure, with SEV-SNP
    ``nvidia``                                  NVIDIA GPUs, by NVML; secondary
    ``exec:COMMAND``                            what a program prints
    ``auto``                                    the TEE or TPM that is there; Azure's is to be named
    =========================================== ==================================================

    Raises:
        UsageError: there is no such spec; or the machine has it not, or this user may not.
        MissingExtra: its packages are not installed.
    """
    name, colon, rest = spec.strip().partition(":")
    opener = _OPENERS.get(name.partition(";")[0])
    if opener is None or (colon and not rest):
        raise UsageError(
            f"{spec!r} names no collector of evidence.", hint="Known are: " + ", ".join(_OPENERS) + "."
        )
    if name.startswith("tpm;"):
        name, rest = "tpm", name.removeprefix("tpm")
    return opener(rest)


def _tsm(rest: str) -> Collector:
    from strongroom.attest.collect.tsm import DEFAULT_PATH, TsmCollector

    return TsmCollector(rest or DEFAULT_PATH)


def _gramine(rest: str) -> Collector:
    from strongroom.attest.collect.gramine import DEFAULT_PATH, GramineCollector

    return GramineCollector(rest or DEFAULT_PATH)


def _nitro(rest: str) -> Collector:
    from strongroom.attest.collect.nitro import DEFAULT_DEVICE, NitroCollector

    return NitroCollector(rest or DEFAULT_DEVICE)


def _tpm(rest: str) -> Collector:
    from strongroom.attest.collect.tpm import TpmCollector
    from strongroom.attest.collect.tpm_device import DEFAULT_TCTI

    tcti, *options = rest.split(";")
    numbers: dict[str, int] = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            numbers[name] = int(text, 0)
        except ValueError:
            numbers[name] = -1
    if not numbers.keys() <= {"key", "certificate"} or not all(
        0 <= number < 1 << 32 for number in numbers.values()
    ):
        raise UsageError("Options of tpm are ;key=HANDLE and ;certificate=INDEX, such as 0x81000003.")
    return TpmCollector(
        tcti or DEFAULT_TCTI, key=numbers.get("key"), certificate=numbers.get("certificate")
    )


def _azure(rest: str) -> Collector:
    from strongroom.attest.collect.azure import AzureCollector
    from strongroom.attest.collect.tpm_device import DEFAULT_TCTI

    return AzureCollector(rest or DEFAULT_TCTI)


def _nvidia(rest: str) -> Collector:
    from strongroom.attest.collect.nvidia import NvidiaCollector

    _nothing_more("nvidia", rest)
    return NvidiaCollector()


def _exec(rest: str) -> Collector:
    from strongroom.attest.collect.exec import ExecCollector

    return ExecCollector(rest)


def _auto(rest: str) -> Collector:
    from strongroom.attest.collect.auto import find_collector

    _nothing_more("auto", rest)
    return find_collector()


def _nothing_more(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name} takes nothing after it.")


_OPENERS: Final[Mapping[str, Callable[[str], Collector]]] = {
    "auto": _auto,
    "tsm": _tsm,
    "gramine": _gramine,
    "nitro": _nitro,
    "tpm": _tpm,
    "azure": _azure,
    "nvidia": _nvidia,
    "exec": _exec,
}
