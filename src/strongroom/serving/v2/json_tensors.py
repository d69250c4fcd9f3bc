"""Tensors as JSON: flat lists, or lists nested as the shape is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from strongroom.serving.status import RequestError
from strongroom.serving.tensors import float32
from strongroom.serving.v2.datatypes import DATATYPES, elements, invalid, name_of, reshaped

__all__ = ["decode", "dump", "encode"]

_FLOAT32: Final = DATATYPES["FP32"]
_BYTES: Final = DATATYPES["BYTES"]
_BINARY_ONLY: Final = {DATATYPES["FP16"], DATATYPES["BF16"]}


_KINDS: Final[Mapping[str, set[type]]] = {
    "b": {bool},
    "i": {int},
    "u": {int},
    "f": {float, int},
    "O": {str},
}


def decode(name: str, dtype: np.dtype[Any], shape: Sequence[int], data: object) -> np.ndarray[Any, Any]:
    """An input from its ``data``.

    Args:
        name: for messages.
        dtype: in :data:`.datatypes.DATATYPES`.
        shape: not checked yet.
        data: as orjson gives it.

    Raises:
        RequestError: INVALID_ARGUMENT: it is no such tensor.
    """
    count = elements(name, shape)
    if dtype in _BINARY_ONLY:
        raise invalid(
            f"Input {name} is {name_of(name, dtype)}, which JSON does not carry: send binary data."
        )
    if type(data) is not list:
        raise invalid(f"Input {name} has no list of data.")
    kinds = set(map(type, data))
    if list in kinds:
        data = _flat(name, data, shape)
        kinds = set(map(type, data))
    # numpy would take null for NaN, read numbers from text, and cut fractions off.
    if not kinds <= _KINDS[dtype.kind]:
        raise invalid(f"Input {name} has data that is not {name_of(name, dtype)}.")
    if len(data) != count:
        raise invalid(f"Input {name} has {len(data)} elements of data; its shape makes {count}.")
    if dtype == _BYTES:
        data = [one.encode() for one in data]
    try:
        array = float32(data) if dtype == _FLOAT32 else np.array(data, dtype)
    except (OverflowError, FloatingPointError):
        raise invalid(
            f"Input {name} has a number that is too large for {name_of(name, dtype)}."
        ) from None
    return reshaped(name, array, shape)


def encode(name: str, array: np.ndarray[Any, Any]) -> Any:
    """The flat ``data`` of an output, for :func:`dump`.

    Raises:
        RequestError: INVALID_ARGUMENT: JSON does not carry it.
    """
    dtype = array.dtype
    if dtype == _BYTES:
        try:
            return [one.decode() for one in array.ravel()]
        except UnicodeDecodeError:
            raise invalid(f"Output {name} is not text in UTF-8: ask for binary data.") from None
    if dtype in _BINARY_ONLY:
        raise invalid(
            f"Output {name} is {name_of(name, dtype)}, which JSON does not carry: ask for binary data."
        )
    return array.ravel()


def dump(answer: dict[str, Any]) -> bytes:
    """The JSON of an inference's answer, with ``outputs`` whose ``data`` is of :func:`encode`.

    NaN and infinities are written as ``NaN``, ``Infinity`` and ``-Infinity``, as TensorFlow Serving does:
    Python's, and RapidJSON's readers know them.
    """
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes null for them; looking for it costs less than looking at the numbers.
    if b"null" not in text:
        return text
    outputs = [
        {**one, "data": _finite(one["data"])} if "data" in one else one for one in answer["outputs"]
    ]
    return orjson.dumps({**answer, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    if not shape or len(data) != shape[0]:
        raise _ragged(name)
    for size in shape[1:]:
        if set(map(type, data)) - {list} or set(map(len, data)) - {size}:
            raise _ragged(name)
        data = list(chain.from_iterable(data))
    return data


def _ragged(name: str) -> RequestError:
    return invalid(f"Input {name} has lists of data that are neither flat nor nested as its shape is.")


def _finite(data: Any) -> Any:
    if isinstance(data, np.ndarray) and data.dtype.kind == "f" and not np.isfinite(data).all():
        return orjson.Fragment(json.dumps(data.tolist()))
    return data
