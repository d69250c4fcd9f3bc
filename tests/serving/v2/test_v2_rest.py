"""Every endpoint, and what it says of requests that are wrong."""

import json
import struct
from importlib.metadata import version

import numpy as np
import orjson
import pytest
from v2_engine import ask

from strongroom.serving.status import Code, RequestError
from strongroom.serving.v2.rest import V2Rest

X = np.arange(16, dtype=np.float32).reshape(1, 16)
HEADER_LENGTH = b"inference-header-content-length"


def tensor(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": X.ravel().tolist(), **changes}


def infer(api, model="same", *, tail=None, path=None, **document):
    body = orjson.dumps(document)
    headers = {}
    if tail is not None:
        headers[HEADER_LENGTH] = b"%d" % len(body)
        body += tail
    path = path or f"/v2/models/{model}/infer"
    return ask(api, "POST", path, body, headers)


def get(api, path):
    status, _, body = ask(api, "GET", path)
    return status, json.loads(body)


def test_health_and_metadata(api):
    assert get(api, "/v2/health/live") == (200, {"live": True})
    assert get(api, "/v2/health/ready") == (503, {"ready": False})  # the key of one is away
    status, server = get(api, "/v2")
    assert (status, server["name"], server["version"]) == (200, "strongroom", version("strongroom"))
    assert "binary_tensor_data" in server["extensions"]
    for path in ("/v2/models/same", "/v2/models/same/versions/1", "/v2/models/same/"):
        assert get(api, path) == (
            200,
            {
                "name": "same",
                "versions": ["1"],
                "platform": "test",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}],
                "outputs": [
                    {"name": "y", "datatype": "FP32", "shape": [-1, 16]},
                    {"name": "sum", "datatype": "FP64", "shape": [-1]},
                ],
            },
        )


def test_readiness_of_models(api):
    assert get(api, "/v2/models/same/ready") == (200, {"name": "same", "ready": True})
    assert get(api, "/v2/models/same/versions/1/ready")[0] == 200
    assert get(api, "/v2/models/same/versions/2/ready")[0] == 404
    assert get(api, "/v2/models/none/ready")[0] == 404
    status, answer = get(api, "/v2/models/away/ready")
    assert status == 503 and "key server" in answer["error"]


def test_config(api):
    status, found = get(api, "/v2/models/batched/config")
    assert status == 200
    assert (found["name"], found["max_batch_size"]) == ("batched", 8)
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [16]}]
    assert found["dynamic_batching"] == {"max_queue_delay_microseconds": 1000}
    status, found = get(api, "/v2/models/echo-bytes/versions/1/config")
    assert found["max_batch_size"] == 0
    assert found["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_statistics(api):
    _, before = get(api, "/v2/models/echo-int8/stats")
    one = tensor(datatype="INT8", shape=[2], data=[1, 2])
    assert infer(api, "echo-int8", inputs=[one])[0] == 200
    assert infer(api, "echo-int8", inputs=[tensor()])[0] == 400
    _, after = get(api, "/v2/models/echo-int8/versions/1/stats")
    (old,), (new,) = before["model_stats"], after["model_stats"]
    assert (new["name"], new["version"]) == ("echo-int8", "1")
    assert new["execution_count"] == old["execution_count"] + 1
    for kind in ("success", "fail"):
        old_part, new_part = old["inference_stats"][kind], new["inference_stats"][kind]
        assert new_part["count"] == old_part["count"] + 1
        assert new_part["ns"] > old_part["ns"]
    assert new["last_inference"] > 1_700_000_000_000
    _, everything = get(api, "/v2/models/stats")
    names = [one["name"] for one in everything["model_stats"]]
    assert {"same", "echo-int8"} <= set(names) and "away" not in names
    assert get(api, "/v2/models/none/stats")[0] == 404


def test_index_load_and_unload(api):
    def index(**document):
        status, _, body = ask(api, "POST", "/v2/repository/index", orjson.dumps(document))
        assert status == 200
        return {one["name"]: one for one in json.loads(body)}

    assert index()["same"] == {"name": "same", "version": "1", "state": "READY", "reason": ""}
    away = index()["away"]
    assert away["state"] in ("UNAVAILABLE", "LOADING") and "key server" in away["reason"]
    assert "away" not in index(ready=True)
    assert ask(api, "POST", "/v2/repository/models/extra/unload")[0] == 200
    assert "extra" not in index(ready=True)
    assert infer(api, "extra", inputs=[tensor()])[0] == 503
    assert ask(api, "POST", "/v2/repository/models/extra/load", b"{}")[0] == 200
    assert infer(api, "extra", inputs=[tensor()])[0] == 200
    body = orjson.dumps({"parameters": {"file:1/model.onnx": "AAAA"}})
    status, _, answer = ask(api, "POST", "/v2/repository/models/extra/load", body)
    assert status == 400 and b"configured" in answer
    assert ask(api, "POST", "/v2/repository/models/none/load")[0] == 404


def test_clients_load_nothing_where_nobody_said_so(engine):
    for verb in ("load", "unload"):
        status, _, body = ask(V2Rest(engine), "POST", f"/v2/repository/models/same/{verb}")
        assert status == 403 and b"does not let clients" in body


@pytest.mark.parametrize("data", [X.ravel().tolist(), X.tolist()], ids=["flat", "nested"])
@pytest.mark.parametrize("model", ["same", "batched"])
def test_an_answer(api, model, data):
    status, headers, body = infer(api, model, id="seven", inputs=[tensor(data=data)])
    assert (status, headers) == (200, {b"content-type": b"application/json"})
    assert json.loads(body) == {
        "model_name": model,
        "model_version": "1",
        "id": "seven",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 16], "data": X.ravel().tolist()},
            {"name": "sum", "datatype": "FP64", "shape": [1], "data": [120.0]},
        ],
    }
    status, _, body = infer(
        api, path=f"/v2/models/{model}/versions/1/infer", inputs=[tensor()], outputs=[{"name": "sum"}]
    )
    found = json.loads(body)
    assert "id" not in found and [one["name"] for one in found["outputs"]] == ["sum"]


