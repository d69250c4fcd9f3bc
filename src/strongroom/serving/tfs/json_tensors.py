"""Tensors as JSON: nested lists, with ``{"b64": …}`` for bytes and ``NaN`` and ``Infinity`` for what they say."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, TensorSpec, float32

__all__ = [
    "answer",
    "dumps",
    "invalid",
    "is_b64",
    "parse",
    "to_array",
    "to_bytes",
    "to_json",
    "to_predictions",
]

_BYTES_SUFFIX: Final = "_bytes"
"""Outputs whose names end so are bytes, and written as such."""

_INFINITY: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|\bInf\b')
_MOST_DIMENSIONS: Final = 64  # of numpy
_INTEGERS: Final = frozenset((int,))
_NUMBERS: Final = frozenset((int, float))
_BOOLEANS: Final = frozenset((bool,))
_TEXTS: Final = frozenset((str, dict))
_WORDS: Final = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    dict: "an object",
}

_array = np.errstate(over="raise")(np.array)
"""As a decorator it takes half the time."""

Array = np.ndarray[Any, Any]


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The object that a body is. As in TensorFlow Serving, numbers may be ``NaN``, ``Inf``, ``Infinity``.

    Raises:
        RequestError: INVALID_ARGUMENT: it is none.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found = _parse_again(body, error)
    if type(found) is not dict:
        raise invalid("The body is no JSON object.")
    return found


def _parse_again(body: bytes | bytearray, error: json.JSONDecodeError) -> Any:
    marked = body.startswith(b"\xef\xbb\xbf")
    if marked or b"NaN" in body or b"Inf" in body:
        text = _INFINITY.sub(lambda one: b"Infinity" if one[0] == b"Inf" else one[0], bytes(body))
        try:
            found = json.loads(text.decode("utf-8-sig"))
            # Refuses what it would not have read: half of a surrogate pair, numbers without end.
            orjson.dumps(found)
            return found
        except json.JSONDecodeError as again:
            error = again
        except (ValueError, TypeError, RecursionError):
            pass
    raise invalid(f"The body is not JSON: {error.msg} (line {error.lineno} column {error.colno}).")


def is_b64(value: dict[str, Any]) -> bool:
    """``{"b64": "…"}`` is a value, and no object of named ones."""
    return len(value) == 1 and type(value.get("b64")) is str


def to_array(spec: TensorSpec, value: Any) -> Array:
    """What a nested list means for an input.

    Raises:
        RequestError: INVALID_ARGUMENT: ragged, or with values of another type.
    """
    name, dtype = spec.name, spec.dtype
    kind = DTYPES[dtype]
    flat, shape = _flatten(name, value)
    types = set(map(type, flat))
    letter = kind.kind
    if letter == "O":
        _check(name, dtype, types, _TEXTS)
        array = np.empty(len(flat), object)
        array[:] = [to_bytes(f"Input {name}", one) for one in flat]
        return array.reshape(shape)
    if letter in "iu":
        _check(name, dtype, types, _INTEGERS)
    elif letter == "b":
        _check(name, dtype, types, _BOOLEANS)
    elif letter == "c":
        raise invalid(f"Input {name} is of {dtype}, for which JSON has no values.")
    else:
        _check(name, dtype, types, _NUMBERS)
    try:
        array = float32(flat) if dtype == "float32" else _array(flat, kind)
        if dtype == "bfloat16" and np.isinf(array).any():
            _check_range(np.array(flat, np.float64))
    except (OverflowError, FloatingPointError):
        raise invalid(f"Input {name} has values outside the range of {dtype}.") from None
    return array.reshape(shape)


def _check_range(array: Array) -> None:
    # Its casts do not report what became infinite.
    if (np.isfinite(array) & (np.abs(array) > 3.3895e38)).any():
        raise OverflowError


def _flatten(name: str, value: Any) -> tuple[Sequence[Any], list[int]]:
    """The values that are no lists, and the shape; level by level, as deep as it may be."""
    shape: list[int] = []
    level = [value]
    while level and type(level[0]) is list:
        size = len(level[0])
        for one in level:
            if type(one) is not list or len(one) != size:
                raise invalid(f"Input {name} is ragged: its lists differ in length or depth.")
        shape.append(size)
        if len(shape) > _MOST_DIMENSIONS:
            raise invalid(f"Input {name} has more than {_MOST_DIMENSIONS} dimensions.")
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level, shape


def _check(name: str, dtype: str, types: set[type], wanted: frozenset[type]) -> None:
    if types <= wanted:
        return
    if list in types:
        raise invalid(f"Input {name} is ragged: its lists differ in length or depth.")
    other = next(one for one in _WORDS if one in types and one not in wanted)
    raise invalid(f"Input {name} has {_WORDS[other]} among its values, and the model wants {dtype}.")


def to_bytes(where: str, value: str | dict[str, Any]) -> bytes:
    """What a string means, or ``{"b64": …}``.

    Raises:
        RequestError: INVALID_ARGUMENT: it is another object; the message begins with ``where``.
    """
    if type(value) is str:
        return value.encode()
    assert type(value) is dict
    if is_b64(value):
        # Without padding too, as TensorFlow Serving takes it.
        text = value["b64"].rstrip("=")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            pass
    raise invalid(f'{where} has an object that is not {{"b64": …}} with base64.')


def answer(outputs: Mapping[str, Array], in_rows: bool) -> bytes:
    """The text of an answer to ``:predict``.

    Raises:
        RequestError: as :func:`to_rows`.
    """
    text = dumps(to_predictions(outputs, in_rows, finite=True))
    # orjson writes null for NaN and infinities: looking for it costs less than looking at the numbers.
    return text if b"null" not in text else dumps(to_predictions(outputs, in_rows))


def to_predictions(
    outputs: Mapping[str, Array], in_rows: bool, *, finite: bool = False
) -> dict[str, Any]:
    """What ``:predict`` answers, for :func:`dumps`.

    Args:
        in_rows: as the request was.
        finite: see :func:`to_json`.

    Raises:
        RequestError: as :func:`to_rows`.
    """
    if in_rows:
        return {"predictions": to_rows(outputs, finite=finite)}
    return {"outputs": to_columns(outputs, finite=finite)}


def to_rows(outputs: Mapping[str, Array], *, finite: bool = False) -> Any:
    """Example by example: the value of the only output, or an object of all.

    Raises:
        RequestError: INVALID_ARGUMENT: the outputs have no common first dimension.
    """
    sizes = {array.shape[0] if array.ndim else 0 for array in outputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise invalid(
            'The outputs have no common first dimension: ask in the column format, with "inputs".'
        )
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return to_json(name, array, finite=finite)
    columns = [_rows(name, array, finite) for name, array in outputs.items()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]


def _rows(name: str, array: Array, finite: bool) -> Any:
    found = to_json(name, array, finite=finite)
    if isinstance(found, orjson.Fragment):
        return [to_json(name, one) for one in array]
    return found


def to_columns(outputs: Mapping[str, Array], *, finite: bool = False) -> Any:
    """The only output, or an object of all."""
    found = {name: to_json(name, array, finite=finite) for name, array in outputs.items()}
    return next(iter(found.values())) if len(found) == 1 else found


def to_json(name: str, array: Any, *, finite: bool = False) -> Any:
    """An output, or one element of it, for :func:`dumps`.

    Args:
        finite: nobody looks whether all numbers are; those that are not become null.

    Raises:
        RequestError: INVALID_ARGUMENT: JSON has no values for its dtype.
    """
    array = np.asarray(array)
    letter = array.dtype.kind
    if letter in "OSU":
        encode = _base64 if name.endswith(_BYTES_SUFFIX) else _text
        return _nested(array, encode)
    if letter == "c":
        raise invalid(
            f"Output {name} is of {array.dtype.name}, for which JSON has no values: use gRPC."
        )
    if letter not in "biu":
        if array.itemsize == 2:
            array = array.astype(np.float32)
        if not finite and not np.isfinite(array).all():
            return _with_constants(array)
    return np.ascontiguousarray(array) if array.ndim else array[()]


def dumps(value: Any) -> bytes:
    """The text of a value that holds what :func:`to_json` gave."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _with_constants(array: Array) -> orjson.Fragment:
    """For orjson they are null, as nothing else in an array of numbers is."""
    pieces = dumps(np.ascontiguousarray(array.reshape(1, *array.shape)))[1:-1].split(b"null")
    odd = array[~np.isfinite(array)].tolist() if array.ndim else [float(array)]
    constants = [b"NaN" if one != one else b"Infinity" if one > 0 else b"-Infinity" for one in odd]
    found = [pieces[0]]
    for constant, piece in zip(constants, pieces[1:], strict=True):
        found += (constant, piece)
    return orjson.Fragment(b"".join(found))


def _nested(array: Array, encode: Any) -> Any:
    if not array.ndim:
        return encode(array[()])
    if array.ndim == 1:
        return [encode(one) for one in array.tolist()]
    return [_nested(one, encode) for one in array]


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return _base64(value)
    return str(value)


def _base64(value: Any) -> Any:
    data = value if isinstance(value, bytes) else str(value).encode()
    return {"b64": base64.b64encode(data).decode()}


def invalid(said: str) -> RequestError:
    """A client's mistake."""
    return RequestError(Code.INVALID_ARGUMENT, said)
