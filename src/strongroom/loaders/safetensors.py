"""safetensors: whole files without a copy, and single tensors or rows of them on demand.

The header is parsed and checked by the safetensors library itself, from a memory file that holds
nothing but the header: what it refuses is refused here, with the same error.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory import allocate
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import safetensors
    from safetensors import SafetensorError
except ModuleNotFoundError as error:
    raise extra_for(error, "safetensors", "Loading safetensors files", "safetensors") from None

__all__ = ["SafetensorError", "load_file", "safe_open"]

_MAX_HEADER: Final = 100_000_000
# That of the safetensors library, which refuses larger ones before it reads them.

_SMALL: Final = 1 << 20
# Below this a tensor gets no mapping of its own: a process may have 65,530 of them.

_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
# torch and NumPy (with ml_dtypes) have the same names. F6 types have none.

_BITS: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "BF16": 16}


def _bits(code: str) -> int:
    if code in _BITS:
        return _BITS[code]
    return int(code[1:].partition("_")[0])


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the header: dtype code, shape, first byte in the file, bytes."""

    code: str
    shape: tuple[int, ...]
    start: int
    size: int


def load_file(
    filename: ModelSource,
    device: str | int = "cpu",
    *,
    key: KeySource | None = None,
    path: str | None = None,
    framework: str = "pt",
) -> dict[str, Any]:
    """``safetensors.torch.load_file`` (or ``.numpy`` with ``framework="np"``) from a sealed model.

    On the CPU the tensors are views of one block of memory, which lives as long as one of them does.

    Args:
        filename: the place of a sealed file or directory, or an open model.
        path: the file in the model, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        SafetensorError: the content is not a valid safetensors file.
    """
    with safe_open(filename, framework, device, key=key, path=path) as file:
        return file.get_tensors()