def test_a_large_answer(api):
    """Of a body that a thread decodes."""
    values = np.arange(16 * 5000, dtype=np.float32).reshape(-1, 16)
    inputs = [tensor(shape=list(values.shape), data=values.tolist())]
    status, _, body = infer(api, inputs=inputs, outputs=[{"name": "y"}])
    assert status == 200
    assert orjson.loads(body)["outputs"][0]["data"] == values.ravel().tolist()
    inputs[0]["data"][7].append(1.0)
    assert infer(api, inputs=inputs)[0] == 400


def test_what_is_not_known_is_ignored(api):
    status, _, _ = infer(
        api,
        inputs=[tensor(parameters={"mine": [1]}, other=None)],
        outputs=[{"name": "y", "parameters": {"mine": 1}}],
        parameters={"sequence_id": 3, "priority": 1, "mine": {}, "timeout": 5_000_000},
        other=1,
    )
    assert status == 200


def test_a_timeout(api):
    status, _, body = infer(api, inputs=[tensor()], parameters={"timeout": 0})
    assert status == 200
    # A batch waits for others longer than that.
    status, _, body = infer(api, "batched", inputs=[tensor()], parameters={"timeout": 1})
    assert status == 504 and "deadline" in json.loads(body)["error"]


def test_binary_in_and_out(api):
    status, headers, body = infer(
        api,
        inputs=[binary(64)],
        outputs=[{"name": "sum"}, {"name": "y", "parameters": {"binary_data": True}}],
        tail=X.tobytes(),
    )
    assert status == 200 and headers[b"content-type"] == b"application/octet-stream"
    length = int(headers[HEADER_LENGTH])
    first, second = json.loads(body[:length])["outputs"]
    assert first["data"] == [120.0]
    assert second == {
        "name": "y",
        "datatype": "FP32",
        "shape": [1, 16],
        "parameters": {"binary_data_size": 64},
    }
    assert body[length:] == X.tobytes()


