"""TFLite: one interpreter, which keeps its tensors between calls, so calls wait for one another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from strongroom.errors import FormatError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, Signature, TensorSpec, dtype_name

__all__ = ["load"]

Details = Mapping[str, Mapping[str, Any]]
"""By name, what the interpreter says of a tensor."""


class _Interpreter:
    platform = "tflite"

    def __init__(self, interpreter: Any) -> None:
        self._lock = threading.Lock()
        self._forget = interpreter.reset_all_variables
        self._calls: dict[str, Callable[..., Mapping[str, Any]]] = {}
        self.signatures: dict[str, Signature] = {}
        for name in interpreter.get_signature_list():
            runner = interpreter.get_signature_runner(name)
            self._add(name, runner, runner.get_input_details(), runner.get_output_details())
        if not self.signatures:
            inputs, outputs = (
                _named(interpreter.get_input_details()),
                _named(interpreter.get_output_details()),
            )
            self._add("serving_default", _Whole(interpreter, inputs, outputs), inputs, outputs)

    def _add(
        self, name: str, call: Callable[..., Mapping[str, Any]], inputs: Details, outputs: Details
    ) -> None:
        given = {one: _spec("Input", one, detail) for one, detail in inputs.items()}
        found = {one: _spec("Output", one, detail) for one, detail in outputs.items()}
        batched = all(one.shape and one.shape[0] == -1 for one in (*given.values(), *found.values()))
        self.signatures[name] = Signature(given, found, batched=batched)
        self._calls[name] = call

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        specs = self.signatures[signature].outputs
        try:
            with self._lock:
                # What recurrent layers remember of one request is nothing for the next; 0.4 µs.
                self._forget()
                found = self._calls[signature](**inputs)
        except (RuntimeError, ValueError, OverflowError):
            # It has been prepared when it was loaded: what it refuses are these shapes or values.
            raise RequestError(
                Code.INVALID_ARGUMENT, "The model cannot compute with these values."
            ) from None
        return {name: np.asarray(found[name], DTYPES[specs[name].dtype]) for name in outputs}

    def close(self) -> None:
        self._calls.clear()
        del self._forget


class _Whole:
    """The only function of a model from before there were signatures."""

    def __init__(self, interpreter: Any, inputs: Details, outputs: Details) -> None:
        self._interpreter = interpreter
        self._inputs = {name: one["index"] for name, one in inputs.items()}
        self._outputs = {name: one["index"] for name, one in outputs.items()}

    def __call__(self, **inputs: np.ndarray[Any, Any]) -> dict[str, Any]:
        interpreter = self._interpreter
        for name, index in self._inputs.items():
            interpreter.resize_tensor_input(index, inputs[name].shape)
        interpreter.allocate_tensors()
        for name, index in self._inputs.items():
            interpreter.set_tensor(index, inputs[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._outputs.items()}


def load(model: SealedModel, options: BackendOptions) -> _Interpreter:
    """An interpreter; ``options.extra`` is for ``Interpreter``.

    Raises:
        FormatError: an input or output is no tensor of a dtype that protocols carry.
        RuntimeError: it has operations that TFLite here does not know.
    """
    from strongroom.loaders import tflite

    extra = dict(options.extra)
    if options.threads:
        extra["num_threads"] = options.threads
    interpreter = tflite.interpreter(model, path=options.file, **extra)
    interpreter.allocate_tensors()
    return _Interpreter(interpreter)


def _named(details: Sequence[Mapping[str, Any]]) -> Details:
    return {str(one["name"]): one for one in details}


def _spec(what: str, name: str, detail: Mapping[str, Any]) -> TensorSpec:
    try:
        dtype = dtype_name(np.dtype(detail["dtype"]))
    except ValueError:
        raise FormatError(
            f"{what} {name} is no tensor of a dtype that protocols of serving carry."
        ) from None
    # Converters of before open dimensions write none of these.
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(name, dtype, tuple(int(size) for size in shape))
