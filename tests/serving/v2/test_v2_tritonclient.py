"""Triton's own clients, unmodified, against both protocols."""

import time
from contextlib import ExitStack

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from strongroom.serving.tensors import DTYPES

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)


@pytest.fixture(scope="module")
def http(http_address):
    with tritonclient.http.InferenceServerClient(http_address) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(grpc_address):
    with tritonclient.grpc.InferenceServerClient(grpc_address) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def side(request):
    """The module of a client, the client, and how it gives plain values."""
    client = request.getfixturevalue(request.param)
    if request.param == "http":
        return tritonclient.http, client, {}
    return tritonclient.grpc, client, {"as_json": True}


def given(module, array, name="x", datatype="FP32", **how):
    found = module.InferInput(name, array.shape, datatype)
    found.set_data_from_numpy(array, **how)
    return found


def test_health(side):
    _, client, _ = side
    assert client.is_server_live()
    assert not client.is_server_ready()  # the key of one model is away
    assert client.is_model_ready("same") and client.is_model_ready("same", "1")
    assert not client.is_model_ready("away")
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("same", "2")


def test_metadata(side):
    _, client, plain = side
    assert client.get_server_metadata(**plain)["name"] == "strongroom"
    found = client.get_model_metadata("same", **plain)
    assert (found["name"], found["versions"], found["platform"]) == ("same", ["1"], "test")
    (one,) = found["inputs"]
    assert (one["name"], one["datatype"]) == ("x", "FP32")
    assert [int(size) for size in one["shape"]] == [-1, 16]
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.get_model_metadata("none")


def test_config(side):
    _, client, plain = side
    found = client.get_model_config("batched", **plain)
    found = found.get("config", found)
    assert (found["max_batch_size"], found["input"][0]["data_type"]) == (8, "TYPE_FP32")
    assert int(found["dynamic_batching"]["max_queue_delay_microseconds"]) == 1000
    assert int(found["version_policy"]["latest"]["num_versions"]) == 1


def test_statistics(side):
    module, client, plain = side
    client.infer("same", [given(module, X)])
    (found,) = client.get_inference_statistics("same", **plain)["model_stats"]
    assert found["version"] == "1" and int(found["execution_count"]) > 0
    assert int(found["inference_stats"]["success"]["ns"]) > 0
    names = {one["name"] for one in client.get_inference_statistics(**plain)["model_stats"]}
    assert {"same", "batched"} <= names


def test_repository(side):
    module, client, plain = side

    def states():
        found = client.get_model_repository_index(**plain)
        found = found["models"] if isinstance(found, dict) else found
        return {one["name"]: one["state"] for one in found}

    assert states()["same"] == "READY" and states()["away"] != "READY"
    client.unload_model("extra")
    assert states()["extra"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException):
        client.infer("extra", [given(module, X)])
    client.load_model("extra")
    assert np.array_equal(client.infer("extra", [given(module, X)]).as_numpy("y"), X)
    with pytest.raises(InferenceServerException, match="configured"):
        client.load_model("extra", config="{}")


@pytest.mark.parametrize("model", ["same", "batched"])
def test_inference(side, model):
    module, client, _ = side
    found = client.infer(model, [given(module, X)], request_id="seven", model_version="1")
    assert np.array_equal(found.as_numpy("y"), X)
    assert np.allclose(found.as_numpy("sum"), X.astype(np.float64).sum(1))
    said = found.get_response()
    assert (said["id"] if isinstance(said, dict) else said.id) == "seven"
    wish = [module.InferRequestedOutput("y", class_count=1)]
    found = client.infer(model, [given(module, X)], outputs=wish, timeout=60_000_000)
    best = f"{X[0].max():f}:15".encode(), f"{X[1].max():f}:15".encode()
    assert found.as_numpy("y").tolist() == [[one] for one in best]


@pytest.mark.parametrize("dtype", [one for one in DTYPES if not one.startswith("complex")])
def test_every_dtype(side, dtype):
    module, client, _ = side
    array, datatype = values(dtype)
    found = client.infer(f"echo-{dtype}", [given(module, array, datatype=datatype)])
    assert np.array_equal(found.as_numpy("y"), array)


@pytest.mark.parametrize(
    "dtype", [one for one in DTYPES if not one.startswith("complex") and "float16" not in one]
)
def test_every_dtype_of_json(http, dtype):
    array, datatype = values(dtype)
    if dtype == "bytes":
        array = np.array([b"a", b"", "größe".encode()], object)
    one = given(tritonclient.http, array, datatype=datatype, binary_data=False)
    wish = [tritonclient.http.InferRequestedOutput("y", binary_data=False)]
    found = http.infer(f"echo-{dtype}", [one], outputs=wish).as_numpy("y")
    if dtype == "bytes":
        assert [one.encode() for one in found] == array.tolist()
    else:
        assert np.array_equal(found, array)


