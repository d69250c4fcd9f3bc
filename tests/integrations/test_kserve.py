"""KServe's own server with a sealed model, over its three protocols (make test-integrations)."""

import asyncio
import hashlib
import http.client
import json
import pickle
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("kserve", reason="KServe has an environment of its own: make test-integrations")
    import grpc
    from kserve import InferInput, InferRequest
    from kserve.constants.constants import GRPC_CONTENT_DATATYPE_MAPPINGS
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    from strongroom.integrations import kserve as ours

from caches import LocalCache
from onnx import TensorProto, helper
from onnx_graphs import identity
from release_stub import StubServer
from sealed_models import MARK, X, seal

from ports import held_port
from strongroom.errors import UsageError
from strongroom.serving.config import ClientRule
from strongroom.serving.status import Code, RequestError
from strongroom.serving.v2 import binary

pytestmark = pytest.mark.filterwarnings("ignore")  # KServe's own, and those of what it brings

TOKEN = "a-token-of-a-client"
LIMIT = 1 << 20


class Server:
    """``python -m strongroom.integrations.kserve``."""

    def __init__(self, place, *arguments):
        self.http, self.grpc = held_port(), held_port()
        self.log = place / "log"
        command = [sys.executable, "-m", "strongroom.integrations.kserve", "--model_name", "m"]
        command += [f"--http_port={self.http}", f"--grpc_port={self.grpc}", *map(str, arguments)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=place)

    def until(self, condition, seconds=90):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return found

    def ready(self):
        try:
            return self.ask("GET", "/v2/models/m/ready")[0] == 200
        except OSError:
            return False

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        try:
            headers = {"Content-Type": "application/json"} | (headers or {})
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    server = StubServer(tmp_path_factory.mktemp("keys") / "stub")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cache(tmp_path_factory, stub):
    place = tmp_path_factory.mktemp("node") / "run"
    place.mkdir(mode=0o755)
    made = LocalCache(place / "keys.sock", stub.profile_file).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory, stub, cache):
    place = tmp_path_factory.mktemp("served")
    # As the storage initialiser leaves it: one file in a directory.
    seal(stub, place / "models" / "m.onnx.sealed", "resnet")
    limit = ("--max_request_bytes", LIMIT)
    made = Server(place, "--model_dir", place / "models", "--key", cache.uri, *limit)
    made.until(made.ready)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as found:
        yield GRPCInferenceServiceStub(found)


def test_v1(server):
    status, headers, found = server.ask(
        "POST", "/v1/models/m:predict", json.dumps({"instances": X.tolist()})
    )
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(found) == {"predictions": (2 * X).tolist()}
    body = json.dumps({"inputs": {"x": X.tolist()}})
    assert json.loads(server.ask("POST", "/v1/models/m:predict", body)[2]) == {
        "outputs": (2 * X).tolist()
    }
    assert json.loads(server.ask("GET", "/v1/models/m")[2]) == {"name": "m", "ready": True}


def request(**more):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16], "data": X.ravel().tolist()}
    return json.dumps({"inputs": [tensor | more.pop("tensor", {})], **more})


def test_v2(server):
    status, _, found = server.ask("POST", "/v2/models/m/infer", request(id="7"))
    answer = json.loads(found)
    (output,) = answer["outputs"]
    assert (status, answer["id"], answer["model_version"]) == (200, "7", "1")
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 16])
    assert output["data"] == (2 * X).ravel().tolist()
    assert len(json.loads(server.ask("POST", "/v2/models/m/infer", request())[2])["id"]) > 8


def test_v2_binary(server):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16]}
    tensor["parameters"] = {"binary_data_size": X.nbytes}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(text)),
        "Content-Type": "application/octet-stream",
    }
    status, found, body = server.ask("POST", "/v2/models/m/infer", text + X.tobytes(), headers)
    data = body[int(found["inference-header-content-length"]) :]
    assert status == 200
    assert np.array_equal(np.frombuffer(data, np.float32), 2 * X.ravel())


def test_nobody_unloads_models(server, channel):
    for verb in ("load", "unload"):
        status, _, found = server.ask("POST", f"/v2/repository/models/m/{verb}", "")
        assert (status, list(json.loads(found))) == (403, ["error"])
    with pytest.raises(grpc.RpcError) as caught:
        channel.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="m"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert server.ready()


def test_bodies_have_a_limit(server):
    for path in ("/v1/models/m:predict", "/v2/models/m/infer"):
        status, _, found = server.ask("POST", path, b" " * (LIMIT + 1))
        assert (status, list(json.loads(found))) == (413, ["error"])
        pieces = (b" " * 4096 for _ in range(LIMIT // 4096 + 1))
        assert server.ask("POST", path, pieces)[0] == 400


def test_numbers_that_json_does_not_have(server):
    large = json.dumps({"instances": [[3e38] * 16]})
    status, _, found = server.ask("POST", "/v1/models/m:predict", large)
    assert (status, json.loads(found)) == (200, {"predictions": [[float("inf")] * 16]})
    tensor = {"shape": [1, 16], "data": [3e38] * 16}
    status, _, found = server.ask("POST", "/v2/models/m/infer", request(tensor=tensor))
    assert (status, json.loads(found)["outputs"][0]["data"]) == (200, [None] * 16)


def test_v2_metadata(server):
    found = json.loads(server.ask("GET", "/v2/models/m")[2])
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 16]}]


