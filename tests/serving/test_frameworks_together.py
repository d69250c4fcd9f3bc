"""Every large framework in one server: their libraries share symbols, signals and threads.

They are imported at the same time, since models load in parallel.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import xgboost
from onnx_graphs import doubling
from saved_models import everything
from sealed_server import KEY, Serve, write_key
from test_backend_paddle import of_one_input
from torch_models import ROWS as OPEN
from torch_models import Identity, export

import strongroom
from strongroom.loaders.openvino import openvino

HERE = Path(__file__).parent
ROWS = np.random.default_rng(3).random((3, 4)).astype(np.float32)


def of_openvino(folder):
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], np.float32, name="x")
    openvino.save_model(openvino.Model([ops.multiply(x, np.float32(3))], [x]), folder / "m.xml")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name → plain model, rows, and the answer to them."""
    place = tmp_path_factory.mktemp("models")
    for name in ("paddle", "torch", "openvino"):
        (place / name).mkdir()
    (place / "m.onnx").write_bytes(doubling())
    layer = of_one_input(place / "paddle", lambda paddle, x, two: paddle.tanh(x) * two, [None, 4])
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, ROWS[:, 0]), 2)
    booster.save_model(place / "m.ubj")
    wide = np.tile(ROWS, 4)
    same = export(place / "torch", Identity(), torch.from_numpy(wide), shapes={"x": {0: OPEN}})
    return {
        "tensorflow": (everything(place / "saved"), ROWS, 2 * ROWS),
        "paddle": (layer, ROWS, np.tanh(ROWS) * 2),
        "openvino": (of_openvino(place / "openvino"), ROWS, 3 * ROWS),
        "torch": (same, wide, wide),
        "onnx": (place / "m.onnx", wide, 2 * wide),
        "xgboost": (place / "m.ubj", ROWS, booster.predict(xgboost.DMatrix(ROWS))),
    }


def test_all_of_them_answer_and_the_server_ends_as_asked(models, tmp_path):
    for name, (path, _, _) in models.items():
        strongroom.seal(path, tmp_path / f"{name}.sealed", key=KEY)
    write_key(tmp_path / "key")
    server = Serve(tmp_path, "-k", "key", *(f"{name}={name}.sealed" for name in models), wait_for="")

    def ask(name):
        _, rows, expected = models[name]
        body = json.dumps({"instances": rows.tolist()}).encode()
        status, _, content = server.ask("POST", f"/v1/models/{name}:predict", body)
        assert status == 200, content
        return np.allclose(json.loads(content)["predictions"], expected, rtol=1e-5)

    try:
        server.until(lambda: server.ask("GET", "/readyz")[0] == 200, 300)
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(ask, list(models) * 5))
        assert server.stop() == 0
    finally:
        server.kill()


def test_paddle_shares_no_symbols_with_torch_while_tensorflow_is_imported(models, tmp_path):
    for name in ("tensorflow", "paddle", "torch"):
        strongroom.seal(models[name][0], tmp_path / name, key=KEY)
    command = [sys.executable, str(HERE / "loaded_at_once.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["all of them"]), done.stderr[-2000:]
