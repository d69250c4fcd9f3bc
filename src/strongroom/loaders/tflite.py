"""TFLite (LiteRT) models."""

from __future__ import annotations

from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.providers.sources import KeySource

try:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError:
        import tensorflow

        Interpreter = tensorflow.lite.Interpreter
except ModuleNotFoundError as error:
    raise extra_for(error, "tensorflow", "Loading TFLite models", "tflite") from None

__all__ = ["interpreter"]

_IDENTIFIER: Final = b"TFL3"


def interpreter(
    model_path: ModelSource,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    **kwargs: Any,
) -> Any:
    """An ``Interpreter`` of ``ai_edge_litert``, or where that is missing of ``tf.lite``, on a sealed model.

    The interpreter works on the bytes that the model was decrypted into, and keeps them: one copy.

    Args:
        model_path: the place of a sealed file or directory, or an open model.
        path: the file, if there are several.
        kwargs: the other arguments of ``Interpreter``: ``num_threads``, ``experimental_delegates`` …

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is no TFLite model.
    """
    with opened(model_path, key) as model:
        name = pick(model, path, (".tflite", ".lite"), "TFLite")
        start = bytearray(8)
        if model.read_into(name, start) < len(start) or start[4:] != _IDENTIFIER:
            raise UsageError(f"{name} in {model.name} is no TFLite model.")
        return Interpreter(model_content=model.read(name), **kwargs)
