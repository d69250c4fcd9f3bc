"""The demo as a user runs it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.mark.slow
def test_every_claim_of_the_demo_holds(tmp_path):
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--directory", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"(\d+) of (\d+) claims hold", done.stdout)
    assert match
    assert match[1] == match[2] == "38"
    for said in (
        "digits.safetensors: segment 2 does not authenticate.",
        "The given key does not open this model",
        "(exit code 5)",
        "(exit code 4)",
        "Version 2 of digits cannot be loaded: digits.onnx: segment 2 does not authenticate.",
        "400 answered, 0 failed",
        "the model is loaded, and nobody has named a key",
        "its policy does not accept this machine",
        "The audit trail is whole",
    ):
        assert said in done.stdout
    # A long path is broken at the end of a line.
    assert f"thechartisin{folder}/serving/latency.png" in "".join(done.stdout.split())
    accuracies = re.findall(r"([\d.]+)% │ +([\d.]+)%", done.stdout)
    assert len(accuracies) == 4
    assert all(plain == sealed and float(sealed) > 95 for plain, sealed in accuracies)
    assert "Traceback" not in done.stderr
    assert (folder / "serving" / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "serving" / "pki" / "server.key").exists()
    key = (folder / "key.txt").read_text().strip()
    assert key not in done.stdout + done.stderr


@pytest.fixture
def digits(monkeypatch):
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "digits", module)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.delitem(sys.modules, "telling", raising=False)
    spec.loader.exec_module(module)
    return module


def test_a_claim_that_does_not_hold_fails_the_demo(digits, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(digits, "demo", lambda folder: digits.claim("pigs fly", False))
    monkeypatch.setattr(sys, "argv", ["digits.py", "--directory", str(tmp_path / "demo")])
    assert digits.main() == 1
    assert "✘ pigs fly" in capsys.readouterr().out


def test_it_removes_only_what_is_its_own(digits, monkeypatch, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.setattr(sys, "argv", ["digits.py", "--directory", str(tmp_path)])
    with pytest.raises(SystemExit):
        digits.main()
    assert (tmp_path / "thesis.txt").read_text() == "precious"
