"""Tensors as TensorFlow writes them, from and to numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from strongroom.serving.messages import message
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, TensorSpec, dtype_name

__all__ = ["NUMBERS", "fill", "fill_info", "to_array"]

NUMBERS: Final = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    BYTES: 7,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
"""``DataType`` by the names of :data:`.tensors.DTYPES`."""

_NAMES: Final = {number: name for name, number in NUMBERS.items()}
_OF_DTYPES: Final = {dtype: name for name, dtype in DTYPES.items()}

_FIELDS: Final = {
    "float16": "half_val",
    "bfloat16": "half_val",
    "float32": "float_val",
    "float64": "double_val",
    BYTES: "string_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val"),
}
_HALVES: Final = ("float16", "bfloat16")

_PACKED: Final = {"float32": b"\x2a", "float64": b"\x32", "complex64": b"\x4a", "complex128": b"\x62"}
"""The tags of fields whose packed form is the memory of the array."""

_MOST_REPEATED: Final = 64 << 20
"""Bytes of a tensor whose last value stands for others: a small message asks for so much and no more."""

Array = np.ndarray[Any, Any]


def to_array(name: str, proto: Any) -> Array:
    """The array in a ``TensorProto``; one of numbers may be read-only, and share the message's memory.

    Args:
        name: of the tensor, for messages.
        proto: from whoever sent it.

    Raises:
        RequestError: INVALID_ARGUMENT: a dtype that is not served, or values that do not fill the shape.
    """
    dtype = _NAMES.get(proto.dtype)
    if dtype is None:
        raise _invalid(
            f"Tensor {_shown(name)} has dtype {_type_name(proto.dtype)}, which is not served."
        )
    if proto.tensor_shape.unknown_rank:
        raise _invalid(f"Tensor {_shown(name)} has a shape of unknown rank.")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if len(shape) > 32 or any(size < 0 for size in shape):
        raise _invalid(f"Tensor {_shown(name)} has a shape of {_about(shape)}.")
    size = math.prod(shape)
    content = proto.tensor_content
    try:
        if not content:
            found = _from_values(dtype, getattr(proto, _FIELDS[dtype]), size)
        elif dtype == BYTES:
            found = _from_strings(content, size)
        else:
            found = _from_content(dtype, content, size)
        array: Array = found.reshape(shape)
        return array
    except _Refused as error:
        said = str(error)
    except OverflowError:
        said = "has values outside the range of its dtype"
    except ValueError:
        said = "has a shape that is too large"
    raise _invalid(f"Tensor {_shown(name)} {said}.")


def fill(proto: Any, array: Array) -> None:
    """Write an array into an empty ``TensorProto``, in fields of values: clients read those by name.

    Raises:
        RequestError: UNIMPLEMENTED: the protocol has no dtype for it.
    """
    try:
        # numpy takes as long for a name as for all else here.
        dtype = _OF_DTYPES.get(array.dtype) or dtype_name(array.dtype)
    except ValueError:
        raise RequestError(
            Code.UNIMPLEMENTED, f"The model answers in {array.dtype.name}, which has no dtype here."
        ) from None
    tag = _PACKED.get(dtype)
    if tag is not None:
        data = array.astype(DTYPES[dtype], copy=False).tobytes()
        proto.MergeFromString(tag + _varint(len(data)) + data)
    else:
        flat = array.ravel()
        if dtype in _HALVES:
            flat = flat.view(np.uint16)
        getattr(proto, _FIELDS[dtype]).extend(flat.tolist())
    proto.dtype = NUMBERS[dtype]
    _fill_shape(proto.tensor_shape, array.shape)


def fill_info(info: Any, spec: TensorSpec) -> None:
    """Write a description into an empty ``TensorInfo``."""
    info.name = spec.tensor or spec.name
    info.dtype = NUMBERS[spec.dtype]
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
    else:
        _fill_shape(info.tensor_shape, spec.shape)


class _Refused(ValueError):
    """Its words are for the client."""


def _from_content(dtype: str, content: bytes, size: int) -> Array:
    kind = DTYPES[dtype]
    if len(content) != size * kind.itemsize:
        raise _Refused(
            f"has {len(content)} bytes, and its shape and dtype want {_number(size * kind.itemsize)}"
        )
    if dtype == "bool":
        return np.frombuffer(content, np.uint8).astype(bool)
    if kind == DTYPES["bfloat16"]:
        return np.frombuffer(content, np.uint16).view(ml_dtypes.bfloat16)
    return np.frombuffer(content, kind)


def _from_strings(content: bytes, size: int) -> Array:
    """Lengths as varints, then the strings one after the other."""
    if size > len(content):
        raise _Refused(f"has fewer strings than the {_number(size)} of its shape")
    lengths, at = [], 0
    for _ in range(size):
        length, shift = 0, 0
        while True:
            if at >= len(content) or shift > 28:
                raise _Refused("has lengths of strings that cannot be read")
            byte = content[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise _Refused("has strings of other lengths than it says")
    found = np.empty(size, object)
    for index, length in enumerate(lengths):
        found[index] = content[at : at + length]
        at += length
    return found


def _from_values(dtype: str, values: Sequence[Any], size: int) -> Array:
    """The values; the last one stands for those that are missing, zero if there is none."""
    count = len(values)
    if dtype.startswith("complex"):
        count, odd = divmod(count, 2)
        if odd:
            raise _Refused("has a real part without an imaginary one")
    if count > size:
        raise _Refused(f"has {count} values, and its shape wants {size}")
    kind = DTYPES[dtype]
    if count < size and size * kind.itemsize > _MOST_REPEATED:
        raise _Refused(f"has {count} values, and its shape wants {_number(size)}")
    if dtype in _PACKED:
        # A message of nothing else ends with their memory; one by one they take a hundred times as long.
        alone = message("tensorflow.TensorProto")()
        getattr(alone, _FIELDS[dtype]).MergeFrom(values)
        data = alone.SerializeToString()
        found: Array = np.frombuffer(data[len(data) - count * kind.itemsize :], kind)
    elif dtype in _HALVES:
        found = np.array(values[:], np.uint16).view(kind)
    elif dtype == BYTES:
        found = np.empty(count, object)
        found[:] = values[:]
    else:
        found = np.array(values[:], kind)
    if count == size:
        return found
    filled = np.empty(size, kind)
    filled[:count] = found
    filled[count:] = found[-1] if count else b"" if dtype == BYTES else 0
    return filled


def _fill_shape(proto: Any, shape: Sequence[int]) -> None:
    proto.SetInParent()  # a scalar's is there, and empty
    for size in shape:
        proto.dim.add().size = size


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _type_name(number: int) -> str:
    enum = message("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type
    known = enum.values_by_number.get(number)
    return str(number) if known is None else str(known.name)


def _about(shape: tuple[int, ...]) -> str:
    return f"{len(shape)} dimensions" if len(shape) > 32 else f"{list(shape)}"


def _number(value: int) -> str:
    return str(value) if value < 1 << 63 else "too many"


def _shown(name: str) -> str:
    return name if len(name) <= 80 else name[:80] + "…"


def _invalid(said: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, said)
