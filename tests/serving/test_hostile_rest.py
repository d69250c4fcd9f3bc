"""Requests over HTTP that are wrong: each is answered by the protocol's own error, and harms nobody else."""

from __future__ import annotations

import json
import math
import struct

import pytest
from sealed_server import Serve

CANARY = 31337.25
"""A value that no answer and no line of the log may repeat."""

V2 = "/v2/models/{}/infer"
TFS = "/v1/models/{}:predict"
LENGTH = "inference-header-content-length"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Serve.of_all(tmp_path_factory.mktemp("hostile"), "--max-request-bytes", "1000000")
    yield made
    try:
        made.check_health()
        assert str(CANARY) not in made.text()
    finally:
        made.kill()


def refused(server, path, body, headers=None, statuses=(400,), method="POST"):
    """The words of a refusal in the protocols' form; nothing of what was sent is in it."""
    if type(body) not in (bytes, type(None)):
        body = json.dumps(body).encode()
    status, found, content = server.ask(method, path, body, headers or {})
    assert status in statuses, (status, content)
    assert found["content-type"] == "application/json"
    answer = json.loads(content)
    assert list(answer) == ["error"]
    assert type(answer["error"]) is str and 0 < len(answer["error"]) < 2000
    assert str(CANARY) not in answer["error"]
    return answer["error"]


def tensor(**changes):
    made = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [CANARY] * 16, **changes}
    return {name: value for name, value in made.items() if value is not ...}


def infer(*tensors, **more):
    return {"inputs": list(tensors), **more}


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


def text(data):
    """A body whose data is written as it is."""
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,16],"data":%s}]}' % data.encode()


WRONG_V2 = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "no inputs": {},
    "inputs no list": {"inputs": {"name": "x"}},
    "input no object": {"inputs": [1]},
    "no input": {"inputs": []},
    "other name": infer(tensor(name="z")),
    "name no text": infer(tensor(name=7)),
    "name too long": infer(tensor(name="x" * 100_000)),
    "one too many": infer(tensor(), tensor(name="z")),
    "twice": infer(tensor(), tensor()),
    "other dtype": infer(tensor(datatype="FP64")),
    "no such dtype": infer(tensor(datatype="FP31")),
    "dtype no text": infer(tensor(datatype=["FP32"])),
    "no dtype": infer(tensor(datatype=...)),
    "half in json": infer(tensor(datatype="FP16")),
    "no shape": infer(tensor(shape=...)),
    "shape no list": infer(tensor(shape=16)),
    "rank 1": infer(tensor(shape=[16])),
    "rank 3": infer(tensor(shape=[1, 16, 1])),
    "rank 0": infer(tensor(shape=[])),
    "rank 1000": infer(tensor(shape=[1] * 1000)),
    "other size": infer(tensor(shape=[1, 15], data=[CANARY] * 15)),
    "negative": infer(tensor(shape=[-1, 16])),
    "negative twice": infer(tensor(shape=[-1, -16])),
    "size as text": infer(tensor(shape=["1", 16])),
    "size as float": infer(tensor(shape=[1.0, 16])),
    "size as boolean": infer(tensor(shape=[True, 16])),
    "huge size": infer(tensor(shape=[2**31 - 1, 16])),
    "huge sizes": infer(tensor(shape=[2**31 - 1] * 60)),
    "size beyond 64 bits": text("[1]").replace(b"[1,16]", b"[99999999999999999999,16]"),
    "too few": infer(tensor(data=[CANARY] * 15)),
    "too many": infer(tensor(data=[CANARY] * 17)),
    "no data": infer(tensor(data=...)),
    "data null": infer(tensor(data=None)),
    "data text": infer(tensor(data=str(CANARY))),
    "data object": infer(tensor(data={"0": CANARY})),
    "null among": infer(tensor(data=[CANARY] * 15 + [None])),
    "text among": infer(tensor(data=[CANARY] * 15 + [str(CANARY)])),
    "boolean among": infer(tensor(data=[CANARY] * 15 + [True])),
    "object among": infer(tensor(data=[CANARY] * 15 + [{}])),
    "ragged": infer(tensor(shape=[2, 2], data=[[CANARY, 1], [2]])),
    "ragged in depth": infer(tensor(data=[[CANARY] * 8, [[1]] * 8])),
    "mixed": infer(tensor(data=[[CANARY] * 15, 1])),
    "NaN": infer(tensor(data=[math.nan] * 16)),
    "infinity": infer(tensor(data=[math.inf] * 16)),
    "beyond float32": infer(tensor(data=[1e39] * 16)),
    "beyond float64": text("[" + "1e999," * 15 + "1]"),
    "integer without end": text("[" + "1" * 5000 + "]"),
    "number without end": text("[0." + "1" * 500_000),
    "deep": text(nested(1000)),
    "deeper": text(nested(200_000)),
    "deep and open": b"[" * 900_000,
    "deep objects": b'{"a":' * 100_000,
    "deep inputs": b'{"inputs":' + nested(500).encode() + b"}",
    "not closed": text("[1")[:-4],
    "not UTF-8": b'{"inputs":"\xff\xfe"}',
    "half a pair": rb'{"inputs":[{"name":"\ud800"}]}',
    "nothing but zeros": bytes(1000),
    "binary without a header": infer(tensor(data=..., parameters={"binary_data_size": 64})),
    "shared memory": infer(tensor(data=..., parameters={"shared_memory_region": "a"})),
    "parameters no object": infer(tensor(parameters=[])),
    "id no text": infer(tensor(), id=7),
    "timeout negative": infer(tensor(), parameters={"timeout": -1}),
    "timeout as text": infer(tensor(), parameters={"timeout": "1"}),
    "timeout too large": infer(tensor(), parameters={"timeout": 2**64 - 1, "binary_data_output": 1}),
    "no such output": infer(tensor(), outputs=[{"name": "z"}]),
    "output twice": infer(tensor(), outputs=[{"name": "y"}] * 2),
    "outputs no list": infer(tensor(), outputs="y"),
    "classes": infer(tensor(), outputs=[{"name": "y", "parameters": {"classification": -1}}]),
    "classes without end": infer(
        tensor(), outputs=[{"name": "y", "parameters": {"classification": 2**70}}]
    ),
}


