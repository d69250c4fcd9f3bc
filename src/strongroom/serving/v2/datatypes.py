"""Datatypes, shapes and versions, as the protocol writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES

__all__ = [
    "DATATYPES",
    "MAX_NAME",
    "datatype_of",
    "dtype_of",
    "elements",
    "invalid",
    "name_of",
    "reshaped",
    "shown",
    "tensor_name",
    "version_of",
]

MAX_RANK: Final = 32
"""numpy has at most 64 dimensions; models have a handful."""
MAX_DIMENSION: Final = 2**31 - 1
MAX_NAME: Final = 500
"""Characters in the name of a tensor. Messages say it, and gRPC carries 8 KB of them, each character in
up to 12 bytes."""

DATATYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": DTYPES["bool"],
    **{f"INT{bits}": DTYPES[f"int{bits}"] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": DTYPES[f"uint{bits}"] for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": DTYPES[f"float{bits}"] for bits in (16, 32, 64)},
    "BF16": DTYPES["bfloat16"],
    "BYTES": DTYPES[BYTES],
}

_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
_SPECS: Final = {spec: _NAMES.get(dtype, spec.upper()) for spec, dtype in DTYPES.items()}


def invalid(message: str) -> RequestError:
    """The request is at fault."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def shown(value: object) -> str:
    """What a client sent, short enough for a message."""
    text = repr(value if not isinstance(value, str) else value[:81])
    return text if len(text) <= 83 else text[:80] + "…"


def tensor_name(value: object) -> str:
    """The name of an input or output.

    Raises:
        RequestError: INVALID_ARGUMENT: it is none.
    """
    if type(value) is not str or len(value) > MAX_NAME:
        raise invalid(
            f"The name of a tensor is a string of at most {MAX_NAME} characters, not {shown(value)}."
        )
    return value


def dtype_of(name: str, datatype: object) -> np.dtype[Any]:
    """The dtype of an input's datatype.

    Raises:
        RequestError: INVALID_ARGUMENT: there is no such datatype.
    """
    found = DATATYPES.get(datatype) if type(datatype) is str else None
    if found is None:
        raise invalid(f"Input {name} has datatype {shown(datatype)}; there are {', '.join(DATATYPES)}.")
    return found


def name_of(name: str, dtype: np.dtype[Any]) -> str:
    """The datatype of an output.

    Raises:
        RequestError: UNIMPLEMENTED: the protocol has none.
    """
    found = _NAMES.get(dtype)
    if found is None:
        raise RequestError(
            Code.UNIMPLEMENTED, f"Output {name} is {dtype.name}, which this protocol does not carry."
        )
    return found


def datatype_of(spec: str) -> str:
    """The datatype in a description, for a name in :data:`.tensors.DTYPES`."""
    return _SPECS[spec]


def elements(name: str, shape: Sequence[object]) -> int:
    """The number of elements of a shape.

    Raises:
        RequestError: INVALID_ARGUMENT: it is none.
    """
    total = 1
    if len(shape) > MAX_RANK:
        raise invalid(f"Input {name} has {len(shape)} dimensions, more than {MAX_RANK}.")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_DIMENSION:
            raise invalid(
                f"Input {name} has a shape that is not of integers from 0 to {MAX_DIMENSION}."
            )
        total *= size
    return total


def reshaped(name: str, array: np.ndarray[Any, Any], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """The array in a shape of as many elements.

    Raises:
        RequestError: INVALID_ARGUMENT: a dimension of zero hides others that numpy cannot count.
    """
    try:
        return array.reshape(shape)
    except ValueError:
        raise invalid(f"Input {name} has too large a shape.") from None


def version_of(text: str) -> int | None:
    """The number of a version; None, the latest, for an empty text.

    Raises:
        RequestError: INVALID_ARGUMENT: it is no number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise invalid(f"A version is a number, not {shown(text)}.")
    return int(text)