def infer(raw=True, **more):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16]} | more.pop("tensor", {})
    if raw:
        more.setdefault("raw_input_contents", [X.tobytes()])
    else:
        tensor["contents"] = {"fp32_contents": X.ravel().tolist()}
    return messages.ModelInferRequest(**({"model_name": "m", "inputs": [tensor]} | more))


@pytest.mark.parametrize("raw", [True, False])
def test_grpc(channel, raw):
    answer = channel.ModelInfer(infer(raw, id="7"), timeout=60)
    assert (answer.id, answer.model_version, answer.outputs[0].name) == ("7", "1", "y")
    assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), 2 * X.ravel())
    asked = [messages.ModelInferRequest.InferRequestedOutputTensor(name="y")]
    assert channel.ModelInfer(infer(raw, outputs=asked, model_version="1"), timeout=60).id


def test_grpc_metadata(channel):
    assert channel.ModelReady(messages.ModelReadyRequest(name="m"), timeout=60).ready
    found = channel.ModelMetadata(messages.ModelMetadataRequest(name="m"), timeout=60)
    assert [(one.name, one.datatype, list(one.shape)) for one in found.inputs] == [
        ("x", "FP32", [-1, 16])
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/m:predict", json.dumps({"instances": [[1, 2], [3]]})),
        ("/v1/models/m:predict", json.dumps({"instances": [["a"] * 16]})),
        ("/v1/models/m:predict", json.dumps([1])),
        ("/v1/models/m:predict", json.dumps({"signature_name": "none", "instances": X.tolist()})),
        ("/v2/models/m/infer", request(tensor={"name": "y"})),
        ("/v2/models/m/infer", request(tensor={"datatype": "FP64"})),
        ("/v2/models/m/infer", request(tensor={"datatype": "none"})),
        ("/v2/models/m/infer", request(tensor={"shape": [2, 15]})),
        ("/v2/models/m/infer", request(tensor={"data": ["1"] * 32})),
        ("/v2/models/m/infer", request(outputs=[{"name": "z"}])),
        ("/v2/models/m/infer", request(parameters={"timeout": -1})),
    ],
)
def test_what_clients_do_wrong(server, path, body):
    status, _, found = server.ask("POST", path, body)
    assert (status, list(json.loads(found))) == (400, ["error"])


