"""The first example of the README works as it stands, and prints what it says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, blocks


@pytest.mark.slow
def test_the_first_example_runs(tmp_path):
    for module in ("typer", "torch"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the README needs the package of {module}")
    first = blocks(ROOT / "README.md")[0]
    commands = first.commands()
    # Installing is the reader's; the environment of the tests has it all.
    assert commands[0].startswith("pip install ")
    promised = [line for line in first.text.splitlines() if not line.startswith("$ ")]
    assert len(commands) > 5 and promised
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STRONGROOM_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands[1:])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-len(promised) :] == promised