def test_a_body_that_is_the_tensor(api):
    def raw(model, body, **headers):
        path = f"/v2/models/{model}/infer"
        status, headers, answer = ask(api, "POST", path, body, {HEADER_LENGTH: b"0"})
        if status != 200:
            return status, json.loads(answer)["error"], b""
        length = int(headers[HEADER_LENGTH])
        return status, json.loads(answer[:length])["outputs"][0], answer[length:]

    status, found, data = raw("same", X.tobytes())
    assert (status, found["shape"], data[:64]) == (200, [1, 16], X.tobytes())
    status, found, data = raw("faulty", X.tobytes())
    assert status == 500
    for body in (X.tobytes()[:-1], X.tobytes() * 2, b""):
        assert raw("same", body)[0] == 400
    assert "one input" in raw("two", b"")[1]
    assert "shape" in raw("echo-float32", b"1234")[1]
    status, found, data = raw("text", b"\xff words")
    assert (status, found["shape"], data) == (200, [1, 1], b"\7\0\0\0\xff words")


def test_all_outputs_binary_but_one(api):
    _, headers, body = infer(
        api,
        inputs=[tensor()],
        outputs=[{"name": "y"}, {"name": "sum", "parameters": {"binary_data": False}}],
        parameters={"binary_data_output": True},
    )
    length = int(headers[HEADER_LENGTH])
    first, second = json.loads(body[:length])["outputs"]
    assert "data" not in first and second["data"] == [120.0]
    assert body[length:] == X.tobytes()


