import json
import zipfile

import pytest

from strongroom.cli.measure import Measurement
from strongroom.errors import MissingExtra
from strongroom.loaders import registry

_WHY = "the load of a safetensors file is measured, as torch tensors"
torch = pytest.importorskip("torch", reason=_WHY)
safetensors = pytest.importorskip("safetensors.torch", reason=_WHY)


@pytest.fixture
def tensors(cli, key, here):
    safetensors.save_file({"w": torch.arange(500_000, dtype=torch.float32)}, "model.safetensors")
    assert cli("seal", "model.safetensors", "-o", "t.sealed", "-k", key).code == 0
    return here / "t.sealed"


def test_the_steps_are_measured(cli, key, tensors):
    result = cli("bench", tensors, "-k", key, "--runs", 2, "--json", "-q")
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out)
    assert [step["step"] for step in said["steps"]] == ["read", "decrypt", "load (safetensors)"]
    assert said["size"] == (tensors.parent / "model.safetensors").stat().st_size
    assert said["steps"][0]["size"] == tensors.stat().st_size
    for step in said["steps"]:
        assert len(step["seconds"]) == 2 and all(value > 0 for value in step["seconds"])
        assert step["bytes_per_second"] == pytest.approx(step["size"] / step["median"], rel=0.01)
        # The whole model is in memory at the end of every step.
        assert step["peak_memory"] > 1_000_000


def test_a_table_for_people_and_a_chart(cli, key, tensors, here):
    pytest.importorskip("matplotlib", reason="the chart needs the extra plot")
    result = cli("bench", tensors, "-k", key, "--runs", 1, "--cold", "--plot", "bench.svg")
    assert result.code == 0
    assert result.out.startswith("t.sealed: 2.0 MB, ")
    assert "cold page cache" in result.out
    assert [line.split()[0] for line in result.out.splitlines()[2:]] == ["read", "decrypt", "load"]
    assert "Measuring: read" in result.err
    assert (here / "bench.svg").read_text().startswith("<?xml")
    again = cli("bench", tensors, "-k", key, "--runs", 1, "--plot", "bench.svg")
    assert again.code == 2
    assert "Measuring" not in again.err
    arguments = ("bench", tensors, "-k", key, "--runs", 1, "-q", "--plot", "bench.png")
    assert cli(*arguments).code == 0
    assert (here / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_no_loader_knows(cli, key, sealed):
    said = json.loads(cli("bench", sealed, "-k", key, "--runs", 1, "--json").out)
    assert [step["step"] for step in said["steps"]] == ["read", "decrypt"]
    assert said["not_measured"]["load"]
    result = cli("bench", sealed, "-k", key, "--runs", 1, "--framework", "nonsense")
    assert result.code == 2
    assert "nonsense" in result.error()


def test_a_framework_that_is_not_installed(cli, key, tensors, monkeypatch):
    def load(*arguments, **options):
        raise MissingExtra("Loading a model for PyTorch", "torch")

    monkeypatch.setattr(registry, "load", load)
    result = cli("bench", tensors, "-k", key, "--runs", 1, "-q")
    assert result.code == 0
    assert "load was not measured: " in result.out
    assert 'pip install "strongroom[torch]"' in result.out


def test_machine_code_that_is_only_found_is_not_run(cli, key, here):
    with zipfile.ZipFile("m.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/other/x.cpp", b"")
    assert cli("seal", "m.pt2", "-o", "native.sealed", "-k", key).code == 0
    said = json.loads(cli("bench", "native.sealed", "-k", key, "--runs", 1, "--json").out)
    assert [step["step"] for step in said["steps"]] == ["read", "decrypt"]
    assert "machine code" in said["not_measured"]["load"]


def test_a_model_that_its_loader_cannot_read(cli, key, here):
    (here / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b'{"a":1} ' + bytes(100))
    assert cli("seal", "model.safetensors", "-o", "t.sealed", "-k", key).code == 0
    result = cli("bench", "t.sealed", "-k", key, "--runs", 1)
    assert result.code == 0
    assert "load was not measured: " in result.out
    result = cli("bench", "t.sealed", "-k", key, "--runs", 1, "--framework", "torch")
    assert result.code in (2, 3)
    result.error()


def test_a_directory(cli, key, folder):
    cli("seal", folder, "-o", "m.sealed", "-k", key, "--clear", "*.json")
    said = json.loads(cli("bench", "m.sealed", "-k", key, "--runs", 1, "--json").out)
    stored = sum(p.stat().st_size for p in (folder.parent / "m.sealed").rglob("*") if p.is_file())
    assert said["steps"][0]["size"] == stored
    assert said["steps"][1]["size"] == 300_013


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "chart.bmp"), "a .png, .svg or .pdf file"),
        (("--plot", "chart"), "a .png, .svg or .pdf file"),
        (("--runs", "0"), "--runs"),
    ],
)
def test_what_is_refused(cli, key, sealed, arguments, words):
    result = cli("bench", sealed, "-k", key, *arguments)
    assert result.code == 2
    assert words in result.error()
    assert "Measuring" not in result.err


def test_wrong_key_empty_model_and_no_model(cli, key, here, sealed):
    cli("keygen", "-o", "other")
    assert cli("bench", sealed, "-k", "other").code == 4
    assert cli("bench", "missing", "-k", key).code == 2
    assert cli("bench", "missing", "-k", key, "--cold").code == 2
    (here / "empty").touch()
    cli("seal", "empty", "-o", "empty.sealed", "-k", key)
    assert "nothing to measure" in cli("bench", "empty.sealed", "-k", key).error()


def test_the_median_counts():
    measured = Measurement("read", 100, [0.1, 0.5, 0.2], 7)
    assert measured.median == 0.2
    assert measured.rate == pytest.approx(500)
