"""Keras models, upon TensorFlow: the whole model is one function of a graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from strongroom.errors import FormatError, UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.backends.tensorflow import framework, set_threads
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec

__all__ = ["load"]

_TENSORFLOW: Final = "tensorflow"


class _Model:
    platform = "keras"

    def __init__(self, tf: Any, keras: Any, model: Any) -> None:
        self._invalid = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)
        self._tf, self._flatten = tf, tf.nest.flatten
        inputs = [_spec("Input", one.name, one) for one in model.inputs]
        outputs = [
            _spec("Output", name, one)
            for name, one in zip(_output_names(keras, model), model.outputs, strict=True)
        ]
        batched = all(one.shape and one.shape[0] == -1 for one in (*inputs, *outputs))
        signature = Signature(
            {one.name: one for one in inputs}, {one.name: one for one in outputs}, batched=batched
        )
        self.signatures = {"serving_default": signature}
        # The same layers with lists for whatever structures the model takes and gives.
        flat = keras.Model(model.inputs, model.outputs)
        traced = tf.function(
            lambda *values: flat(list(values), training=False),
            input_signature=[tf.TensorSpec(one.shape, one.dtype) for one in model.inputs],
            autograph=False,
        )
        self._call = traced.get_concrete_function()
        self._model = flat  # a function does not keep the variables that it uses

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        spec = self.signatures[signature]
        try:
            found = self._call(*[self._tf.constant(inputs[name]) for name in spec.inputs])
        except self._invalid:
            # Its words quote the values.
            raise RequestError(
                Code.INVALID_ARGUMENT, "The model cannot compute with these values."
            ) from None
        values = dict(zip(spec.outputs, self._flatten(found), strict=True))
        return {
            name: np.asarray(values[name].numpy(), DTYPES[spec.outputs[name].dtype]) for name in outputs
        }

    def close(self) -> None:
        # Layers hold one another until the garbage collector comes by, which may take an hour, and stops
        # the whole process for 0.3 s when it is called. Their variables are emptied at once.
        for one in self._model.variables:
            self._tf.raw_ops.AssignVariableOp(
                resource=one.value.handle, value=self._tf.zeros([0], one.dtype)
            )
        del self._call, self._model


def load(model: SealedModel, options: BackendOptions) -> _Model:
    """A model; ``options.extra`` may have ``safe_mode``, as :func:`keras.saving.load_model` has it.

    Raises:
        FormatError: an input or output is no tensor that protocols carry.
        UsageError: Keras runs upon something else, the model does not say its inputs, or there is no such
            option.
        ValueError: Keras refuses it, for instance a ``Lambda`` in ``safe_mode``.
    """
    if not options.extra.keys() <= {"safe_mode"}:
        raise UsageError(
            "The options of a Keras model are safe_mode, which is true unless it says false."
        )
    os.environ.setdefault("KERAS_BACKEND", _TENSORFLOW)
    tf = framework()

    # Before Keras itself: it says how to install what is missing.
    from strongroom.loaders.keras import load_model

    set_threads(tf, options.threads)

    import keras

    if keras.backend.backend() != _TENSORFLOW:
        raise UsageError(
            f"Keras runs upon {keras.backend.backend()} here, and models are served upon TensorFlow.",
            hint="Set KERAS_BACKEND=tensorflow, or serve model.export(…, format='onnx').",
        )
    loaded = load_model(model, compile=False, path=options.file, **options.extra)
    if not getattr(loaded, "inputs", None) or not getattr(loaded, "outputs", None):
        raise UsageError(
            f"{type(loaded).__name__} does not say its inputs: it is no functional or sequential model.",
            hint="model.export(DIRECTORY) makes a SavedModel of it, which can be served.",
        )
    return _Model(tf, keras, loaded)


def _output_names(keras: Any, model: Any) -> list[str]:
    """Keys where the model gives a dict, else the names of the layers that give them."""
    given = keras.tree.map_structure(lambda one: one, getattr(model, "_outputs_struct", None))
    names = list(given) if isinstance(given, dict) else getattr(model, "output_names", None)
    count = len(model.outputs)
    if names is None or len(set(names)) != count:
        names = [f"output_{number}" for number in range(count)]
    return [str(one) for one in names]


def _spec(what: str, name: str, one: Any) -> TensorSpec:
    dtype = BYTES if one.dtype == "string" else str(one.dtype)
    if dtype not in DTYPES or getattr(one, "sparse", False) or getattr(one, "ragged", False):
        raise FormatError(f"{what} {name} is no tensor of a dtype that protocols of serving carry.")
    return TensorSpec(name, dtype, tuple(-1 if size is None else size for size in one.shape))
