"""Frameworks that are not installed: the status names the extra, and other models are served."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
import xgboost
from front_process import Server
from onnx_graphs import doubling
from sealed_server import KEY, seal, write_key

import strongroom
from strongroom import loaders
from strongroom.errors import MissingExtra
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry

ARCHIVES = {
    "torchscript": ("m/constants.pkl", "m/data.pkl"),
    "torch.export": ("m/serialized_exported_program.json",),
    "sklearn": ("schema.json",),
}
CASES = {
    # Backend: the module that is missing, the loader that imports it, and the extra.
    "onnx": ("onnxruntime", "onnx", "onnx"),
    "torchscript": ("torch", "torch", "torch"),
    "torch.export": ("torch", "torch", "torch"),
    "tensorflow": ("tensorflow", "tensorflow", "tensorflow"),
    "openvino": ("openvino", "openvino", "openvino"),
    "paddle.inference": ("paddle", "paddle", "paddle"),
    "xgboost": ("xgboost", "xgboost", "xgboost"),
    "lightgbm": ("lightgbm", "lightgbm", "lightgbm"),
    "sklearn": ("skops", "sklearn", "sklearn"),
}


@pytest.mark.parametrize("backend", CASES)
def test_each_backend_names_its_extra(tmp_path, monkeypatch, backend):
    module, loader, extra = CASES[backend]
    # As if it were not installed: whatever imports it fails, and its loader is imported anew.
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"strongroom.loaders.{loader}", raising=False)
    monkeypatch.delitem(vars(loaders), loader, raising=False)
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        for name in ARCHIVES.get(backend, ["anything"]):
            archive.writestr(name, "{}")
    strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=KEY)
    with (
        strongroom.open(tmp_path / "m.sealed", key=KEY) as model,
        pytest.raises(MissingExtra) as caught,
    ):
        registry.load(model, backend, BackendOptions(threads=1))
    assert caught.value.hint == f'pip install "strongroom[{extra}]"'


def test_the_status_says_so(tmp_path):
    write_key(tmp_path / "key")
    seal(tmp_path / "good.sealed", doubling())
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix([[1.0], [2.0]], [1, 2]), 1)
    booster.save_model(tmp_path / "m.ubj")
    strongroom.seal(tmp_path / "m.ubj", tmp_path / "m.sealed", key=KEY)
    code = "import sys; sys.modules['xgboost'] = None; from strongroom.cli import main; main()"
    ports = ("--rest-port", "0", "--grpc-port", "0", "--drain-seconds", "0")
    command = (sys.executable, "-c", code, "serve", *ports, "-k", "key")
    server = Server(tmp_path, command=[*command, "good=good.sealed", "m=m.sealed"])
    try:
        server.until(lambda: "pip install" in server.text())
        status = json.loads(server.ask("GET", "/v1/models/m")[2])["model_version_status"][0]
        assert status["state"] == "END"
        assert status["status"] == {
            "error_code": "FAILED_PRECONDITION",
            "error_message": "Version 1 of m cannot be loaded: Loading XGBoost models needs packages that "
            'are not installed. pip install "strongroom[xgboost]"',
        }
        server.until(lambda: server.ask("GET", "/v2/models/good/ready")[0] == 200)
        assert server.ask("GET", "/readyz")[0] == 503
        # One line has all of it.
        (line,) = (one for one in server.lines("model") if "code" in one)
        assert (line["model"], line["state"], line["code"]) == ("m", "END", "FAILED_PRECONDITION")
        assert line["hint"] == 'pip install "strongroom[xgboost]"'
        assert line["error"] == "MissingExtra"
    finally:
        server.kill()
