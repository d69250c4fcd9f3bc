"""Messages that are read and written without protobuf are those that it reads and writes."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from strongroom.serving.messages import message
from strongroom.serving.v2.raw_contents import LARGE, LargeRequest, LargeResponse, reader, writer

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
read = reader(Request)
read_any = reader(Request, 0)
PIECES = st.lists(st.binary(max_size=300), max_size=4)


def request(pieces, **changes):
    made = Request(model_name="m", id="seven", **changes)
    made.inputs.add(name="x", datatype="FP32", shape=[1, len(pieces)])
    made.parameters["timeout"].int64_param = 5
    made.raw_input_contents.extend(pieces)
    return made


def test_only_large_ones():
    assert isinstance(read(request([b"1" * 1000]).SerializeToString()), Request)
    data = request([b"1" * LARGE, b"", b"2"]).SerializeToString()
    found = read(data)
    assert isinstance(found, LargeRequest)
    assert (found.model_name, found.id, found.ByteSize()) == ("m", "seven", len(data))
    assert [bytes(one) for one in found.raw_input_contents] == [b"1" * LARGE, b"", b"2"]
    body = np.frombuffer(data, np.uint8)
    assert np.shares_memory(np.frombuffer(found.raw_input_contents[0], np.uint8), body)


@given(pieces=PIECES, fields=st.permutations(range(4)))
def test_in_any_order(pieces, fields):
    parts = [
        Request(model_name="m").SerializeToString(),
        Request(id="seven", model_version="3").SerializeToString(),
        Request(raw_input_contents=pieces).SerializeToString(),
        b"\xf9\x01" + b"8" * 8 + b"\xfd\x01" + b"4" * 4 + b"\xf8\x01\x80\x01",  # not known
    ]
    data = b"".join(parts[one] for one in fields)
    found, expected = read_any(data), Request.FromString(data)
    assert [bytes(one) for one in found.raw_input_contents] == list(expected.raw_input_contents)
    expected.ClearField("raw_input_contents")
    assert found.model_name == "m" and found.model_version == "3"


@given(pieces=PIECES, data=st.data())
def test_whatever_the_bytes_are(pieces, data):
    seed = bytearray(request(pieces).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed)))
        seed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        expected = Request.FromString(bytes(seed))
    except DecodeError:
        with pytest.raises(DecodeError):
            read_any(bytes(seed))
        return
    found = read_any(bytes(seed))
    assert [bytes(one) for one in found.raw_input_contents] == list(expected.raw_input_contents)
    for name in ("model_name", "model_version", "id", "inputs", "outputs", "parameters"):
        assert getattr(found, name) == getattr(expected, name)


@given(PIECES, st.integers(0, 1))
def test_responses(pieces, large):
    pieces = [*pieces, b"1" * (128 << 7 * large)]
    made = Response(model_name="m", model_version="3")
    made.outputs.add(name="y", datatype="FP32", shape=[1])
    response = LargeResponse(made, [memoryview(one) for one in pieces])
    assert response.model_version == "3"
    found = Response.FromString(writer(response))
    made.raw_output_contents.extend(pieces)
    assert found == made