@pytest.mark.parametrize("model", ["m", "batched"])
@pytest.mark.parametrize("name", WRONG_V2)
def test_v2(server, model, name):
    refused(server, V2.format(model), WRONG_V2[name])


WRONG_TFS = {
    "empty": b"",
    "list": b"[]",
    "neither": {},
    "both": {"instances": [[1] * 16], "inputs": [[1] * 16]},
    "null": {"instances": None},
    "no list": {"instances": 7},
    "none": {"instances": []},
    "text": {"instances": str(CANARY)},
    "rank 1": {"instances": [CANARY] * 16},
    "rank 3": {"instances": [[[CANARY] * 16]]},
    "other size": {"instances": [[CANARY] * 15]},
    "ragged": {"instances": [[CANARY] * 16, [1] * 15]},
    "ragged in depth": {"instances": [[CANARY] * 16, [[1]] * 16]},
    "mixed": {"instances": [[CANARY] * 16, 1]},
    "null among": {"instances": [[None] * 16]},
    "text among": {"instances": [[str(CANARY)] * 16]},
    "booleans": {"instances": [[True] * 16]},
    "bytes": {"instances": [[{"b64": "MzEzMzcuMjU="}] * 16]},
    "objects": {"instances": [[{}] * 16]},
    "other name": {"instances": [{"z": [CANARY] * 16}]},
    "one name too many": {"instances": [{"x": [CANARY] * 16, "z": 1}]},
    "some named": {"instances": [{"x": [CANARY] * 16}, [1] * 16]},
    "columns of another name": {"inputs": {"z": [[CANARY] * 16]}},
    "beyond float32": {"instances": [[1e39] * 16]},
    "beyond float64": b'{"instances":[[' + b"1e999," * 15 + b"1]]}",
    "integer without end": b'{"instances":[[' + b"1" * 5000 + b"]]}",
    "number without end": b'{"instances":[[0.' + b"1" * 500_000,
    "NaN alone": b"NaN",
    "NaN and no JSON": b'{"instances":[[NaN]}',
    "NaN and deep": b'{"instances":[NaN,' + nested(100_000).encode() + b"]}",
    "deep": b'{"instances":' + nested(1000).encode() + b"}",
    "deeper": b'{"instances":' + nested(200_000).encode() + b"}",
    "deep objects": b'{"instances":[' + b'{"a":' * 100_000,
    "deep and open": b"[" * 900_000,
    "not UTF-8": b'{"instances":["\xff\xfe"]}',
    "half a pair": rb'{"instances":["\ud800"]}',
    "no such signature": {"signature_name": "z", "instances": [[1] * 16]},
    "signature no text": {"signature_name": 7, "instances": [[1] * 16]},
}


