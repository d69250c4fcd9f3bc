"""Tensors of TensorFlow's messages."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from strongroom.serving.messages import message
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, TensorSpec
from strongroom.serving.tfs.tensor_proto import NUMBERS, fill, fill_info, to_array

TensorProto = message("tensorflow.TensorProto")


def tensor(dtype, shape, **fields):
    proto = TensorProto(dtype=NUMBERS.get(dtype, dtype), **fields)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def arrays(name):
    shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    if name == BYTES:
        return shapes.flatmap(
            lambda shape: st.lists(
                st.binary(max_size=200), min_size=math.prod(shape), max_size=math.prod(shape)
            ).map(lambda values: _objects(values, shape))
        )
    if name == "bfloat16":
        return npst.arrays(np.uint16, shapes).map(lambda one: one.view(ml_dtypes.bfloat16))
    return npst.arrays(DTYPES[name], shapes)


def _objects(values, shape):
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def same(found, wanted):
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype == object:
        assert found.tolist() == wanted.tolist()
    else:  # bit for bit: of NaN too
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", DTYPES)
@given(data=st.data())
def test_an_array_comes_back_from_its_values(name, data):
    array = data.draw(arrays(name))
    proto = TensorProto()
    fill(proto, array)
    assert not proto.tensor_content
    same(to_array("x", TensorProto.FromString(proto.SerializeToString())), array)


@pytest.mark.parametrize("name", [one for one in DTYPES if one != BYTES])
@given(data=st.data())
def test_an_array_comes_from_its_bytes(name, data):
    array = data.draw(arrays(name))
    same(to_array("x", tensor(name, array.shape, tensor_content=array.tobytes())), array)


@given(values=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_strings_come_from_their_bytes(values):
    content = b"".join(_varint(len(one)) for one in values) + b"".join(values)
    found = to_array("x", tensor(BYTES, [len(values)], tensor_content=content))
    assert found.tolist() == values


def _varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def test_a_transposed_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    proto = TensorProto()
    fill(proto, array)
    assert list(proto.float_val) == [0, 3, 1, 4, 2, 5]
    assert np.array_equal(to_array("x", proto), array)


def test_the_last_value_stands_for_the_rest():
    assert to_array("x", tensor("float32", [2, 2], float_val=[1, 7])).tolist() == [[1, 7], [7, 7]]
    assert to_array("x", tensor("int16", [3], int_val=[-4])).tolist() == [-4, -4, -4]
    assert to_array("x", tensor("bfloat16", [2], half_val=[0x3F80])).tolist() == [1, 1]
    assert to_array("x", tensor("complex64", [2], scomplex_val=[1, 2])).tolist() == [1 + 2j, 1 + 2j]
    assert to_array("x", tensor(BYTES, [2], string_val=[b"a"])).tolist() == [b"a", b"a"]
    assert to_array("x", tensor("float64", [2])).tolist() == [0, 0]
    assert to_array("x", tensor(BYTES, [2])).tolist() == [b"", b""]
    assert to_array("x", tensor("int64", [])).tolist() == 0


REFUSED = {
    "no dtype": (tensor(0, [1]), "DT_INVALID"),
    "quantised": (tensor(11, [1]), "DT_QINT8"),
    "resource": (tensor(20, [1]), "DT_RESOURCE"),
    "reference": (tensor(101, [1]), "DT_FLOAT_REF"),
    "unknown dtype": (tensor(77, [1]), "dtype 77"),
    "negative": (tensor("float32", [-1]), r"shape of \[-1\]"),
    "many dimensions": (tensor("float32", [1] * 33), "33 dimensions"),
    "short": (tensor("float32", [2], tensor_content=b"1234"), "4 bytes, and .* want 8"),
    "long": (tensor("float32", [0], tensor_content=b"1234"), "4 bytes, and .* want 0"),
    "too many values": (tensor("float32", [1], float_val=[1, 2]), "2 values, and its shape wants 1"),
    "half a complex": (tensor("complex64", [1], scomplex_val=[1]), "imaginary"),
    "int8": (tensor("int8", [1], int_val=[128]), "outside the range"),
    "uint8": (tensor("uint8", [1], int_val=[-1]), "outside the range"),
    "half": (tensor("float16", [1], half_val=[1 << 16]), "outside the range"),
    "large": (tensor("float32", [1 << 40], float_val=[1]), "1 values, and its shape wants"),
    "larger": (tensor("int8", [1 << 62] * 8), "wants too many"),
    "large content": (tensor("int8", [1 << 62] * 8, tensor_content=b"1"), "want too many"),
    "large strings": (tensor(BYTES, [1 << 40], string_val=[b""]), "1 values, and its shape wants"),
    "strings cut": (tensor(BYTES, [1], tensor_content=b"\x05abc"), "other lengths"),
    "lengths cut": (tensor(BYTES, [2], tensor_content=b"\x80\x80"), "cannot be read"),
    "fewer strings": (tensor(BYTES, [1 << 40], tensor_content=b"\x00"), "fewer strings"),
    "empty and huge": (tensor("float32", [0, 1 << 62, 1 << 62]), "too large"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_tensor_is_refused(case):
    proto, says = REFUSED[case]
    with pytest.raises(RequestError, match=says) as caught:
        to_array("x", proto)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(str(caught.value)) < 300


def test_a_shape_of_unknown_rank_is_refused():
    proto = TensorProto(dtype=1)
    proto.tensor_shape.unknown_rank = True
    with pytest.raises(RequestError, match="unknown rank"):
        to_array("x", proto)


def test_an_output_without_a_dtype():
    with pytest.raises(RequestError, match="float8_e5m2") as caught:
        fill(TensorProto(), np.zeros(2, ml_dtypes.float8_e5m2))
    assert caught.value.code is Code.UNIMPLEMENTED


def test_the_description_of_a_tensor():
    info = message("tensorflow.TensorInfo")()
    fill_info(info, TensorSpec("x", "bfloat16", (-1, 3)))
    assert (info.name, info.dtype) == ("x", 14)
    assert [one.size for one in info.tensor_shape.dim] == [-1, 3]
    other = message("tensorflow.TensorInfo")()
    fill_info(other, TensorSpec("y", BYTES, None))
    assert other.tensor_shape.unknown_rank