def test_classification(api):
    values = np.zeros((2, 16), np.float32)
    values[0, 3], values[0, 5], values[1, 15] = 2, 1, 0.5
    wish = [{"name": "y", "parameters": {"classification": 2}}]
    one = tensor(shape=[2, 16], data=values.tolist())
    (found,) = json.loads(infer(api, inputs=[one], outputs=wish)[2])["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [2, 2])
    assert found["data"] == ["2.000000:3", "1.000000:5", "0.500000:15", "0.000000:0"]
    one = tensor(datatype="BYTES", shape=[1], data=["a"])
    assert infer(api, "echo-bytes", inputs=[one], outputs=wish)[0] == 400


def test_numbers_that_json_does_not_have(api):
    values = np.array([[np.nan, np.inf, -np.inf, 1.5] * 4], np.float32)
    one = {"name": "x", "datatype": "FP32", "shape": [1, 16], "parameters": {"binary_data_size": 64}}
    status, _, body = infer(api, inputs=[one], outputs=[{"name": "y"}], tail=values.tobytes())
    assert status == 200 and b"[NaN,Infinity,-Infinity,1.5," in body.replace(b" ", b"")
    (found,) = json.loads(body)["outputs"]
    assert np.array_equal(np.array([found["data"]], np.float32), values, equal_nan=True)
    status, _, body = ask(api, "POST", "/v2/models/same/infer", b'{"inputs": [NaN]}')
    assert status == 400 and b"binary data" in body


def binary(size, **changes):
    one = tensor(parameters={"binary_data_size": size}, **changes)
    del one["data"]
    return one


WRONG = {
    "no inputs": ({}, "no list of inputs"),
    "inputs are no list": ({"inputs": {}}, "no list of inputs"),
    "input is no object": ({"inputs": [1]}, "no list of inputs"),
    "no such input": ({"inputs": [tensor(name="z")]}, "no input 'z'"),
    "input missing": ({"inputs": []}, "Input x is missing"),
    "input twice": ({"inputs": [tensor(), tensor()]}, "twice"),
    "name is no string": ({"inputs": [tensor(name=1)]}, "name of a tensor"),
    "name is huge": ({"inputs": [tensor(name="n" * 10**6)]}, "at most 500"),
    "no such datatype": ({"inputs": [tensor(datatype="FP8")]}, "datatype 'FP8'"),
    "datatype is a list": ({"inputs": [tensor(datatype=["FP32"])]}, "datatype"),
    "other datatype": ({"inputs": [tensor(datatype="FP64")]}, "float64"),
    "other rank": ({"inputs": [tensor(shape=[16])]}, r"shape [16]"),
    "other shape": ({"inputs": [tensor(shape=[2, 8])]}, r"shape [2, 8]"),
    "shape is none": ({"inputs": [tensor(shape=None)]}, "no shape"),
    "negative shape": ({"inputs": [tensor(shape=[-1, 16])]}, "integers from 0"),
    "shape of a boolean": ({"inputs": [tensor(shape=[True, 16])]}, "integers from 0"),
    "shape of fractions": ({"inputs": [tensor(shape=[1.0, 16])]}, "integers from 0"),
    "huge shape": ({"inputs": [tensor(shape=[2**31 - 1] * 8)]}, "its shape makes"),
    "hidden huge shape": ({"inputs": [tensor(shape=[0, *[2**31 - 1] * 4], data=[])]}, "large a shape"),
    "high rank": ({"inputs": [tensor(shape=[1] * 33)]}, "33 dimensions"),
    "too few": ({"inputs": [tensor(data=[1.0])]}, "1 elements"),
    "no data": ({"inputs": [tensor(data=None)]}, "no list of data"),
    "ragged": ({"inputs": [tensor(data=[[1.0], [2.0, 3.0]])]}, "nested as its shape"),
    "half nested": ({"inputs": [tensor(data=[1.0, [2.0]])]}, "nested as its shape"),
    "nested otherwise": ({"inputs": [tensor(data=X.reshape(4, 4).tolist())]}, "nested as its shape"),
    "nested deeper": ({"inputs": [tensor(data=X[..., None].tolist())]}, "not FP32"),
    "text": ({"inputs": [tensor(data=["1.0"] * 16)]}, "not FP32"),
    "nulls": ({"inputs": [tensor(data=[None] * 16)]}, "not FP32"),
    "booleans": ({"inputs": [tensor(data=[True] * 16)]}, "not FP32"),
    "objects": ({"inputs": [tensor(data=[{}] * 16)]}, "not FP32"),
    "too large": ({"inputs": [tensor(data=[1e39] * 16)]}, "too large for FP32"),
    "shared memory": ({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}, "no memory"),
    "parameters of input": ({"inputs": [tensor(parameters=[])]}, "no JSON object"),
    "id": ({"inputs": [tensor()], "id": 7}, "The id is no string"),
    "parameters": ({"inputs": [tensor()], "parameters": 7}, "no JSON object"),
    "flag": ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, "true or false"),
    "timeout": ({"inputs": [tensor()], "parameters": {"timeout": -1}}, "microseconds"),
    "outputs": ({"inputs": [tensor()], "outputs": "y"}, "no list of outputs"),
    "no such output": ({"inputs": [tensor()], "outputs": [{"name": "z"}]}, "no output 'z'"),
    "output twice": ({"inputs": [tensor()], "outputs": [{"name": "y"}] * 2}, "twice"),
    "classes": (
        {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"classification": "2"}}]},
        "number of classes",
    ),
    "binary without its header": ({"inputs": [binary(64)]}, "beyond the end"),
    "binary beyond the end": ({"inputs": [binary(64)], "tail": b"1" * 63}, "beyond the end"),
    "binary size negative": ({"inputs": [binary(-1)], "tail": b""}, "beyond the end"),
    "binary size no integer": ({"inputs": [binary(64.0)], "tail": b"1" * 64}, "beyond the end"),
    "binary size of another shape": ({"inputs": [binary(60)], "tail": b"1" * 60}, "make 64"),
    "binary left over": ({"inputs": [binary(64)], "tail": b"1" * 65}, "1 bytes"),
    "binary beside data": (
        {"inputs": [tensor(parameters={"binary_data_size": 64})], "tail": b"1" * 64},
        "both data and binary",
    ),
}


@pytest.mark.parametrize(("document", "says"), WRONG.values(), ids=WRONG)
def test_wrong_requests(api, document, says):
    status, headers, body = infer(api, **document)
    error = json.loads(body)["error"]
    assert status == 400 and says in error and len(error) < 700
    assert headers[b"content-type"] == b"application/json"


WRONG_ELEMENTS = {
    "fraction": ("int64", [1.5], "not INT64"),
    "whole fraction": ("int64", [1.0], "not INT64"),
    "boolean": ("int64", [True], "not INT64"),
    "beyond int8": ("int8", [128], "too large for INT8"),
    "below uint8": ("uint8", [-1], "too large for UINT8"),
    "beyond int64": ("int64", [2**63], "too large for INT64"),
    "number for a boolean": ("bool", [1], "not BOOL"),
    "number for text": ("bytes", [1], "not BYTES"),
    "half": ("float16", [1.0], "send binary data"),
    "brain": ("bfloat16", [1.0], "send binary data"),
}


