"""Tensors as bytes: the binary tensor extension of REST, and the raw contents of gRPC.

Row by row, little-endian; an element of BYTES is its length in 4 bytes, then so many bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import numpy as np

from strongroom.serving.v2.datatypes import elements, invalid, reshaped

__all__ = ["decode", "encode"]

if sys.byteorder != "little":
    raise ImportError("tensors of this protocol are little-endian, and so must the machine be")

_LENGTH: Final = Struct("<I")
_BOOL: Final = np.dtype(bool)


def decode(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], data: bytes | memoryview
) -> np.ndarray[Any, Any]:
    """An input; it shares the memory of ``data`` where that is aligned.

    Args:
        name: for messages.
        dtype: in :data:`.datatypes.DATATYPES`.
        shape: not checked yet.
        data: all bytes of the tensor.

    Raises:
        RequestError: INVALID_ARGUMENT: the bytes are not those of such a tensor.
    """
    count = elements(name, shape)
    if dtype.hasobject:
        return reshaped(name, _texts(name, count, data), shape)
    if len(data) != count * dtype.itemsize:
        raise invalid(
            f"Input {name} has {len(data)} bytes of data; its shape and datatype make"
            f" {count * dtype.itemsize}."
        )
    if not count:
        return reshaped(name, np.empty(0, dtype), shape)
    array = np.frombuffer(data, dtype)
    if dtype == _BOOL and array.view(np.uint8).max() > 1:
        raise invalid(f"Input {name} has bytes that are no BOOL: only 0 and 1 are.")
    if not array.flags.aligned:
        # Frameworks take the address as it is, and compute with aligned loads.
        array = array.copy()
    return reshaped(name, array, shape)


def encode(array: np.ndarray[Any, Any]) -> bytes | memoryview:
    """The bytes of an output; a view where the array lies in one piece."""
    if array.dtype.hasobject:
        parts: list[bytes] = []
        for one in array.ravel():
            parts += (_LENGTH.pack(len(one)), one)
        return b"".join(parts)
    if not array.size:
        return b""
    return array.ravel().view(np.uint8).data


def _texts(name: str, count: int, data: bytes | memoryview) -> np.ndarray[Any, Any]:
    end = len(data)
    if count * 4 > end:
        raise invalid(f"Input {name} has {end} bytes of data, too few for {count} elements.")
    found = np.empty(count, object)
    at = 0
    for index in range(count):
        begin = at + 4
        at = begin + _LENGTH.unpack_from(data, at)[0] if begin <= end else end + 1
        if at > end:
            raise invalid(f"Input {name} has data that ends within element {index}.")
        found[index] = bytes(data[begin:at])
    if at != end:
        raise invalid(f"Input {name} has {end - at} bytes of data after its last element.")
    return found
