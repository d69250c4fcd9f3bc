"""Engines that know nothing of strongroom read sealed models through ``strongroom run``."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import engines
import pytest
from mounts import write_key_file
from running import FUSE, Run, environment

import strongroom

HERE = [
    engine
    for engine, packages in engines.PACKAGES.items()
    if all(importlib.util.find_spec(one) is not None for one in packages)
]
# Those that are imported at once read from memory too.
QUICK = [engine for engine in HERE if engine in ("onnxruntime", "llama_cpp")]
PROGRAM = [sys.executable, engines.__file__]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A key, ``plain/`` with a model for each engine, and each of them sealed."""
    if not HERE:
        pytest.skip("no engine is installed")
    place = tmp_path_factory.mktemp("engines")
    command = [*PROGRAM, "make", place / "plain", *HERE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    key = write_key_file(place)
    for engine in HERE:
        sealed = place / f"{engine}.sealed"
        strongroom.seal(Path(place, "plain", engine), sealed, key=key, segment_size=65536)
    return place


@pytest.mark.parametrize(
    ("backend", "names"),
    [pytest.param("fuse", HERE, marks=FUSE.marks, id="fuse"), pytest.param("tmpfs", QUICK, id="tmpfs")],
)
def test_engines(place, backend, names):
    models = [word for one in names for word in ("--model", place / f"{one}.sealed")]
    command = [*PROGRAM, "compare", place / "plain", "{models}", *names]
    one = Run(*models, "-k", place / "key.txt", "--backend", backend, "--", *command, env=environment())
    code, out, err = one.end()
    one.close()
    assert (code, out.splitlines()) == (0, [f"{engine} True" for engine in names]), err
