"""What a missing extra says; run where no extra is installed (`make test-core`)."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import strongroom
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import MissingExtra

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fsspec") is not None or importlib.util.find_spec("torch") is not None,
    reason="extras are installed here; `make test-core` runs this without them",
)


EVIDENCE = Path(__file__).parents[1] / "attest" / "data"


@pytest.fixture
def sealed(tmp_path):
    key = strongroom.SymmetricKey.generate()
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    strongroom.seal(tmp_path / "model.safetensors", tmp_path / "m.sealed", key=key)
    return tmp_path / "m.sealed", key


def test_the_core_needs_cryptography_alone(sealed):
    path, key = sealed
    with strongroom.open(path, key=key) as model:
        assert model.read() == b"\x02\0\0\0\0\0\0\0{}"


@pytest.mark.parametrize("url", ["s3://bucket/m.sealed", "https://host/m.sealed", "gs://bucket/m"])
def test_a_url_without_the_remote_extra(url):
    key = strongroom.SymmetricKey.generate()
    with pytest.raises(MissingExtra) as caught:
        strongroom.open(url, key=key)
    assert caught.value.hint == 'pip install "strongroom[remote]"'
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("framework", "extra"),
    [
        ("torch", "torch"),
        ("torchscript", "torch"),
        ("torch.export", "torch"),
        ("aotinductor", "torch"),
        ("safetensors", "safetensors"),
        ("transformers", "transformers"),
        ("diffusers", "diffusers"),
        ("onnx", "onnx"),
        ("tensorflow", "tensorflow"),
        ("tensorflow.graph_def", "tensorflow"),
        ("keras", "keras"),
        ("tflite", "tflite"),
        ("paddle", "paddle"),
        ("paddle.jit", "paddle"),
        ("paddle.inference", "paddle"),
        ("tensorrt", "tensorrt"),
        ("llama_cpp", "llama-cpp"),
        ("openvino", "openvino"),
        ("xgboost", "xgboost"),
        ("lightgbm", "lightgbm"),
        ("sklearn", "sklearn"),
        ("flax", "flax"),
    ],
)
def test_a_framework_without_its_extra(sealed, framework, extra):
    path, key = sealed
    with pytest.raises(MissingExtra) as caught:
        strongroom.load(path, key=key, framework=framework)
    assert caught.value.hint == f'pip install "strongroom[{extra}]"'


def test_the_command_line_without_its_extra():
    done = subprocess.run(
        [sys.executable, "-c", "from strongroom.cli import main; main()", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert 'pip install "strongroom[cli]"' in done.stderr


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("tdx", "dcap/tdx_v4.bin"),
        ("nitro", "nitro/user_data.cose"),
    ],
)
def test_evidence_without_the_extra(kind, file):
    data = (EVIDENCE / file).read_bytes().strip()
    context = Context(datetime(2026, 1, 1, tzinfo=UTC), production())
    with pytest.raises(MissingExtra) as caught:
        verify(Evidence(kind, data, (b"{}",)), context)
    assert caught.value.hint == 'pip install "strongroom[attest]"'


def test_reports_of_snp_need_cryptography_alone():
    report, key = ((EVIDENCE / f"snp/milan_v3.{end}").read_bytes() for end in ("bin", "vek"))
    chain = (EVIDENCE / "snp/roots/milan_ask_ark_asvk.pem").read_bytes()
    context = Context(datetime(2026, 7, 1, tzinfo=UTC), production())
    assert not verify(Evidence("snp", report, (key, chain)), context).debug


def test_servers_of_others_without_their_extras():
    ray = importlib.import_module("strongroom.integrations.ray")
    for make in (lambda: ray.application("m=/m.sealed"), lambda: ray.build({})):
        with pytest.raises(MissingExtra) as caught:
            make()
        assert caught.value.hint == 'pip install "strongroom[ray]"'
    with pytest.raises(MissingExtra) as caught:
        importlib.import_module("strongroom.integrations.kserve")
    assert caught.value.hint == 'pip install "strongroom[kserve]"'


def test_a_key_server_without_the_extra():
    with pytest.raises(ImportError):
        importlib.import_module("strongroom.keyserver.app")
