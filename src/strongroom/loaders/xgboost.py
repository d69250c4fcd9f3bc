"""XGBoost: boosters and scikit-learn estimators from sealed UBJSON or JSON models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from strongroom.errors import FormatError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import xgboost
    from xgboost.core import XGBoostError
except ModuleNotFoundError as error:
    raise extra_for(error, "xgboost", "Loading XGBoost models", "xgboost") from None

__all__ = ["booster", "load_model"]

_SUFFIXES: Final = (".ubj", ".xgb", ".bst", ".model")
_QUOTES: Final = "around character position"
# The errors of XGBoost's JSON parser go on with a piece of the text.

_M = TypeVar("_M")


def booster(
    model_file: ModelSource,
    params: Any = None,
    cache: Sequence[Any] | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``xgboost.Booster(params, cache, model_file)`` on a sealed model.

    XGBoost parses the file from one block of memory, which is freed afterwards.

    Args:
        model_file: the place of a sealed file or directory, or an open model.
        path: the model file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is no UBJSON or JSON.
        XGBoostError: as XGBoost's own loader raises it.
    """
    name, buffer = _read(model_file, key, path)
    with _parsing(name):
        return xgboost.Booster(params, cache, buffer)


def load_model(
    model: _M, fname: ModelSource, *, key: KeySource | None = None, path: str | None = None
) -> _M:
    """``model.load_model(fname)`` of a booster or estimator, on a sealed model; returns ``model``.

    Args:
        model: a ``Booster``, ``XGBClassifier``, ``XGBRegressor``, … which is filled.
        fname: the place of a sealed file or directory, or an open model.
        path: the model file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is no UBJSON or JSON.
        XGBoostError, TypeError: as XGBoost's own loader raises them.
    """
    name, buffer = _read(fname, key, path)
    with _parsing(name):
        model.load_model(buffer)  # type: ignore[attr-defined]  # XGBoost's classes have no types here
    return model


def _read(fname: ModelSource, key: KeySource | None, path: str | None) -> tuple[str, bytearray]:
    with opened(fname, key) as model:
        name = _pick(model, path)
        # XGBoost takes nothing else: no bytes, no memoryview, and of a path it wants the real one.
        buffer = bytearray(model.files[name].size)
        model.read_into(name, buffer)
    # An empty buffer aborts the process (3.2).
    if not buffer.startswith(b"{"):
        raise _not_a_model(name)
    return name, buffer


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except XGBoostError as error:
        if _QUOTES not in str(error):
            raise
        raise _not_a_model(name) from None


def _pick(model: SealedModel, path: str | None) -> str:
    # Any .json may lie beside a model; the other suffixes say what they are.
    said = any(name.lower().endswith(_SUFFIXES) for name in model.files)
    return pick(model, path, _SUFFIXES if said else (".json",), "XGBoost")


def _not_a_model(name: str) -> FormatError:
    return FormatError(
        f"{name} is not an XGBoost model in UBJSON or JSON.",
        hint="Load and save it with XGBoost: booster.save_model('model.ubj').",
    )