@pytest.mark.parametrize("name", WRONG_TFS)
def test_tfs(server, name):
    refused(server, TFS.format("m"), WRONG_TFS[name])


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_examples(server, method):
    path = f"/v1/models/m:{method}"
    for examples in (None, [], [1], [{"x": [CANARY] * 16}], [{"x": {}}], [{"x": [None]}]):
        refused(server, path, {"examples": examples})


def with_header(document, tail, length=None):
    text = json.dumps(document).encode()
    return text + tail, {LENGTH: str(len(text) if length is None else length)}


def binary(datatype, shape, size):
    one = {"name": "x", "datatype": datatype, "shape": shape}
    return {"inputs": [one | {"parameters": {"binary_data_size": size}}]}


GOOD = bytes(64)


@pytest.mark.parametrize(
    ("model", "document", "tail"),
    [
        ("m", binary("FP32", [1, 16], 64), GOOD[:-1]),
        ("m", binary("FP32", [1, 16], 64), b""),
        ("m", binary("FP32", [1, 16], 64), GOOD + b"more"),
        ("m", binary("FP32", [1, 16], 60), GOOD[:60]),
        ("m", binary("FP32", [2, 16], 64), GOOD),
        ("m", binary("FP32", [1, 16], -1), GOOD),
        ("m", binary("FP32", [1, 16], 2**63), GOOD),
        ("m", binary("FP32", [1, 16], 64.0), GOOD),
        ("m", binary("FP32", [1, 16], None), GOOD),
        ("m", binary("FP32", [2**31 - 1] * 2, 64), GOOD),
        ("m", binary("FP16", [1, 16], 32), GOOD[:32]),
        ("bools", binary("BOOL", [1, 2], 2), b"\x01\x02"),
        ("texts", binary("BYTES", [1, 2], 8), struct.pack("<II", 0, 1)),
        ("texts", binary("BYTES", [1, 2], 9), struct.pack("<II", 0, 0) + b"x"),
        ("texts", binary("BYTES", [1, 2], 8), struct.pack("<II", 2**32 - 1, 0)),
        ("texts", binary("BYTES", [2**31 - 1, 2], 8), bytes(8)),
    ],
)
def test_truncated_and_wrong_binary_tensors(server, model, document, tail):
    body, headers = with_header(document, tail)
    refused(server, V2.format(model), body, headers)


@pytest.mark.parametrize(
    "length", ["-1", "1e3", "abc", "", "99999999999999999999999", "1000", "0x10", "²", " "]
)
def test_wrong_lengths_of_the_header(server, length):
    body, _ = with_header(binary("FP32", [1, 16], 64), GOOD)
    refused(server, V2.format("m"), body, {LENGTH: length.encode("utf-8")})


def test_a_bare_body_of_another_size(server):
    for size in (0, 1, 63, 65, 128):
        refused(server, V2.format("m"), bytes(size), {LENGTH: "0"})


def test_numbers_at_the_edge_are_computed_with(server):
    """NaN, infinities and denormals are values like others, where the form has them."""
    values = [math.nan, math.inf, -math.inf, 3.4028234663852886e38, 1e-45, -0.0, 1e-400, *[0.0] * 9]
    body, headers = with_header(
        binary("FP32", [1, 16], 64) | {"parameters": {"binary_data_output": True}},
        struct.pack("<16f", *values),
    )
    for model in ("m", "batched"):
        status, found, content = server.ask("POST", V2.format(model), body, headers)
        assert status == 200
        answer = struct.unpack("<16f", content[int(found["inference-header-content-length"]) :])
        assert math.isnan(answer[0])
        assert answer[1:4] == (math.inf, -math.inf, math.inf)
    for form in ("NaN", "Infinity", "-Infinity", "-Inf"):
        sent = f'{{"instances":[[{form}{",0" * 15}]]}}'.encode()
        status, _, content = server.ask("POST", TFS.format("m"), sent)
        assert status == 200
        assert not math.isfinite(json.loads(content)["predictions"][0][0])


