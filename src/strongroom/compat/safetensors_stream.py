"""Writing a safetensors file from front to back, a tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from strongroom.errors import FormatError

__all__ = ["CODES", "TensorInfo", "aligned", "groups", "header", "raw_bytes"]

CODES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
"""Name of a dtype of torch (and NumPy) → its code in the format."""

_T = TypeVar("_T")
_SIZES: Final = {"BOOL": 1, "BF16": 2, "C64": 8}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor to be written: its name, the code of its dtype, its shape."""

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        if self.code in _SIZES:
            return _SIZES[self.code]
        return int(self.code[1:].partition("_")[0]) // 8

    @property
    def size(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.item_size


def header(tensors: Sequence[TensorInfo], metadata: Mapping[str, str] | None) -> bytes:
    """What precedes the data of ``tensors``, which follows without gaps and in the order given.

    Larger elements have to come first: readers take the tensors for aligned.

    Raises:
        FormatError: two have the same name, or one has a name that the format cannot have.
    """
    members: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        if tensor.name in members or tensor.name == "__metadata__":
            raise FormatError(f"There are two tensors that would be called {tensor.name}.")
        members[tensor.name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.size],
        }
        start += tensor.size
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def aligned(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors in an order in which each is aligned; otherwise as they were."""
    return sorted(tensors, key=lambda tensor: -tensor.item_size)


def groups(tensors: Iterable[_T], size: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """The tensors, in order, some at a time: of ``most`` bytes together, or one that is larger."""
    group: list[_T] = []
    total = 0
    for tensor in tensors:
        if group and total + size(tensor) > most:
            yield group
            group, total = [], 0
        group.append(tensor)
        total += size(tensor)
    if group:
        yield group


def raw_bytes(tensor: Any) -> memoryview:
    """The elements of a torch tensor on the CPU, without a copy if they lie one after another."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())
