"""What models take and give: numpy arrays under names, and how they are described.

Text is an array of ``bytes`` objects (dtype ``object``), as both protocols have it; ``bfloat16`` is the
dtype of ``ml_dtypes``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np

__all__ = ["BYTES", "DTYPES", "Signature", "TensorSpec", "dtype_name", "float32"]

BYTES: Final = "bytes"
"""The name of the dtype of text and other strings of bytes."""

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    **{
        name: np.dtype(name)
        for name in (
            *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
        )
    },
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    BYTES: np.dtype(object),
}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name in :data:`DTYPES`.

    Raises:
        ValueError: no protocol carries it.
    """
    name = BYTES if dtype.kind in "OSU" else dtype.name
    if name not in DTYPES:
        raise ValueError(f"has no dtype for {name}")
    return name


_FLOAT32: Final = DTYPES["float32"]
_PACKED: Final = 1 << 16
"""Numbers that are the arguments of one call, for whose tuple there is memory."""

_checked = np.errstate(over="raise")(np.array)
"""As a decorator it takes half the time."""


def float32(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Numbers as an array of one dimension; numpy takes twice as long where it has to see to too large ones.

    Raises:
        OverflowError, FloatingPointError: one is too large.
    """
    count = len(values)
    if count > _PACKED:
        return _checked(values, _FLOAT32)
    found = np.empty(count, _FLOAT32)
    struct.pack_into(f"={count}f", found, 0, *values)  # type: ignore[arg-type]  # it is a buffer
    return found


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as clients say it.
        dtype: in :data:`DTYPES`.
        shape: -1 for a dimension of any size; None where not even the rank is known.
        tensor: its name inside the model, where that is another one and told to clients.
        loose: an input that takes other shapes too; only the model can tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    tensor: str = field(default="", kw_only=True)
    loose: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Signature:
    """One function of a model.

    Attributes:
        inputs: by name, in the order of the model; all of them are needed that have no default.
        outputs: likewise.
        method: ``predict``, ``classify`` or ``regress``, as TensorFlow has them.
        batched: the first dimension of every input and output counts examples, which do not touch one
            another: requests may be put together.
        defaults: values of inputs that requests may leave out; none where it is batched.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method: str = "predict"
    batched: bool = field(default=False, kw_only=True)
    defaults: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict, kw_only=True)
