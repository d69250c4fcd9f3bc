"""Which loader a model is for, and calling it."""

from __future__ import annotations

import importlib
from typing import Any, Final

from strongroom.errors import UnknownFramework
from strongroom.loaders import detection
from strongroom.loaders.source import ModelSource, opened
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

__all__ = ["FRAMEWORKS", "detect", "load"]

FRAMEWORKS: Final = {
    "torch": ("torch", "load"),
    "torchscript": ("torch", "jit_load"),
    "torch.export": ("torch", "export_load"),
    "aotinductor": ("torch", "aoti_load_package"),
    "safetensors": ("safetensors", "load_file"),
    "transformers": ("transformers", "from_pretrained"),
    "diffusers": ("diffusers", "from_pretrained"),
    "onnx": ("onnx", "session"),
    "tensorflow": ("tensorflow", "saved_model_load"),
    "tensorflow.graph_def": ("tensorflow", "graph_def_load"),
    "keras": ("keras", "load_model"),
    "tflite": ("tflite", "interpreter"),
    "paddle": ("paddle", "load"),
    "paddle.jit": ("paddle", "jit_load"),
    "paddle.inference": ("paddle", "create_predictor"),
    "tensorrt": ("tensorrt", "load"),
    "torch2trt": ("torch2trt", "load"),
    "llama_cpp": ("llama_cpp", "llama"),
    "openvino": ("openvino", "read_model"),
    "xgboost": ("xgboost", "booster"),
    "lightgbm": ("lightgbm", "booster"),
    "sklearn": ("sklearn", "skops_load"),
    "joblib": ("sklearn", "joblib_load"),
    "flax": ("flax", "msgpack_restore"),
}
"""Name → module of :mod:`strongroom.loaders` and function in it."""

_NATIVE: Final = frozenset({"aotinductor"})
"""What is found by its contents, and runs as it is."""

_CHOICES: Final = "the loaders are " + ", ".join(FRAMEWORKS) + "."


def load(
    source: ModelSource,
    *,
    key: KeySource | None = None,
    framework: str | None = None,
    allow_native_code: bool = False,
    **options: Any,
) -> Any:
    """Load with the loader of ``framework``, or with the one that :func:`detect` finds.

    Args:
        allow_native_code: a package of AOTInductor may be what is found; its code runs.

    Raises:
        UnknownFramework: there is no such loader, none fits, or several do; or what is found is machine
            code, and nobody has said that it may run.
        StrongroomError: see :mod:`strongroom.errors`.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise UnknownFramework(f"There is no loader {framework!r}.", hint=_CHOICES)
    with opened(source, key) as model:
        found = framework or detect(model, options.get("path"))
        if found in _NATIVE and framework is None and allow_native_code is not True:
            raise UnknownFramework(
                f"This is machine code ({found}), and would run with all that this process may do.",
                hint=f'If you trust who sealed it: allow_native_code=True, or framework="{found}".',
            )
        module, function = FRAMEWORKS[found]
        loader = getattr(importlib.import_module(f"strongroom.loaders.{module}"), function)
        return loader(model, **options)


def detect(model: SealedModel, path: str | None = None) -> str:
    """The name of the loader for a model, by the names and the first bytes of its files.

    Args:
        path: look at this file, or at the files in this folder, alone.

    Raises:
        UnknownFramework: none fits, or several do.
    """
    return detection.detect(model, path, _CHOICES)