@pytest.mark.parametrize(
    "asked",
    [
        infer(raw_input_contents=[b"1234"]),
        infer(tensor={"shape": [4, 8]}),
        infer(tensor={"name": "y"}),
        infer(model_version="one"),
        infer(outputs=[messages.ModelInferRequest.InferRequestedOutputTensor(name="z")]),
    ],
    ids=["bytes", "shape", "name", "version", "output"],
)
def test_what_clients_of_grpc_do_wrong(channel, asked):
    with pytest.raises(grpc.RpcError) as caught:
        channel.ModelInfer(asked, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details()


def test_other_codes_arrive_as_they_are(server, channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.ModelInfer(infer(model_version="9"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    body = request(parameters={"timeout": 1})
    status, _, found = server.ask("POST", "/v2/models/m/infer", body)
    assert (status, list(json.loads(found))) == (504, ["error"])


def test_nothing_of_it_is_in_the_log(server, stub):
    log = server.log.read_bytes()
    assert b'"event": "loaded"' in log
    assert b"Traceback" not in log
    for secret in (MARK, *(dek for versions in stub.keys.values() for _, dek in versions)):
        assert secret not in log
        assert secret.hex().encode() not in log


def test_it_stops_in_order(server):
    assert server.stop() in (0, -signal.SIGTERM)
    assert '"state": "END"' in server.log.read_text()


def test_a_refused_key_ends_it_with_the_reason(tmp_path, stub, cache):
    place = seal(stub, tmp_path / "models" / "1" / "m.sealed", "refused")
    stub.refuse["refused"] = "policy"
    made = Server(tmp_path, "--model_dir", place.parent.parent, "--key", cache.uri)
    assert made.process.wait(90) == 4
    last = made.log.read_text().splitlines()[-1]
    assert last.startswith(
        "strongroom: Version 1 of m cannot be loaded: The key server does not release"
    )


def test_a_key_cache_that_is_away_is_waited_for(tmp_path, stub):
    (tmp_path / "run").mkdir(mode=0o755)
    late = LocalCache(tmp_path / "run" / "keys.sock", stub.profile_file)
    place = seal(stub, tmp_path / "models" / "m.sealed", "late")
    made = Server(tmp_path, "--model_dir", place, "--key", late.uri)
    try:
        made.until(lambda: "There is no key cache" in made.log.read_text())
        late.start()
        made.until(made.ready)
    finally:
        made.stop()
        late.stop()


def test_more_workers_are_refused(tmp_path):
    made = Server(tmp_path, "--model_dir", tmp_path, "--workers", 2)
    assert made.process.wait(90) == 2
    assert "--workers is 1" in made.log.read_text()


@pytest.fixture
def place(tmp_path, stub):
    return seal(stub, tmp_path / "m.sealed", f"own-{tmp_path.name}")


@pytest.fixture
def model(place, cache):
    rules = (ClientRule(token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest()),)
    made = ours.SealedKServeModel("m", str(place), key=cache.uri, clients=rules)
    yield made
    made.stop()


def test_the_life_of_a_model(model):
    headers = {"authorization": f"Bearer {TOKEN}"}
    asked = {"instances": X.tolist()}
    assert not asyncio.run(model.healthy())
    with pytest.raises(RequestError, match="not loaded") as caught:
        asyncio.run(model.predict(asked, headers))
    assert caught.value.code is Code.UNAVAILABLE
    assert model.load()
    assert asyncio.run(model.healthy())
    assert asyncio.run(model.predict(asked, headers)) == {"predictions": (2 * X).tolist()}
    for wrong, code in (
        (None, Code.UNAUTHENTICATED),
        ({"authorization": "Bearer x"}, Code.PERMISSION_DENIED),
    ):
        with pytest.raises(RequestError) as caught:
            asyncio.run(model.predict(asked, wrong))
        assert caught.value.code is code
    with pytest.raises(UsageError, match="one process"):
        pickle.dumps(model)
    model.stop()
    assert not asyncio.run(model.healthy())


def test_patience_ends(tmp_path, place):
    model = ours.SealedKServeModel(
        "m", str(place), key=f"unix://{tmp_path}/run/keys.sock", patience=0.1
    )
    with pytest.raises(RequestError, match="no key cache"):
        model.load()


VALUES = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-128, 127]], np.int8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP16": np.array([[0.5, -2]], np.float16),
    "FP64": np.array([[1e300, -1.5]], np.float64),
    "BYTES": np.array([[b"as it is", "\u00fc".encode()]], object),
}


WAYS = [(one, way) for one in VALUES for way in ("json", "rest-binary", "grpc-raw", "grpc-contents")]


@pytest.fixture(scope="module")
def identities(tmp_path_factory, stub, cache):
    """Models that give back what they get, by datatype."""
    place, made = tmp_path_factory.mktemp("identities"), {}
    for name, value in VALUES.items():
        text = value.dtype.kind == "O"
        kind = TensorProto.STRING if text else helper.np_dtype_to_tensor_dtype(value.dtype)
        sealed = seal(stub, place / name / "m.sealed", f"identity-{name}", content=identity(kind))
        made[name] = ours.SealedKServeModel(name, str(sealed), key=cache.uri)
        made[name].load()
    yield made
    for one in made.values():
        one.stop()


@pytest.mark.parametrize(
    ("datatype", "way"),
    # FP16 travels as bytes alone, the SDK says.
    [one for one in WAYS if one not in {("FP16", "json"), ("FP16", "grpc-contents")}],
)
def test_every_datatype(identities, datatype, way):
    value = VALUES[datatype]
    answer = asyncio.run(identities[datatype].predict(_asked(datatype, value, way)))
    if way.startswith("grpc"):
        assert answer.to_grpc().raw_output_contents[0] == bytes(binary.encode(value))
    elif way == "rest-binary":
        content, length = answer.to_rest()
        assert content[length:] == bytes(binary.encode(value))
    else:
        (output,) = answer.to_rest()[0]["outputs"]
        wanted = [one.decode() if isinstance(one, bytes) else one for one in value.ravel().tolist()]
        assert output["data"] == wanted


def _asked(datatype, value, way):
    tensor = {"name": "x", "datatype": datatype, "shape": list(value.shape)}
    raw, flat = bytes(binary.encode(value)), value.ravel().tolist()
    if way == "json":
        flat = [one.decode() if isinstance(one, bytes) else one for one in flat]
        return InferRequest("m", [InferInput(**tensor, data=flat)])
    if way == "rest-binary":
        tensor["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return InferRequest.from_bytes(text + raw, len(text), "m")
    if way == "grpc-raw":
        return InferRequest.from_grpc(
            messages.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw])
        )
    tensor["contents"] = {GRPC_CONTENT_DATATYPE_MAPPINGS[datatype]: flat}
    return InferRequest.from_grpc(messages.ModelInferRequest(inputs=[tensor]))
