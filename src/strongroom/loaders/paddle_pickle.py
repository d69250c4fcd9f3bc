"""What ``paddle.save`` writes, unpickled without running code from the file.

``paddle.load`` unpickles with ``pickle.load`` alone, which calls whatever function a file names. Files
of ``paddle.save`` name few of them; here nothing else can be called. Nor does NumPy get the state of arrays
and dtypes as a file has it: with made-up ones it writes where it should not (seen in 2.4).
"""

from __future__ import annotations

import itertools
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import numpy

from strongroom.errors import UsageError

__all__ = ["HandOver", "load_plain"]

_ENCODING: Final = "latin1"
# Of strings that Python 2 pickled: paddle.load reads them so.


def _data(expression: str, names: Mapping[str, object]) -> object:
    # A static graph's tensor is pickled as eval("data", {"data": array}).
    if expression != "data" or set(names) != {"data"}:
        raise pickle.UnpicklingError("an expression")
    return names["data"]


def _no_bytes() -> bytes:
    # Protocol 2 has no bytes, and writes b"" as bytes().
    return b""


def _encode(text: str, encoding: str) -> bytes:
    # And others as encode(text, "latin1").
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("an encoding")
    return text.encode("latin1")


_UNREADABLE: Final = (
    *(pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError),
    *(OverflowError, SystemError, RecursionError),  # lengths and depths that no file of Paddle has
)

_PLAIN: Final[Mapping[tuple[str, str], object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (tuple, set, frozenset, complex)
    },
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    **{(module, "eval"): _data for module in ("builtins", "__builtin__")},
}
_DTYPE: Final = re.compile(r"[biufcSU]\d{1,9}")
"""Numbers and text; neither objects nor records."""


class _DType:
    """A dtype as a pickle describes it: made of its name, then told its byte order."""

    def __init__(self, name: str, align: object = False, copy: object = False) -> None:
        if not _DTYPE.fullmatch(name):
            raise pickle.UnpicklingError("a dtype")
        self.real = numpy.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a byte order")
        self.real = self.real.newbyteorder(state[1])


class _Array(numpy.ndarray[Any, Any]):
    """An array whose state is looked at before NumPy gets it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not all(type(size) is int and size >= 0 for size in shape) or type(data) is not bytes:
            raise pickle.UnpicklingError("an array")
        if math.prod(shape) * dtype.real.itemsize != len(data):
            raise pickle.UnpicklingError("an array of another size")
        checked: Any = (1, tuple(shape), dtype.real, bool(fortran), data)
        super().__setstate__(checked)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array((0,), "b")


def _scalar(dtype: _DType, data: bytes) -> object:
    if len(data) != dtype.real.itemsize:
        raise pickle.UnpicklingError("a number")
    return numpy.frombuffer(data, dtype.real)[0]


def _arrays(value: Any) -> Any:
    """``value`` with plain arrays in the place of ours."""
    if isinstance(value, _Array):
        return value.view(numpy.ndarray)
    if isinstance(value, dict | list):
        for at in list(value) if isinstance(value, dict) else range(len(value)):
            value[at] = _arrays(value[at])
    elif isinstance(value, tuple):
        return tuple(map(_arrays, value))
    return value


_NUMPY: Final[Mapping[tuple[str, str], object]] = {
    ("numpy", "ndarray"): None,  # named, and never called
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.multiarray", name): made
        for core in ("core", "_core")
        for name, made in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, encoding=_ENCODING)
        self._name = name

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        raise UsageError(
            f"{self._name} holds Python objects other than tensors and plain values.",
            hint="Their code would run: allow_pickle=True, if you trust who sealed it.",
        )


def load_plain(file: BinaryIO, name: str) -> object:
    """Arrays, numbers, strings and containers of these.

    Args:
        file: read to the end of the pickle, large arrays with one ``readinto`` each.
        name: the file, for messages.

    Raises:
        UsageError: it is no pickle, or holds objects of other classes.
    """
    try:
        return _arrays(_Unpickler(file, name).load())
    except _UNREADABLE:
        # The messages of these quote the file.
        raise UsageError(
            f"{name} is not a file of paddle.save.",
            hint="Models of paddle.jit.save: strongroom.loaders.paddle.jit_load.",
        ) from None


_waiting: dict[int, object] = {}
_tokens: Final = itertools.count()


class HandOver:
    """Pickled and unpickled again in this process, once, it is the object that it was made with.

    So that ``paddle.load`` makes its tensors from an object that has been unpickled already.
    """

    def __init__(self, held: object) -> None:
        self._token = next(_tokens)
        _waiting[self._token] = held

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return _take, (self._token,)


def _take(token: int) -> object:
    return _waiting.pop(token)
