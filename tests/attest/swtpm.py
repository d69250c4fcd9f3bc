"""A real TPM 2.0 in software, with endorsement keys whose certificates a CA of its own has signed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pytest

from ports import listens

PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_localca", "tpm2_pcrextend")


def require_swtpm() -> None:
    """Skip where the programs or the library are missing."""
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


class TpmMaker:
    """Makes TPMs, and is the CA of their endorsement keys."""

    def __init__(self, place: Path) -> None:
        self.place = place
        ca = place / "ca"
        ca.mkdir(parents=True)
        self._ca = ca
        (place / "ca.conf").write_text(
            f"statedir = {ca}\nsigningkey = {ca}/key.pem\nissuercert = {ca}/issuer.pem\n"
            f"certserial = {ca}/serial\n"
        )
        (place / "ca.options").write_text(
            "--platform-manufacturer Nobody\n--platform-version 1\n--platform-model None\n"
        )
        (place / "setup.conf").write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config = {place}/ca.conf\n"
            f"create_certs_tool_options = {place}/ca.options\n"
        )

    def make(self, name: str, banks: str = "sha256,sha384") -> Path:
        """A TPM as it leaves the factory: the directory of its state."""
        state = self.place / name
        state.mkdir()
        subprocess.run(
            [
                *("swtpm_setup", "--tpm2", "--create-ek-cert", "--pcr-banks", banks),
                *("--tpmstate", str(state), "--config", str(self.place / "setup.conf")),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return state

    @cached_property
    def issuer(self) -> bytes:
        """PEM of the CA that has signed the certificates; known after the first TPM is made."""
        return (self._ca / "issuer.pem").read_bytes()

    @cached_property
    def root(self) -> bytes:
        """PEM of the CA above it."""
        return (self._ca / "swtpm-localca-rootca-cert.pem").read_bytes()


class Tpm:
    """A TPM that is switched on; ``tcti`` says how to reach it."""

    def __init__(self, path: Path) -> None:
        self.tcti = f"swtpm:path={path}"

    def tool(self, *words: str) -> str:
        """Run one of the tpm2-tools against it; there is no resource manager, so keys are flushed after."""
        done = self._run(*words)
        self._run("flushcontext", "--transient-object")
        return done

    def _run(self, *words: str) -> str:
        name, *rest = words
        done = subprocess.run(
            [f"tpm2_{name}", "-T", self.tcti, *rest], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def extend(self, index: int, value: bytes) -> None:
        """Extend a PCR of the bank SHA-256."""
        self.tool("pcrextend", f"{index}:sha256={value.hex()}")


@contextmanager
def switched_on(state: Path, place: Path) -> Iterator[Tpm]:
    """Run a TPM on a copy of its state, so that the next one begins afresh."""
    shutil.copytree(state, place / "state")
    path = place / "tpm.sock"
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={place / 'state'}"),
            *("--server", f"type=unixio,path={path}"),
            *("--ctrl", f"type=unixio,path={path}.ctrl", "--flags", "not-need-init,startup-clear"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(path, process)  # the last that it makes
        yield Tpm(path)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not listens(path):
        assert process.poll() is None, "swtpm has ended"
        assert time.monotonic() < end, "swtpm does not start"
        time.sleep(0.005)
