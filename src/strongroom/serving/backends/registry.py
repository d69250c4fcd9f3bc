"""Which backend a model is for, and calling it."""

from __future__ import annotations

import importlib
from typing import Final, cast

from strongroom.errors import UnknownFramework
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


def load(model: SealedModel, name: str | None, options: BackendOptions) -> LoadedModel:
    """Load an open model.

    Args:
        model: open.
        name: of a framework; None finds it from the names and contents of the files.

    Raises:
        UnknownFramework: no backend serves it.
        StrongroomError: see :mod:`strongroom.errors`.
    """
    found = name or detect(model, options.file)
    if found not in BACKENDS:
        raise UnknownFramework(
            f"Models of {found} cannot be served.",
            hint=f"Those of {', '.join(BACKENDS)} can: any other with a class of your own, backend: python.",
        )
    module = importlib.import_module(f"strongroom.serving.backends.{BACKENDS[found]}")
    return cast("Backend", module).load(model, options)
