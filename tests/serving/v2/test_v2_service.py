"""gRPC requests that are wrong, and mutated messages."""

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.serving.messages import message, method_types

SERVICE = "inference.GRPCInferenceService"
X = np.arange(16, dtype=np.float32).reshape(1, 16)
Request = message("inference.ModelInferRequest")


@pytest.fixture(scope="module")
def infer(grpc_address):
    """A call with bytes for a request."""
    with grpc.insecure_channel(grpc_address) as channel:
        response = method_types(SERVICE)["ModelInfer"][1]
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=response.FromString)
        yield lambda request, **how: call(request, timeout=60, **how)


def request(model="same", raw=None, contents=None, outputs=(), **changes):
    made = Request(model_name=model, id="seven", outputs=[{"name": one} for one in outputs])
    one = {"name": "x", "datatype": "FP32", "shape": [1, 16], **changes}
    made.inputs.add(**one, contents=contents)
    if raw is not None:
        made.raw_input_contents.append(raw)
    return made


def test_contents(infer):
    found = infer(
        request(contents={"fp32_contents": X.ravel().tolist()}, outputs=["sum"]).SerializeToString()
    )
    assert (found.model_name, found.model_version, found.id) == ("same", "1", "seven")
    assert [one.name for one in found.outputs] == ["sum"]
    assert np.frombuffer(found.raw_output_contents[0]) == [120.0]


@pytest.mark.parametrize(
    ("dtype", "field", "data"),
    [
        ("bool", "bool", [True, False]),
        ("int8", "int", [-128, 127]),
        ("int16", "int", [-(2**15), 2**15 - 1]),
        ("int32", "int", [-(2**31), 2**31 - 1]),
        ("int64", "int64", [-(2**63), 2**63 - 1]),
        ("uint8", "uint", [0, 255]),
        ("uint16", "uint", [0, 65535]),
        ("uint32", "uint", [0, 2**32 - 1]),
        ("uint64", "uint64", [0, 2**64 - 1]),
        ("float64", "fp64", [1e300, -0.0]),
    ],
)
def test_contents_of_every_dtype(infer, dtype, field, data):
    datatype = "FP64" if dtype == "float64" else dtype.upper()
    made = request(f"echo-{dtype}", contents={f"{field}_contents": data}, datatype=datatype, shape=[2])
    found = infer(made.SerializeToString())
    assert found.outputs[0].datatype == datatype
    assert np.frombuffer(found.raw_output_contents[0], dtype).tolist() == data


def test_text_contents(infer):
    data = [b"a", b"", b"\xff" * 300]
    made = request("echo-bytes", contents={"bytes_contents": data}, datatype="BYTES", shape=[3, 1])
    found = infer(made.SerializeToString())
    expected = b"".join(len(one).to_bytes(4, "little") + one for one in data)
    assert found.raw_output_contents[0] == expected


def more(made, change):
    change(made)
    return made


