"""Tensors as JSON and as bytes: what goes in comes out, and nothing else does."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from v2_engine import ask

from strongroom.serving.status import RequestError
from strongroom.serving.v2 import binary, json_tensors
from strongroom.serving.v2.datatypes import DATATYPES

NUMBERS = [name for name in DATATYPES if name not in ("BF16", "BYTES")]
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw, names=NUMBERS, finite=False):
    dtype = DATATYPES[draw(st.sampled_from(names))]
    options = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else {}
    elements = arrays_of.from_dtype(dtype, **options)
    return draw(arrays_of.arrays(dtype, draw(SHAPES), elements=elements))


@st.composite
def texts(draw, elements):
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    found = np.empty(count, object)
    found[:] = draw(st.lists(elements, min_size=count, max_size=count))
    return found.reshape(shape)


def same(one, other):
    assert one.dtype == other.dtype and one.shape == other.shape
    if one.dtype.hasobject:
        return one.tolist() == other.tolist()
    return one.tobytes() == other.tobytes()


@given(tensors() | texts(st.binary(max_size=20)), st.integers(0, 7))
def test_bytes_and_back(array, offset):
    data = binary.encode(array)
    found = binary.decode("x", array.dtype, array.shape, data)
    assert same(found, array)
    # Within a body the tensor lies anywhere.
    shifted = memoryview(b"\0" * offset + bytes(data))[offset:]
    found = binary.decode("x", array.dtype, array.shape, shifted)
    assert same(found, array) and found.flags.aligned


@given(tensors([one for one in NUMBERS if one != "FP16"], finite=True) | texts(st.binary()))
def test_bytes_that_are_cut(array):
    data = bytes(binary.encode(array))
    for wrong in (data[:-1], data + b"\0"):
        if wrong != data:
            with pytest.raises(RequestError):
                binary.decode("x", array.dtype, array.shape, wrong)


@given(
    tensors([one for one in NUMBERS if one != "FP16"], finite=True)
    | texts(st.text(max_size=5).map(lambda one: one.encode(errors="replace"))),
    st.booleans(),
)
def test_json_and_back(array, nested):
    dumped = json_tensors.dump({"outputs": [{"data": json_tensors.encode("y", array)}]})
    data = orjson.loads(dumped)["outputs"][0]["data"]
    if nested and array.ndim:
        data = orjson.loads(
            orjson.dumps(
                np.array([one.decode() for one in array.ravel()], object).reshape(array.shape).tolist()
                if array.dtype.hasobject
                else array.tolist()
            )
        )
    found = json_tensors.decode("x", array.dtype, array.shape, data)
    assert same(found, array)


def test_a_view_of_the_body():
    body = np.arange(4, dtype=np.float32).tobytes()
    found = binary.decode("x", np.dtype("f4"), [2, 2], body)
    assert not found.flags.owndata and np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert np.shares_memory(np.frombuffer(binary.encode(found), np.uint8), found)


@given(st.binary(max_size=64), st.lists(st.integers(-2, 2**40), max_size=4))
def test_any_bytes_as_text(data, shape):
    try:
        found = binary.decode("x", DATATYPES["BYTES"], shape, data)
    except RequestError:
        return
    assert binary.encode(found) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
MEMBERS = st.sampled_from(["name", "datatype", "shape", "data", "parameters"])
SIZES = st.lists(st.integers(0, 4) | st.just(2**63) | JSON, max_size=3)


@settings(max_examples=300)
@given(
    st.sampled_from([*DATATYPES]),
    SIZES,
    JSON | st.lists(st.integers() | st.floats(), max_size=6),
    st.dictionaries(MEMBERS, JSON, max_size=2),
    st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "inputs"]), JSON, max_size=1),
)
def test_any_json(api, datatype, shape, data, changes, others):
    """A request is answered, or the client's fault, in the form of the protocol."""
    one = {"name": "x", "datatype": datatype, "shape": shape, "data": data, **changes}
    model = {"BF16": "bfloat16", "FP16": "float16", "FP32": "float32", "FP64": "float64"}
    path = f"/v2/models/echo-{model.get(datatype, datatype.lower())}/infer"
    body = json.dumps({"inputs": [one], **others}).encode(errors="replace")
    status, _, answer = ask(api, "POST", path, body)
    if status == 200:
        assert json.loads(answer)["outputs"][0]["name"] == "y"
    else:
        assert status == 400 and json.loads(answer)["error"]