@pytest.mark.parametrize(
    ("model", "datatype", "data"),
    [
        ("ints", "INT32", [2**31, 0]),
        ("ints", "INT32", [-(2**31) - 1, 0]),
        ("ints", "INT32", [2**64, 0]),
        ("ints", "INT32", [10**400, 0]),
        ("ints", "INT32", [1.0, 0]),
        ("ints", "INT32", [1e300, 0]),
        ("ints", "INT32", [True, False]),
        ("bytes", "UINT8", [-1, 0]),
        ("bytes", "UINT8", [256, 0]),
        ("bools", "BOOL", [0, 1]),
        ("bools", "BOOL", ["true", "false"]),
        ("texts", "BYTES", [1, 2]),
        ("texts", "BYTES", [None, None]),
        ("texts", "BYTES", [["a"], "b"]),
    ],
)
def test_values_outside_their_dtype(server, model, datatype, data):
    refused(server, V2.format(model), infer(tensor(datatype=datatype, shape=[1, 2], data=data)))
    refused(server, TFS.format(model), {"instances": [data]})


@pytest.mark.parametrize("index", [4, -5, 2**62])
def test_values_that_the_model_cannot_compute_with(server, index):
    one = tensor(datatype="INT64", shape=[1], data=[index])
    refused(server, V2.format("gather"), infer(one))
    refused(server, TFS.format("gather"), {"instances": [index]})


def test_sizes_that_the_model_cannot_compute_with(server):
    refused(server, V2.format("reshape"), infer(tensor(shape=[4], data=[CANARY] * 4)))
    refused(server, TFS.format("reshape"), {"instances": [CANARY] * 4})
    size = tensor(datatype="INT64", shape=[1], data=[2**45])
    refused(server, V2.format("fill"), infer(size), statuses=(429,))
    refused(server, TFS.format("fill"), {"instances": [2**45]}, statuses=(429,))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/none/infer", 404),
        ("/v2/models/m/versions/2/infer", 404),
        ("/v2/models/m/versions/x/infer", 400),
        ("/v2/models/m/versions/-1/infer", 400),
        ("/v2/models/m/versions/99999999999999999999/infer", 400),
        ("/v2/models/m/versions/%D9%A1/infer", 400),
        ("/v2/models//infer", 404),
        ("/v2/models/%00/infer", 404),
        ("/v2/models/..%2F..%2Fetc/infer", 404),
        ("/v2/models/" + "a" * 20_000 + "/infer", 404),
        ("/v2/models/m/infer/more", 404),
        ("/v2/nothing", 404),
        ("/v1/models/none:predict", 404),
        ("/v1/models/m/versions/2:predict", 404),
        ("/v1/models/m/versions/x:predict", 400),
        ("/v1/models/m/labels/none:predict", 404),
        ("/v1/models/m:explain", 400),
        ("/v1/models/:predict", 400),
        ("/v1/models/%FF:predict", 404),
        ("/v1/models/" + "a" * 20_000 + ":predict", 400),
        ("/v1/models/m:predict:predict", 400),
    ],
)
def test_paths(server, path, status):
    body = infer(tensor()) if path.startswith("/v2") else {"instances": [[1] * 16]}
    said = refused(server, path, body, statuses=(status,))
    assert len(said) < 400


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"]
)
def test_methods(server, method):
    for path in (V2.format("m"), TFS.format("m")):
        status, _, _ = server.ask(method, path, b"{}")
        assert status in (400, 405)


def test_a_path_that_is_no_text_for_a_log(server):
    """Ends of lines and commands of terminals stay in their line, as escapes."""
    server.ask("GET", "/v1/models/m/labels/%0A%C2%85%E2%80%A8%C2%9B31m%7F%1B%5B31m")
    server.until(lambda: "31m" in server.text())
    line = next(one for one in server.text().splitlines() if "31m" in one)
    assert line.isascii()
    assert "\x1b" not in line
    assert json.loads(line)["request"].startswith("GET /v1/models/m/labels/\n\x85\u2028\x9b31m")
