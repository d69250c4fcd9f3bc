"""The tutorial and the how-to pages are run as they are read: their files are written, their commands run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import DOCS, name, script

# Installing is the reader's; the environment of the tests has it all.
WITHOUT = ("pip install ", "python3 -m venv ")

NEEDS = {
    "tutorial.md": ("torch", "safetensors", "sklearn"),
    "how-to/write-straight-from-training.md": ("torch", "safetensors"),
    "how-to/pipes-and-scripts.md": (),
    "how-to/keys-and-recipients.md": (),
    "how-to/run-a-key-server.md": ("fastapi", "sqlalchemy", "uvicorn"),
    "how-to/use-a-key-server.md": ("fastapi", "sqlalchemy", "uvicorn", "dcap_qvl"),
    "how-to/seal-a-hugging-face-model.md": ("torch", "transformers"),
    "how-to/make-certificates.md": (),
    "how-to/load-in-your-framework.md": (
        *("torch", "safetensors", "onnxruntime", "onnx", "onnxscript"),
    ),
    "how-to/read-with-tink.md": ("tink",),
    "how-to/bring-over.md": (),
    "how-to/from-model-cryptor.md": ("torch",),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", NEEDS)
def test_page_runs(page, tmp_path):
    for module in ("typer", *NEEDS[page]):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{page} needs the package of {module}")
    path = DOCS / page
    text = script(path, WITHOUT)
    if "/dev/shm" in text:
        # As the page says it, but apart from other runs.
        shm = Path("/dev/shm", f"strongroom-docs-{os.getpid()}")
        shm.mkdir()
        text = text.replace("/dev/shm", str(shm))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STRONGROOM_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["HF_HUB_OFFLINE"] = "1"
    try:
        done = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    finally:
        if "/dev/shm" in script(path):
            shm.rmdir()
    assert done.returncode == 0, f"{name(path)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
