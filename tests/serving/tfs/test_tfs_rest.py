"""The API over HTTP, as clients of TensorFlow Serving ask it."""

from __future__ import annotations

import asyncio
import base64
import json
import re

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfs_models import until

from strongroom.serving.config import ModelConfig
from strongroom.serving.decoding import LARGE
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES
from strongroom.serving.tfs.rest import TfsRest


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def test_half_plus_two(ask):
    assert ask("/m:predict", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
    assert ask.raw == b'{"predictions":[2.5,3.0,4.5]}'
    assert ask("/m:predict", {"inputs": [1, 2, 5]}) == (200, {"outputs": [2.5, 3.0, 4.5]})


@pytest.mark.parametrize("where", ["/m/versions/1", "/m/labels/stable"])
def test_a_version_and_a_label(ask, where):
    assert ask(f"{where}:predict", {"instances": [1.0]})[1] == {"predictions": [2.5]}
    assert ask(where)[1]["model_version_status"][0]["version"] == "1"
    assert ask(f"{where}/metadata")[0] == 200


def test_inputs_by_name(ask):
    rows = [{"x": 1.0}, {"x": 2.0}]
    assert ask("/m:predict", {"instances": rows})[1] == {"predictions": [2.5, 3.0]}
    assert ask("/m:predict", {"inputs": {"x": [1.0, 2.0]}})[1] == {"outputs": [2.5, 3.0]}


def test_several_inputs_and_outputs(ask):
    rows = [{"a": [1, 2], "b": 7}, {"b": 8, "a": [3, 4.5]}]
    answers = [
        {"s": [2.0, 4.0], "name_bytes": b64(b"\xff7"), "label": "n7"},
        {"s": [6.0, 9.0], "name_bytes": b64(b"\xff8"), "label": "n8"},
    ]
    body = {"signature_name": "two", "instances": rows}
    assert ask("/m:predict", body) == (200, {"predictions": answers})
    body = {"signature_name": "two", "inputs": {"a": [[1, 2], [3, 4.5]], "b": [7, 8]}}
    columns = {name: [one[name] for one in answers] for name in answers[0]}
    assert ask("/m:predict", body) == (200, {"outputs": columns})


def test_an_output_without_examples(ask):
    assert ask("/m:predict", {"signature_name": "total", "inputs": [1, 2]})[1] == {"outputs": 3.0}
    status, said = ask("/m:predict", {"signature_name": "total", "instances": [1, 2]})
    assert status == 400
    assert "no common first dimension" in said["error"]


VALUES = {
    **{one: [[0, 1], [100, 7]] for one in DTYPES if "int" in one},
    **{one: [[0.5, -1.25], [2, 1e3]] for one in DTYPES if "float" in one},
    "bool": [True, False],
    "bytes": [["text", "é"], ["", "x"]],
}


@pytest.mark.parametrize("dtype", VALUES)
def test_values_of_every_dtype(ask, dtype):
    body = {"signature_name": f"echo_{dtype}", "inputs": VALUES[dtype]}
    assert ask("/m:predict", body) == (200, {"outputs": VALUES[dtype]})


def test_the_limits_of_integers(ask):
    for dtype in ("int64", "uint64", "int8", "uint32"):
        info = np.iinfo(dtype)
        values = [int(info.min), 1, int(info.max)]
        body = {"signature_name": f"echo_{dtype}", "inputs": values}
        assert ask("/m:predict", body) == (200, {"outputs": values})
        body["inputs"] = [int(info.max) + 1]
        assert ask("/m:predict", body if info.bits < 64 else orjson_free(body))[0] == 400


def orjson_free(body):
    return json.dumps(body).encode()


def test_bytes_in_base64(ask):
    body = {"signature_name": "echo_bytes", "instances": [b64(b"abc"), "def", b64(b"\xfe\xff")]}
    assert ask("/m:predict", body)[1] == {"predictions": ["abc", "def", b64(b"\xfe\xff")]}
    body = {"signature_name": "echo_bytes", "inputs": {"b64": "YWI"}}
    assert ask("/m:predict", body)[1] == {"outputs": "ab"}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_numbers_that_are_none(ask, dtype):
    body = b'{"signature_name": "echo_%s", "inputs": [[NaN, 1.5], [-Infinity, Inf]]}' % dtype.encode()
    assert ask("/m:predict", body)[0] == 200
    assert ask.raw == b'{"outputs":[[NaN,1.5],[-Infinity,Infinity]]}'
    body = b'{"instances": [NaN, 1.0, -Inf]}'
    assert ask("/m:predict", body)[0] == 200
    assert ask.raw == b'{"predictions":[NaN,2.5,-Infinity]}'


def test_rows_with_numbers_that_are_none(ask):
    body = b'{"signature_name": "two", "instances": [{"a": [NaN, 1], "b": 1}, {"a": [0.1, 0], "b": 2}]}'
    assert ask("/m:predict", body)[0] == 200
    assert b'{"s":[NaN,2.0],"name_bytes":{' in ask.raw
    assert b'{"s":[0.2,0.0],' in ask.raw


def test_a_string_that_looks_like_a_number(ask):
    body = b'{"signature_name": "echo_bytes", "inputs": ["Inf \\" Inf", "NaN", "null", "\xc3\xa9"], "x": NaN}'
    assert ask("/m:predict", body)[0] == 200
    assert json.loads(ask.raw) == {"outputs": ['Inf " Inf', "NaN", "null", "é"]}


def test_a_byte_order_mark(ask):
    assert ask("/m:predict", b'\xef\xbb\xbf{"instances": [1]}')[1] == {"predictions": [2.5]}


MALFORMED = {
    "empty": (b"", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "no UTF-8": (b'{"instances": ["\xff"]}', "not JSON"),
    "deep": (b'{"instances": ' + b"[" * 100_000, "not JSON"),
    "deep with NaN": (b'{"instances": ' + b"[" * 100_000 + b"NaN", "not JSON"),
    "too many dimensions": (b'{"instances": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", "dimensions"),
    "half a pair": (b'{"instances": [NaN], "signature_name": "\\ud800"}', "not JSON"),
    "half a pair without": (b'{"instances": [1], "signature_name": "\\ud800"}', "not JSON"),
    "a number of 5000 digits": (b'{"instances": [NaN, ' + b"9" * 5000 + b"]}", "not JSON"),
    "1e400": (b'{"instances": [1e400]}', "not JSON"),
    "no JSON with NaN": (
        b'{"instances": [NaN, 1',
        "not JSON: Expecting ',' delimiter .line 1 column 22",
    ),
    "an array": (b"[]", "no JSON object"),
    "null": (b"null", "no JSON object"),
    "nothing": ({}, "either"),
    "both": ({"instances": [1], "inputs": [1]}, "either"),
    "instances is a number": ({"instances": 1}, "instances is a list"),
    "instances is an object": ({"instances": {"x": [1]}}, "instances is a list"),
    "no instances": ({"instances": []}, "one at least"),
    "signature": ({"instances": [1], "signature_name": 5}, "signature_name"),
    "null signature": ({"instances": [1], "signature_name": None}, "signature_name"),
    "unknown signature": ({"instances": [1], "signature_name": "other"}, "no signature 'other'"),
    "ragged": ({"instances": [[1, 2], [3]]}, "ragged"),
    "ragged in depth": ({"instances": [[1, 2], 3]}, "ragged"),
    "ragged inside": ({"instances": [1, [2]]}, "ragged"),
    "rank": ({"instances": [[1.0]]}, r"shape \[1, 1\]"),
    "text": ({"instances": ["1.5"]}, "a string among its values"),
    "boolean": ({"instances": [True, 1.5]}, "a boolean among"),
    "hole": ({"instances": [None]}, "null among"),
    "object among numbers": ({"instances": [1, {"x": 1}]}, "an object among"),
    "number among objects": ({"instances": [{"x": 1}, 1]}, "Instance 1 is no object"),
    "unknown input": ({"instances": [{"z": 1}]}, "Instance 0 is no object of the inputs x"),
    "unknown column": ({"inputs": {"x": [1], "z": 1}}, "no object of the inputs x"),
    "too large": ({"instances": [1e39]}, "outside the range of float32"),
    "base64 for numbers": ({"instances": [b64(b"1")]}, "an object among"),
    "unnamed": ({"signature_name": "two", "instances": [1]}, "has to name them"),
    "one of two": ({"signature_name": "two", "instances": [{"a": [1, 2]}]}, "inputs a, b"),
    "sizes differ": ({"signature_name": "two", "inputs": {"a": [[1, 2, 3]], "b": [1]}}, "shape"),
    "float for integer": ({"signature_name": "echo_int32", "inputs": [1.0]}, "a decimal number among"),
    "boolean for integer": ({"signature_name": "echo_int64", "inputs": [True]}, "a boolean among"),
    "number for boolean": ({"signature_name": "echo_bool", "inputs": [1]}, "an integer among"),
    "number for text": ({"signature_name": "echo_bytes", "inputs": [1]}, "an integer among"),
    "base64": ({"signature_name": "echo_bytes", "inputs": [{"b64": "*"}]}, "base64"),
    "base64 not ASCII": ({"signature_name": "echo_bytes", "inputs": [{"b64": "é"}]}, "base64"),
    "other object": ({"signature_name": "echo_bytes", "inputs": [{"c": "*"}]}, "base64"),
    "complex": ({"signature_name": "echo_complex64", "inputs": [1]}, "complex64"),
    "out of float16": ({"signature_name": "echo_float16", "inputs": [1e6]}, "range of float16"),
    "out of bfloat16": ({"signature_name": "echo_bfloat16", "inputs": [1e39]}, "range of bfloat16"),
    "out of int8": ({"signature_name": "echo_int8", "inputs": [128]}, "range of int8"),
    "out of uint64": ({"signature_name": "echo_uint64", "inputs": [-1]}, "range of uint64"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_mistake_is_told(ask, case):
    body, says = MALFORMED[case]
    status, said = ask("/m:predict", body)
    assert status == 400
    assert list(said) == ["error"]
    assert re.search(says, said["error"]), said
    assert len(said["error"]) < 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/other:predict", {"instances": [1]}, 404),
        ("/m/versions/9:predict", {"instances": [1]}, 404),
        ("/m/labels/no:predict", {"instances": [1]}, 404),
        ("/other", None, 404),
        ("/m/versions/9", None, 404),
        ("/m/labels/no/metadata", None, 404),
        ("/m/versions/99999999999999999999", None, 400),
        ("/m/versions/x", None, 400),
        ("/m:predict", None, 400),
        ("/m:explain", {}, 400),
        ("/m", {}, 400),
        ("/m/metadata", {}, 400),
        ("", None, 400),
        ("/m/Versions/1", None, 400),
        (f"/m/labels/{'x' * 2000}", None, 400),
        ("/", None, 400),
        ("/m/", None, 400),
        ("/m:predict", {"inputs": [1.0], "signature_name": "faulty"}, 500),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_not_there(ask, path, body, status):
    found, said = ask(path, body)
    assert (found, list(said)) == (status, ["error"])
    assert "secret" not in said["error"]


def test_the_status_of_a_model(ask):
    assert ask("/m") == (
        200,
        {
            "model_version_status": [
                {
                    "version": "1",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
    )


def test_a_model_that_is_not_there_says_why(tmp_path):
    engine = Engine([ModelConfig("n", str(tmp_path / "nothing"))], None, poll=0.05)
    engine.start()
    api = TfsRest(engine)

    def asked():
        answer = asyncio.run(api.handle(HttpRequest("GET", "/v1/models/n", {})))
        return answer.status == 503 and "no such file" in orjson.loads(answer.body)["error"]

    try:
        until(asked)
    finally:
        engine.close(5)


def test_the_metadata_of_a_model(ask):
    status, found = ask("/m/metadata")
    assert status == 200
    assert found["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    assert signatures["two"]["inputs"]["a"] == {
        "dtype": "DT_FLOAT",
        "name": "a",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
    }
    assert signatures["echo_bytes"]["inputs"]["x"]["dtype"] == "DT_STRING"
    assert signatures["echo_bytes"]["inputs"]["x"]["tensor_shape"]["unknown_rank"] is True


def test_classify_serialized_examples(ask):
    body = {"signature_name": "classify", "examples": [{"x": 1.5}, {"x": [2.0, 0.25]}]}
    rows = [[["low", 1.5], ["high", -1.5]], [["low", 2.25], ["high", -2.25]]]
    assert ask("/m:classify", body) == (200, {"results": rows})
    body = b'{"signature_name": "classify", "examples": [{"x": NaN}]}'
    assert ask("/m:classify", body)[0] == 200
    assert ask.raw == b'{"results":[[["low",NaN],["high",NaN]]]}'


def test_regress_with_a_context(ask):
    body = {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{}, {"x": 0.5}]}
    assert ask("/m:regress", body) == (200, {"results": [4.0, 0.5]})


def test_features_are_inputs_by_name(ask):
    examples = [{"x": [1.5, 2.0], "n": 3, "t": "a"}, {"x": [0.0, 1.0], "n": True, "t": b64(b"\xff")}]
    body = {"signature_name": "by_feature", "examples": examples}
    assert ask("/m:regress", body) == (200, {"results": [6.5, 2.0]})
    assert ask("/m:classify", body) == (
        200,
        {"results": [[["", 1.5], ["", 2.0]], [["", 0.0], ["", 1.0]]]},
    )


GOOD = {"x": [1.0, 2.0], "n": 3, "t": "a"}
NOT_EXAMPLES = {
    "no examples": ({}, "examples is a list"),
    "empty": ({"examples": []}, "one at least"),
    "an object": ({"examples": {}}, "examples is a list"),
    "no object": ({"examples": [1]}, "Example 0 is no object"),
    "context": ({"examples": [GOOD], "context": 1}, "The context is no object"),
    "null": ({"examples": [GOOD | {"x": None}]}, "no list of strings or numbers"),
    "nested": ({"examples": [GOOD | {"x": [[1.0]]}]}, "no list of strings or numbers"),
    "two kinds": ({"examples": [GOOD | {"x": [1.0, "a"]}]}, "two kinds"),
    "object": ({"examples": [GOOD | {"t": {"a": 1}}]}, "base64"),
    "huge integer": ({"examples": [GOOD | {"n": 1 << 63}]}, "range of int64"),
    "huge number": ({"examples": [GOOD | {"x": [1e39, 1.0]}]}, "range of float32"),
    "missing": ({"examples": [GOOD, {"x": [1.0, 2.0], "t": "a"}]}, "Example 1 has no feature n"),
    "size": ({"examples": [GOOD | {"x": [1.0, 2.0, 3.0]}]}, r"3 values, and the model wants \[2\]"),
    "sizes": ({"examples": [GOOD, GOOD | {"x": [1.0]}]}, "1 values in example 1, and 2 in the first"),
    "text for numbers": ({"examples": [GOOD | {"x": ["a", "b"]}]}, "has strings, and the model wants"),
    "numbers for text": ({"examples": [GOOD | {"t": 1}]}, "has integers, and the model wants bytes"),
    "floats for integers": ({"examples": [GOOD | {"n": 1.0}]}, "has floats, and the model wants int64"),
    "no values": ({"examples": [GOOD | {"n": []}]}, "has nothing, and the model wants"),
}


@pytest.mark.parametrize("case", NOT_EXAMPLES)
def test_what_are_no_examples(ask, case):
    body, says = NOT_EXAMPLES[case]
    status, said = ask("/m:classify", {"signature_name": "by_feature"} | body)
    assert status == 400
    assert re.search(says, said["error"]), said


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_a_signature_for_something_else(ask, method):
    other = {"classify": "regress", "regress": "classify"}[method]
    for name in ("serving_default", other):
        status, said = ask(f"/m:{method}", {"signature_name": name, "examples": [{"x": 1.0}]})
        assert status == 400
        assert f"is none to {method}" in said["error"]


def test_failures_in_the_form_of_the_protocol(engine):
    answer = TfsRest(engine).failure(RequestError(Code.RESOURCE_EXHAUSTED, "Too much \udcff."))
    assert (answer.status, answer.body) == (429, rb'{"error":"Too much \\udcff."}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("x", "a", "b", "n", "t", "b64", "é")), inner, max_size=3)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from(("instances", "inputs", "examples", "context", "signature_name")), JSON, max_size=3
)


@settings(max_examples=300)
@given(body=BODIES, signature=st.sampled_from(("two", "by_feature", "echo_bytes", "classify", None)))
def test_no_body_makes_it_fail(ask, body, signature):
    if signature:
        body = body | {"signature_name": signature}
    for method in ("predict", "classify", "regress"):
        status, _ = ask(f"/m:{method}", json.dumps(body).encode("utf-8", "surrogatepass"))
        assert status in (200, 400), ask.raw


def test_large_bodies(ask):
    """Decoded by a thread."""
    values = np.arange(120_000, dtype=np.float32).reshape(2, 100, 200, 3)
    body = orjson.dumps(
        {"signature_name": "echo_float32", "instances": values}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    assert len(body) > LARGE
    status, found = ask("/m:predict", body)
    assert status == 200
    assert np.array_equal(np.array(found["predictions"], np.float32), values)
    status, said = ask("/m:predict", body[:-3] + b',"x"]}')
    assert (status, list(said)) == (400, ["error"])
    status, said = ask("/m:predict", body.replace(b"7.0,", b"", 1))
    assert status == 400
    assert "ragged" in said["error"]
    examples = [{"x": [1.5] * 100_000}, {"x": [0.0, 0.25]}]
    status, found = ask("/m:regress", {"signature_name": "regress", "examples": examples})
    assert (status, found) == (200, {"results": [150_000.0, 0.25]})


def test_answers_come_in_parallel(engine):
    api = TfsRest(engine)

    async def several():
        bodies = [orjson.dumps({"instances": [float(one)]}) for one in range(20)]
        return await asyncio.gather(
            *(api.handle(HttpRequest("POST", "/v1/models/m:predict", {}, one)) for one in bodies)
        )

    answers = [orjson.loads(one.body)["predictions"] for one in asyncio.run(several())]
    assert answers == [[one / 2 + 2] for one in range(20)]
