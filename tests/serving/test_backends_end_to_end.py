"""``strongroom serve`` with models of tables and of Paddle in one process, asked by real clients."""

from __future__ import annotations

import json

import lightgbm
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import xgboost
from sealed_server import KEY, Serve, write_key
from sklearn.linear_model import LogisticRegression
from skops import io as skops_io
from test_backend_paddle import of_one_input

import strongroom

X = np.random.default_rng(9).random((60, 4))
NAMES = np.array(["low", "high"])[(X[:, 0] > 0.5).astype(int)]
ROWS = X[:5]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name → file, input, dtype, and what is expected of its output for ``ROWS``."""
    place = tmp_path_factory.mktemp("models")
    boosted = xgboost.train({"nthread": 1}, xgboost.DMatrix(X, X[:, 0]), 3)
    boosted.save_model(place / "m.ubj")
    data = lightgbm.Dataset(X, X[:, 1])
    light = lightgbm.train({"verbose": -1, "num_threads": 1}, data, 3)
    light.save_model(place / "m.txt")
    classifier = LogisticRegression().fit(X, NAMES)
    skops_io.dump(classifier, place / "m.skops")
    layer = of_one_input(place, lambda paddle, x, two: paddle.tanh(x) * two, [None, 4])
    return place, {
        "xgboost": ("m.ubj", "inputs", "FP32", boosted.predict(xgboost.DMatrix(ROWS))),
        "lightgbm": ("m.txt", "inputs", "FP64", light.predict(ROWS)),
        "sklearn": ("m.skops", "inputs", "FP64", classifier.predict_proba(ROWS)),
        "paddle": (layer.name, "x", "FP32", np.tanh(ROWS) * 2),
    }


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    place, made = models
    here = tmp_path_factory.mktemp("server")
    config = []
    for name, (file, *_) in made.items():
        strongroom.seal(place / file, here / f"{name}.sealed", key=KEY)
        config.append({"name": name, "path": f"{name}.sealed", "threads": 1})
    (here / "models.yaml").write_text(json.dumps({"models": config}))
    write_key(here / "key")
    server = Serve(here, "--config", "models.yaml", "-k", "key")
    try:
        server.until(lambda: server.ask("GET", "/readyz")[0] == 200, 120)
        yield server
    finally:
        server.kill()


def post(server, path, body):
    status, _, content = server.ask("POST", path, json.dumps(body).encode())
    return status, json.loads(content)


MODELS = ("xgboost", "lightgbm", "sklearn", "paddle")


@pytest.mark.parametrize("name", MODELS)
def test_over_both_protocols(server, models, name):
    _, input_name, datatype, expected = models[1][name]
    status, answer = post(server, f"/v1/models/{name}:predict", {"instances": ROWS.tolist()})
    assert status == 200
    found = answer["predictions"]
    if name == "sklearn":
        assert [one["predict"] for one in found] == NAMES[:5].tolist()
        found = [one["predict_proba"] for one in found]
    assert np.allclose(found, expected, rtol=1e-5)
    rows = ROWS.astype(np.float32 if datatype == "FP32" else np.float64)
    for module, port in ((tritonclient.http, server.rest), (tritonclient.grpc, server.grpc)):
        given = module.InferInput(input_name, rows.shape, datatype)
        given.set_data_from_numpy(rows)
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            answer = client.infer(name, [given])
            as_json = {"as_json": True} if module is tritonclient.grpc else {}
            outputs = client.get_model_metadata(name, **as_json)["outputs"]
        assert np.allclose(answer.as_numpy(outputs[-1]["name"]), expected, rtol=1e-5)


def test_wrong_values_are_the_mistake_of_who_sends_them(server):
    status, _ = post(server, "/v1/models/sklearn:predict", {"instances": [[1, 2, 3]]})
    assert status == 400
    body = b'{"instances": [[1, 2, 3, NaN]]}'
    status, _, content = server.ask("POST", "/v1/models/sklearn:predict", body)
    assert (status, json.loads(content)) == (
        400,
        {"error": "The model cannot compute with these values."},
    )
    # For trees, what is not a number is missing.
    assert server.ask("POST", "/v1/models/xgboost:predict", body)[0] == 200


def test_tasks_of_tensorflow_serving(server, models):
    examples = [{"inputs": row.tolist()} for row in ROWS]
    status, answer = post(
        server, "/v1/models/sklearn:classify", {"signature_name": "classify", "examples": examples}
    )
    assert status == 200
    for row, expected in zip(answer["results"], models[1]["sklearn"][3], strict=True):
        assert [label for label, _ in row] == ["high", "low"]
        assert np.allclose([score for _, score in row], expected)
    status, answer = post(
        server, "/v1/models/xgboost:regress", {"signature_name": "regress", "examples": examples}
    )
    assert status == 200
    assert np.allclose(answer["results"], models[1]["xgboost"][3], rtol=1e-5)


def test_it_ends_as_asked(server):
    # Paddle would take SIGTERM for a crash. And all that is in the log is JSON.
    server.check_health()
    assert server.stop() == 0
