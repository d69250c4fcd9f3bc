"""``strongroom serve`` with models of PyTorch and OpenVINO in one process, asked by real clients."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from sealed_server import KEY, Serve, write_key

import strongroom
from strongroom.loaders.openvino import openvino

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
MARK = b"never on a disk!"
X = np.linspace(0, 1, 80, dtype=np.float32).reshape(5, 16)


class Network(torch.nn.Module):
    """y = relu(x W), with a table that is the mark again and again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(16, 4, bias=False)
        marks = np.frombuffer(MARK * 4096, np.float32)
        self.marks = torch.nn.Parameter(torch.from_numpy(marks.copy()), requires_grad=False)

    def forward(self, x):
        return torch.relu(self.layer(x)) + torch.clamp(self.marks.sum(), 0, 0)


def as_openvino(folder, weights):
    from openvino import opset13 as ops

    x = ops.parameter([-1, 16], np.float32)
    x.output(0).get_tensor().set_names({"x"})
    marks = ops.constant(np.frombuffer(MARK * 4096, np.float32).reshape(-1, 4).copy())
    row = ops.gather(marks, ops.constant(np.array([0])), ops.constant(np.array(0)))
    nothing = ops.multiply(row, ops.constant(np.zeros((1, 4), np.float32)))
    y = ops.add(ops.relu(ops.matmul(x, ops.constant(weights), False, True)), nothing)
    y.output(0).get_tensor().set_names({"y"})
    folder.mkdir()
    openvino.save_model(openvino.Model([y], [x]), folder / "m.xml", compress_to_fp16=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain")
    network = Network().eval()
    torch.jit.trace(network, torch.zeros(2, 16)).save(plain / "script.pt")
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    program = torch.export.export(network, (torch.zeros(2, 16),), dynamic_shapes={"x": rows})
    torch.export.save(program, plain / "program.pt2")
    as_openvino(plain / "ir", network.layer.weight.detach().numpy())
    specs = {
        f"{what}s": [{"name": name, "dtype": "float32", "shape": [-1, size]}]
        for what, name, size in (("input", "x", 16), ("output", "y", 4))
    }
    files = {
        "script": ("script.pt", {**specs, "batching": {"max_batch": 16, "delay": 0.002}}),
        "program": ("program.pt2", {"outputs": specs["outputs"]}),
        "ir": ("ir", {"options": {"INFERENCE_PRECISION_HINT": "f32"}}),
    }
    for file in ("script.pt", "program.pt2", "ir/m.bin"):
        assert MARK in (plain / file).read_bytes()
    here = tmp_path_factory.mktemp("server")
    config = []
    for name, (file, more) in files.items():
        strongroom.seal(plain / file, here / f"{name}.sealed", key=KEY)
        config.append({"name": name, "path": f"{name}.sealed", "threads": 1, **more})
    (here / "models.yaml").write_text(json.dumps({"models": config}))
    write_key(here / "key")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
            (here / name).mkdir()
            environment.setenv(name, str(here / name))
        server = Serve(here, "--config", "models.yaml", "-k", "key")
    try:
        server.until(lambda: server.ask("GET", "/readyz")[0] == 200, 120)
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def expected():
    with torch.inference_mode():
        return Network().eval()(torch.from_numpy(X)).numpy()


def predict(server, name, rows):
    body = json.dumps({"instances": rows}).encode()
    status, _, content = server.ask("POST", f"/v1/models/{name}:predict", body)
    return status, json.loads(content)


MODELS = {"script": "pytorch_libtorch", "program": "pytorch_export", "ir": "openvino"}


@pytest.mark.parametrize("name", MODELS)
def test_over_both_protocols(server, expected, name):
    status, answer = predict(server, name, X.tolist())
    assert status == 200
    assert np.allclose(answer["predictions"], expected, rtol=1e-4, atol=1e-6)
    for module, port in ((tritonclient.http, server.rest), (tritonclient.grpc, server.grpc)):
        given = module.InferInput("x", X.shape, "FP32")
        given.set_data_from_numpy(X)
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            found = client.infer(name, [given]).as_numpy("y")
            as_json = {"as_json": True} if module is tritonclient.grpc else {}
            about = client.get_model_metadata(name, **as_json)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert about["platform"] == MODELS[name]
        assert [*map(int, about["inputs"][0]["shape"])] == [-1, 16]


@pytest.mark.parametrize("name", MODELS)
def test_many_at_once(server, expected, name):
    def ask(number):
        start = number % 5
        status, answer = predict(server, name, X[start:].tolist())
        assert status == 200
        assert np.allclose(answer["predictions"], expected[start:], rtol=1e-4, atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(64)))


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_request_is_refused_and_harms_nobody(server, expected, name):
    for rows in ([[1.0] * 15], [[[1.0] * 16]], [1.0]):
        assert predict(server, name, rows)[0] == 400
    status, answer = predict(server, name, X.tolist())
    assert status == 200
    assert np.allclose(answer["predictions"], expected, rtol=1e-4, atol=1e-6)


def test_bounds_of_the_program(server):
    status, answer = predict(server, "program", [[0.0] * 16] * 65)
    assert (status, answer["error"]) == (
        400,
        "Input x has 65 in dimension 0, and the model takes at most 64.",
    )


def test_nothing_of_the_weights_is_on_the_disk(server):
    files = [path for path in server.place.rglob("*") if path.is_file()]
    assert {"log", "script.sealed"} <= {path.name for path in files}
    assert not [path for path in files if MARK in path.read_bytes()]


def test_it_ends_as_asked(server):
    server.check_health()
    assert server.stop() == 0