def values(dtype):
    if dtype == "bytes":
        return np.array([[b"a", b""], [b"\xff\0", b"x" * 70000]], object), "BYTES"
    if dtype == "bool":
        return np.array([[True, False, True]]), "BOOL"
    if dtype == "bfloat16":
        return np.array([1.5, -2, 0], ml_dtypes.bfloat16), "BF16"
    kind = np.dtype(dtype)
    if kind.kind == "f":
        info = np.finfo(kind)
        return np.array([[info.min, 0, info.max]], kind), f"FP{8 * kind.itemsize}"
    info = np.iinfo(kind)
    return np.array([[info.min, 1, info.max]], kind), dtype.upper()


def test_an_empty_tensor(side):
    module, client, _ = side
    array = np.zeros((0, 16), np.float32)
    found = client.infer("same", [given(module, array)]).as_numpy("y")
    assert found.shape == (0, 16)


def test_a_large_tensor(side):
    module, client, _ = side
    array = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    assert np.array_equal(client.infer("echo-float32", [given(module, array)]).as_numpy("y"), array)


def test_many_at_once(side):
    module, client, _ = side
    if module is tritonclient.grpc:
        found = []
        for at in range(50):
            client.async_infer(
                "batched",
                [given(module, X + at)],
                lambda result, error, at=at: found.append((at, result, error)),
            )
        end = time.monotonic() + 60
        while len(found) < 50:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert all(
            error is None and np.array_equal(result.as_numpy("y"), X + at)
            for at, result, error in found
        )
    else:
        asked = [client.async_infer("batched", [given(module, X + at)]) for at in range(50)]
        for at, one in enumerate(asked):
            assert np.array_equal(one.get_result().as_numpy("y"), X + at)


WRONG = {
    "model": ("none", X, "FP32", "no model", "404", "NOT_FOUND"),
    "away": ("away", X, "FP32", "key server", "503", "UNAVAILABLE"),
    "dtype": ("same", X.astype(np.int32), "INT32", "int32", "400", "INVALID_ARGUMENT"),
    "shape": ("same", X[:, :3], "FP32", r"shape \[2, 3\]", "400", "INVALID_ARGUMENT"),
    "fault": ("faulty", X[0], "FP32", "ValueError", "500", "INTERNAL"),
}


@pytest.mark.parametrize(
    ("model", "array", "datatype", "says", "status", "code"), WRONG.values(), ids=WRONG
)
def test_wrong_requests(side, model, array, datatype, says, status, code):
    module, client, _ = side
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(model, [given(module, array, datatype=datatype)])
    expected = status if module is tritonclient.http else f"StatusCode.{code}"
    assert caught.value.status() == expected
    assert "words" not in caught.value.message()


def test_what_is_not_offered(grpc):
    with pytest.raises(InferenceServerException) as caught:
        grpc.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException) as caught:
        grpc.get_trace_settings()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_stream(grpc_address):
    found = []
    with tritonclient.grpc.InferenceServerClient(grpc_address) as client:
        client.start_stream(lambda result, error: found.append((result, error)))
        module = tritonclient.grpc
        client.async_stream_infer("same", [given(module, X)], request_id="1")
        client.async_stream_infer("same", [given(module, X[:, :3])], request_id="2")
        client.async_stream_infer(
            "batched", [given(module, X)], request_id="3", enable_empty_final_response=True
        )
        end = time.monotonic() + 60
        while len(found) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        client.stop_stream()
    (first, none), (_, failed), (third, _) = found
    assert none is None and np.array_equal(first.as_numpy("y"), X)
    assert "shape [2, 3]" in failed.message()
    assert third.get_response().id == "3"
    assert third.get_response().parameters["triton_final_response"].bool_param


def test_streams_are_bounded(grpc_address):
    found = []

    def wait(count):
        end = time.monotonic() + 60
        while len(found) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    with ExitStack() as stack:
        for at in range(5):
            client = tritonclient.grpc.InferenceServerClient(grpc_address)
            stack.enter_context(client)
            client.start_stream(lambda result, error: found.append(error))
            if at < 4:
                client.async_stream_infer("same", [given(tritonclient.grpc, X)])
            wait(at + 1)
        # Other calls have threads left.
        assert client.is_server_live()
    assert found[:4] == [None] * 4
    assert found[4].status() == "StatusCode.RESOURCE_EXHAUSTED"