@pytest.mark.parametrize(("dtype", "data", "says"), WRONG_ELEMENTS.values(), ids=WRONG_ELEMENTS)
def test_wrong_elements(api, dtype, data, says):
    datatype = {"bfloat16": "BF16", "float16": "FP16"}.get(dtype, dtype.upper())
    status, _, body = infer(
        api, f"echo-{dtype}", inputs=[tensor(datatype=datatype, shape=[1], data=data)]
    )
    assert status == 400 and says in json.loads(body)["error"]


BYTES = {
    "count": (struct.pack("<I", 1) + b"a", [2**30], "too few for"),
    "length": (struct.pack("<I", 2**32 - 1) + b"a", [1], "within element 0"),
    "second": (struct.pack("<I", 1) + b"a" + b"\0\0\0", [2], "within element 1"),
    "rest": (struct.pack("<I", 1) + b"ab", [1], "after its last"),
}


@pytest.mark.parametrize(("data", "shape", "says"), BYTES.values(), ids=BYTES)
def test_lies_in_binary_text(api, data, shape, says):
    one = binary(len(data), datatype="BYTES", shape=shape)
    status, _, body = infer(api, "echo-bytes", inputs=[one], tail=data)
    assert status == 400 and says in json.loads(body)["error"]


def test_bytes_that_are_no_boolean(api):
    one = binary(2, datatype="BOOL", shape=[2])
    status, _, body = infer(api, "echo-bool", inputs=[one], tail=b"\x01\x02")
    assert status == 400 and b"only 0 and 1" in body


def test_outputs_that_json_does_not_carry(api):
    one = binary(2, datatype="FP16", shape=[1])
    status, _, body = infer(api, "echo-float16", inputs=[one], tail=b"\0\0")
    assert status == 400 and b"ask for binary data" in body
    one = binary(5, datatype="BYTES", shape=[1])
    status, _, body = infer(api, "echo-bytes", inputs=[one], tail=b"\1\0\0\0\xff")
    assert status == 400 and b"not text in UTF-8" in body


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**5, b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}"],
    ids=["empty", "cut", "list", "null", "not text", "deep", "less deep"],
)
def test_bodies_that_are_no_requests(api, body):
    status, _, answer = ask(api, "POST", "/v2/models/same/infer", body)
    assert status == 400 and json.loads(answer)["error"]


@pytest.mark.parametrize(
    "length",
    [b"-1", b"x", b"", b"99999", b"1" * 5000, b"\xb2"],
    ids=["negative", "letter", "empty", "beyond", "huge", "other digit"],
)
def test_wrong_lengths_of_the_header(api, length):
    body = orjson.dumps({"inputs": [tensor()]})
    status, _, answer = ask(api, "POST", "/v2/models/same/infer", body, {HEADER_LENGTH: length})
    assert status == 400 and b"no length within the body" in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/same/infer", 405),
        ("POST", "/v2/models/same", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models", 404),
        ("POST", "/v2/models/same/infer//", 404),
        ("POST", "/v2/repository/models/same/unload//", 404),
        ("POST", "/v2//repository/models/same/unload", 404),
        ("GET", "/v2/other", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/same/other", 404),
        ("GET", "/v2/models/same/versions", 404),
        ("GET", "/v2/models/same/versions/x", 400),
        ("GET", "/v2/models/same/versions/-1", 400),
        ("GET", "/v2/models/same/versions/" + "1" * 40, 400),
        ("GET", "/v2/models/same/versions/2", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("POST", "/v2/repository/models/same/other", 404),
    ],
)
def test_paths_and_methods(api, method, path, status):
    found, headers, body = ask(api, method, path)
    assert found == status and json.loads(body)["error"]
    assert (b"allow" in headers) == (status == 405)


def test_a_fault_of_the_model_keeps_its_words(api):
    status, _, body = infer(api, "faulty", inputs=[tensor(shape=[1], data=[1])])
    assert status == 500 and b"faulty" in body and b"words" not in body


def test_failures_from_before(api):
    response = api.failure(RequestError(Code.RESOURCE_EXHAUSTED, "too large"))
    assert (response.status, response.body) == (429, b'{"error":"too large"}')