SOME = {"fp32_contents": X.ravel().tolist()}
RAW = X.tobytes()
WRONG = {
    "no model": (request("none", raw=RAW), "NOT_FOUND", "no model"),
    "empty": (Request(), "NOT_FOUND", "no model"),
    "no input": (Request(model_name="same"), "INVALID_ARGUMENT", "x is missing"),
    "version": (
        more(request(raw=RAW), lambda one: setattr(one, "model_version", "x")),
        "INVALID_ARGUMENT",
        "version is a number",
    ),
    "no version": (
        more(request(raw=RAW), lambda one: setattr(one, "model_version", "7")),
        "NOT_FOUND",
        "no version 7",
    ),
    "name": (request(raw=RAW, name="z"), "INVALID_ARGUMENT", "no input 'z'"),
    "long name": (request(raw=RAW, name="ü" * 10**6), "INVALID_ARGUMENT", "at most 500"),
    "datatype": (request(raw=RAW, datatype="ü" * 10**6), "INVALID_ARGUMENT", "datatype"),
    "output": (request(raw=RAW, outputs=["ü" * 400]), "INVALID_ARGUMENT", "no output"),
    "output twice": (request(raw=RAW, outputs=["y", "y"]), "INVALID_ARGUMENT", "twice"),
    "raw too short": (request(raw=RAW[:-1]), "INVALID_ARGUMENT", "63 bytes"),
    "raw too long": (request(raw=RAW + b"1"), "INVALID_ARGUMENT", "65 bytes"),
    "more raw than inputs": (
        more(request(raw=RAW), lambda one: one.raw_input_contents.append(RAW)),
        "INVALID_ARGUMENT",
        "1 inputs and 2 raw",
    ),
    "both": (request(raw=RAW, contents=SOME), "INVALID_ARGUMENT", "both"),
    "neither": (request(), "INVALID_ARGUMENT", "0 elements"),
    "contents of others": (
        request(contents={"int_contents": [1] * 16}),
        "INVALID_ARGUMENT",
        "int_contents",
    ),
    "contents of two": (
        request(contents={"int_contents": [1] * 16, **SOME}),
        "INVALID_ARGUMENT",
        "int_contents",
    ),
    "too few": (request(contents={"fp32_contents": [1]}), "INVALID_ARGUMENT", "1 elements"),
    "too large": (
        request("echo-int8", contents={"int_contents": [128]}, datatype="INT8", shape=[1]),
        "INVALID_ARGUMENT",
        "too large for INT8",
    ),
    "half": (
        request("echo-float16", contents=SOME, datatype="FP16"),
        "INVALID_ARGUMENT",
        "raw contents only",
    ),
    "shape": (request(raw=RAW, shape=[2, 8]), "INVALID_ARGUMENT", "shape [2, 8]"),
    "huge shape": (request(raw=RAW, shape=[2**31 - 1] * 9), "INVALID_ARGUMENT", "make"),
    "negative shape": (request(raw=RAW, shape=[-1, -16]), "INVALID_ARGUMENT", "integers from 0"),
    "high rank": (request(raw=RAW, shape=[1] * 10**5), "INVALID_ARGUMENT", "100000 dimensions"),
    "shared memory": (
        request(parameters={"shared_memory_region": {"string_param": "r"}}),
        "INVALID_ARGUMENT",
        "no memory",
    ),
    "timeout": (
        more(request(raw=RAW), lambda one: one.parameters["timeout"].__init__(string_param="1")),
        "INVALID_ARGUMENT",
        "microseconds",
    ),
}


@pytest.mark.parametrize(("made", "code", "says"), WRONG.values(), ids=WRONG)
def test_wrong_requests(infer, made, code, says):
    with pytest.raises(grpc.RpcError) as caught:
        infer(made.SerializeToString())
    assert caught.value.code() is grpc.StatusCode[code]
    assert says in caught.value.details()


def test_deadlines(infer):
    made = request("batched", raw=RAW)
    made.parameters["timeout"].int64_param = 1  # a batch waits for others longer than that
    with pytest.raises(grpc.RpcError) as caught:
        infer(made.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    made.parameters["timeout"].uint64_param = 10**7
    assert infer(made.SerializeToString()).id == "seven"


SEEDS = [
    request(raw=RAW),
    request(contents=SOME),
    request("echo-bytes", raw=b"\1\0\0\0a\2\0\0\0bc", datatype="BYTES", shape=[2], outputs=["y"]),
    request("echo-bool", raw=b"\0\1\1", datatype="BOOL", shape=[3]),
    request("echo-int16", contents={"int_contents": [1, 2, 3]}, datatype="INT16", shape=[3]),
]
AT_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
}


@settings(max_examples=300)
@given(st.data())
def test_mutated_messages(infer, data):
    """Whatever the bytes are, the answer is one, or the client's fault."""
    seed = bytearray(data.draw(st.sampled_from(SEEDS)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed)))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set" and at < len(seed):
            seed[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del seed[at : at + data.draw(st.integers(1, 8))]
        else:
            seed[at:at] = data.draw(st.binary(max_size=8))
    try:
        Request.FromString(bytes(seed))
    except Exception:
        readable = False
    else:
        readable = True
    try:
        infer(bytes(seed))
    except grpc.RpcError as error:
        if readable:
            assert error.code() in AT_FAULT, error.details()
            assert not error.details().startswith("Exception")
    else:
        assert readable