class safe_open:  # noqa: N801 - the name of the library
    """``safetensors.safe_open`` on a sealed model: a tensor is decrypted when it is asked for.

    Args:
        filename: the place of a sealed file or directory, or an open model.
        framework: ``"pt"`` or ``"np"``, or another of the library's names for these.
        device: of the tensors.
        path: the file in the model, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        SafetensorError: the content is not a valid safetensors file.
    """

    def __init__(
        self,
        filename: ModelSource,
        framework: str,
        device: str | int = "cpu",
        *,
        key: KeySource | None = None,
        path: str | None = None,
    ) -> None:
        self._context = opened(filename, key)
        self._model: SealedModel | None = self._context.__enter__()
        try:
            self._path = pick(self._model, path, (".safetensors",), "safetensors")
            self._device = device
            try:
                self._read_header(self._model, framework)
            except ModuleNotFoundError as error:  # the library imports the framework by its name
                name = error.name or framework
                raise extra_for(error, name, f"Loading tensors for {framework!r}", name) from None
            self._framework = _framework(framework)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _read_header(self, model: SealedModel, framework: str) -> None:
        size = model.files[self._path].size
        prefix = bytearray(min(8, size))
        model.read_into(self._path, prefix)
        length = int.from_bytes(prefix, "little")
        header = bytearray(min(length, size - len(prefix)) if length <= _MAX_HEADER else 0)
        model.read_into(self._path, header, len(prefix))
        # As large as the whole file, because the library compares; the rest is a hole without memory.
        descriptor = os.memfd_create("header.safetensors", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            for at, part in ((0, prefix), (len(prefix), header)):
                view = memoryview(part)
                while view:
                    count = os.pwrite(descriptor, view, at)
                    at, view = at + count, view[count:]
            with safetensors.safe_open(
                f"/proc/self/fd/{descriptor}", framework, self._device
            ) as parsed:
                self._names: list[str] = parsed.keys()
                self._metadata: dict[str, str] | None = parsed.metadata()
                self._tensors: dict[str, _Tensor] = {}
                # Valid means: in this order they cover the rest of the file without gaps.
                start = 8 + length
                for name in parsed.offset_keys():
                    view_of = parsed.get_slice(name)
                    code, shape = view_of.get_dtype(), tuple(view_of.get_shape())
                    count = math.prod(shape) * _bits(code) // 8
                    self._tensors[name] = _Tensor(code, shape, start, count)
                    start += count
                assert start == size
        finally:
            os.close(descriptor)

    def _open(self) -> SealedModel:
        if self._model is None:
            raise SafetensorError("File is closed")
        return self._model

    def _tensor(self, name: str) -> _Tensor:
        self._open()
        if name not in self._tensors:
            raise SafetensorError(f"File does not contain tensor {name}")
        return self._tensors[name]

    def _read(self, start: int, size: int) -> memoryview:
        memory = allocate(size) if size >= _SMALL else memoryview(bytearray(size))
        self._open().read_into(self._path, memory, start)
        return memory

    def keys(self) -> list[str]:
        """The names of the tensors, sorted."""
        self._open()
        return list(self._names)

    def offset_keys(self) -> list[str]:
        """The names of the tensors, in the order of the file."""
        self._open()
        return list(self._tensors)

    def metadata(self) -> dict[str, str] | None:
        """The free-form metadata of the header."""
        self._open()
        return None if self._metadata is None else dict(self._metadata)

    def get_tensor(self, name: str) -> Any:
        """One tensor, in memory of its own."""
        tensor = self._tensor(name)
        memory = self._read(tensor.start, tensor.size)
        return self._framework.tensor(memory, tensor, self._device)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors by name, in the order of the file."""
        model = self._open()
        if str(self._device) != "cpu":
            return {name: self.get_tensor(name) for name in self._tensors}
        memory = model.load(self._path)
        return {
            name: self._framework.tensor(memory[t.start : t.start + t.size], t, "cpu")
            for name, t in self._tensors.items()
        }

    def get_slice(self, name: str) -> _Slice:
        """A view that decrypts, when it is indexed, the rows that the index needs."""
        return _Slice(self, self._tensor(name))

    def _part(self, tensor: _Tensor, index: Any) -> Any:
        """``tensor[index]``, of which at most the needed range of the first dimension is read."""
        if tensor.code == "F4":
            raise SafetensorError("Slices of F4 tensors are not supported; use get_tensor.")
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if tensor.shape and _is_basic(first, rest):
            # The same index on a tensor of this shape that occupies one element: bad ones fail here.
            self._framework.index(self._framework.blank(tensor), index)
            rows, first = _rows(first, tensor.shape[0])
            index = (first, *rest)
            row = tensor.size // tensor.shape[0] if tensor.shape[0] else 0
            shape = (len(rows), *tensor.shape[1:])
            tensor = _Tensor(tensor.code, shape, tensor.start + rows.start * row, len(rows) * row)
        memory = self._read(tensor.start, tensor.size)
        part = self._framework.index(self._framework.tensor(memory, tensor, "cpu"), index)
        return self._framework.move(part, self._device)

    def __enter__(self) -> safe_open:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._model is not None:
            self._model = None
            self._context.__exit__(None, None, None)


class _Slice:
    """One tensor of an open file, to be indexed; what ``get_slice`` returns."""

    def __init__(self, file: safe_open, tensor: _Tensor) -> None:
        self._file = file
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        """The shape that the header says."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """The dtype by its code in the format (``"BF16"``)."""
        return self._tensor.code

    def __getitem__(self, index: Any) -> Any:
        return self._file._part(self._tensor, index)


def _is_basic(first: Any, rest: tuple[Any, ...]) -> bool:
    """Whether the index selects rows by an int or a slice, and views by the rest of it."""

    def plain(part: Any) -> bool:
        return type(part) in (int, slice) or part is Ellipsis or part is None

    return type(first) in (int, slice) and all(map(plain, rest))


def _rows(first: int | slice, count: int) -> tuple[range, int | slice]:
    """The contiguous rows that hold what ``first`` selects of ``count``, and the index within them."""
    if isinstance(first, int):
        row = first % count
        return range(row, row + 1), 0
    selected = range(count)[first]
    if not selected:
        return range(0), slice(0, 0)
    return range(selected[0], selected[-1] + 1), slice(None, None, selected.step)


def _framework(name: str) -> _Torch | _NumPy:
    # The library has accepted the name already.
    if name in ("pt", "torch", "pytorch"):
        return _Torch()
    if name in ("np", "numpy"):
        return _NumPy()
    raise UsageError(
        f"Sealed safetensors files load for PyTorch or NumPy, not for {name!r}.",
        hint='framework="pt" or framework="np"',
    )


class _Torch:
    def __init__(self) -> None:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise extra_for(error, "torch", "Loading PyTorch tensors", "torch") from None
        self._torch = torch

    def _dtype(self, code: str) -> Any:
        dtype = getattr(self._torch, _NAMES.get(code, ""), None)
        if dtype is None:
            raise SafetensorError(f"torch {self._torch.__version__} has no dtype for {code}")
        return dtype

    def tensor(self, memory: memoryview, tensor: _Tensor, device: str | int) -> Any:
        dtype = self._dtype(tensor.code)
        shape = list(tensor.shape)
        if tensor.code == "F4":  # the header counts elements, torch counts pairs of them
            shape[-1] //= 2
        if tensor.size == 0:
            return self.move(self._torch.empty(shape, dtype=dtype), device)
        return self.move(self._torch.frombuffer(memory, dtype=dtype).reshape(shape), device)

    def blank(self, tensor: _Tensor) -> Any:
        return self._torch.zeros((), dtype=self._dtype(tensor.code)).expand(tensor.shape)

    def index(self, tensor: Any, index: Any) -> Any:
        return tensor[index]

    def move(self, tensor: Any, device: str | int) -> Any:
        return tensor if device == "cpu" else tensor.to(device)


class _NumPy:
    def __init__(self) -> None:
        try:
            import numpy
        except ModuleNotFoundError as error:
            raise extra_for(error, "numpy", "Loading NumPy arrays", "safetensors") from None
        self._numpy = numpy

    def _dtype(self, code: str) -> Any:
        return self._numpy.dtype(_NAMES.get(code, code))

    def tensor(self, memory: memoryview, tensor: _Tensor, device: str | int) -> Any:
        dtype = self._dtype(tensor.code)
        if tensor.size == 0:
            return self._numpy.empty(tensor.shape, dtype=dtype)
        return self._numpy.frombuffer(memory, dtype=dtype).reshape(tensor.shape)

    def blank(self, tensor: _Tensor) -> Any:
        return self._numpy.broadcast_to(
            self._numpy.zeros((), dtype=self._dtype(tensor.code)), tensor.shape
        )

    def index(self, tensor: Any, index: Any) -> Any:
        try:
            return self._numpy.asarray(tensor[index])
        except IndexError as error:
            raise SafetensorError(f"Error during slicing: {error}") from None

    def move(self, tensor: Any, device: str | int) -> Any:
        return tensor
