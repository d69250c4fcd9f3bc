"""One small module per framework: its own argument names, its own objects, nothing on a disk."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "diffusers",
    "flax",
    "keras",
    "lightgbm",
    "llama_cpp",
    "onnx",
    "openvino",
    "paddle",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tensorrt",
    "tflite",
    "torch",
    "torch2trt",
    "transformers",
    "xgboost",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"strongroom.loaders.{name}")
    raise AttributeError(f"module 'strongroom.loaders' has no attribute {name!r}")
