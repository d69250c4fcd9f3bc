"""Which backend a model is for, and calling it."""

from __future__ import annotations

import importlib
import threading
from typing import Final, cast

from strongroom.errors import MissingExtra, StrongroomError, UnknownFramework
from strongroom.loaders.registry import detect
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Backend, BackendOptions, LoadedModel

__all__ = ["BACKENDS", "load"]

BACKENDS: Final = {
    "onnx": "onnx",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "tflite": "tflite",
    "torch": "torch",
    "torchscript": "torch",
    "torch.export": "torch",
    "aotinductor": "torch",
    "openvino": "openvino",
    "paddle.jit": "paddle",
    "paddle.inference": "paddle",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "sklearn": "sklearn",
    "joblib": "sklearn",
    "python": "python",
}
"""Framework, as :mod:`strongroom.loaders.registry` names it, → module of this package."""

_EXTRAS: Final = {
    **{
        name: name
        for name in ("torch", "tensorflow", "keras", "openvino", "paddle", "xgboost", "lightgbm")
    },
    "onnxruntime": "onnx",
    "ai_edge_litert": "tflite",
    **dict.fromkeys(("sklearn", "skops", "joblib"), "sklearn"),
}
"""Package that backends import → extra that installs it."""

_ALONE: Final = threading.Lock()
_LOADED: Final[set[tuple[str, str]]] = set()
"""While TensorFlow is imported, the libraries of whatever else is imported share their symbols with all that
come later. PyTorch then calls Paddle's ``c10::Device`` and the process crashes. So the first model of each
framework, and of each class of the python backend, is loaded while no other is."""


def load(model: SealedModel, name: str | None, options: BackendOptions) -> LoadedModel:
    """Load an open model.

    Args:
        model: open.
        name: of a framework; None finds it from the names and contents of the files.

    Raises:
        UnknownFramework: no backend serves it.
        MissingExtra: the framework is not installed.
        StrongroomError: see :mod:`strongroom.errors`.
    """
    try:
        return _load(model, name, options)
    except StrongroomError as error:
        if error.hint is not None:  # of a loader, whose arguments have other names here
            error.hint = error.hint.replace("path=", "file: ").replace("framework=", "backend: ")
        raise


def _load(model: SealedModel, name: str | None, options: BackendOptions) -> LoadedModel:
    found = name or detect(model, options.file)
    if found not in BACKENDS:
        raise UnknownFramework(
            f"Models of {found} cannot be served.",
            hint=f"Those of {', '.join(BACKENDS)} can: any other with a class of your own, backend: python.",
        )
    module = importlib.import_module(f"strongroom.serving.backends.{BACKENDS[found]}")
    imported = BACKENDS[found], str(options.extra.get("class"))
    try:
        if imported in _LOADED:
            return cast("Backend", module).load(model, options)
        with _ALONE:
            loaded = cast("Backend", module).load(model, options)
            _LOADED.add(imported)
            return loaded
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise MissingExtra(f"Serving models of {found}", _EXTRAS[missing]) from None
