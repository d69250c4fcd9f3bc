import subprocess
import sys

import pytest

import strongroom

FRAMEWORKS = (
    "torch", "numpy", "onnx", "onnxruntime", "safetensors", "transformers", "typer", "rich", "fsspec", "aiohttp", "matplotlib",
)  # fmt: skip


@pytest.mark.parametrize(
    "use",
    [
        "",
        "strongroom.seal; strongroom.SymmetricKey; strongroom.loaders",
        "model = strongroom.open(path, key=key); model.read(); model.close()",
    ],
)
def test_no_framework_is_imported(use, tmp_path):
    key = strongroom.SymmetricKey.generate()
    (tmp_path / "key").write_bytes(key.encode())
    (tmp_path / "m").write_bytes(b"x")
    strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=key)
    script = f"""
import sys
path, key = {str(tmp_path / "m.sealed")!r}, {str(tmp_path / "key")!r}
import strongroom
{use}
found = set({FRAMEWORKS!r}) & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_name_is_there():
    for name in strongroom.__all__:
        assert getattr(strongroom, name) is not None
    assert set(strongroom.__all__) <= set(dir(strongroom))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        strongroom.unknown  # noqa: B018 - looking it up raises


def test_looked_up_once():
    assert strongroom.open is strongroom.api.open
    assert vars(strongroom)["open"] is strongroom.open
