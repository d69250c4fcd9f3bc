"""What ``paddle.save`` writes, unpickled without running code from the file.

``paddle.load`` unpickles with ``pickle.load`` alone, which calls whatever function a file names. Files
of ``paddle.save`` name few of them; here nothing else can be called.
"""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import BinaryIO, Final

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
_NUMPY: Final = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(
            (f"numpy.{core}.multiarray", name)
            for core in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        ),
    }
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, encoding=_ENCODING)
        self._name = name

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
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
        return _Unpickler(file, name).load()
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError):
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
