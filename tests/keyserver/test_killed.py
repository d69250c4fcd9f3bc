"""Killed under load: nothing that was acknowledged is lost. `benchmarks/keyserver_kills.py` does it 100 times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "keyserver_kills.py"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nothing_acknowledged_is_lost(kind):
    if kind == "postgresql":
        from postgres import binaries

        if binaries() is None:
            pytest.skip("PostgreSQL is not installed")
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", "4", "--longest", "0.6", "--database", kind],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: 4 kills" in done.stdout and "every audit trail is whole" in done.stdout
