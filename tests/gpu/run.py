"""Run the tests of the loaders on a GPU, and say what has run.

    python tests/gpu/run.py [arguments of pytest]

Ends with 0 if something ran and nothing failed.
"""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.errors import StrongroomError
from strongroom.loaders.cuda import require_driver

MODULES = (
    *("strongroom", "torch", "safetensors", "onnxruntime", "tensorrt", "tensorrt_lean"),
    *("tensorrt_dispatch", "torch2trt", "tensorflow", "paddle"),
)


def packages():
    """The installed packages that these modules are from."""
    of = importlib.metadata.packages_distributions()
    for name in sorted({package for module in MODULES for package in of.get(module, ())}):
        yield f"{name} {importlib.metadata.version(name)}"


def machine():
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return "no nvidia-smi"


class Outcomes:
    """What became of each test."""

    def __init__(self):
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("/")[2]
        if report.skipped:
            self.found[name] = f"did not run: {report.longrepr[2].removeprefix('Skipped: ')}"
        elif report.failed:
            self.found[name] = f"FAILED in {report.when}"
        elif report.when == "call":
            self.found.setdefault(name, "ran")


def main():
    try:
        require_driver("tests/gpu")
    except StrongroomError as error:
        print(f"Nothing ran. {error} {error.hint or ''}")
        return error.exit_code
    outcomes = Outcomes()
    folder = str(Path(__file__).parent)
    status = pytest.main(["-p", "no:cacheprovider", *sys.argv[1:], folder], plugins=[outcomes])
    print(f"\nPython {platform.python_version()}, {machine()}")
    print(", ".join(packages()))
    for name, outcome in outcomes.found.items():
        print(f"  {name}: {outcome}")
    if "ran" not in outcomes.found.values():
        print("Nothing ran.")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
