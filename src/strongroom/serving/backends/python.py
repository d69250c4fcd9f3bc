"""A class of the user's own, for what no other backend serves.

``options.extra["class"]`` names it, ``package.module:Class``. It comes from the environment of the
server, where who runs the server has installed it: never out of the sealed model, whose owner may be
somebody else. It is made with the open sealed model and the other options as keyword arguments::

    class Scorer:
        inputs = (TensorSpec("text", "bytes", (-1,)),)
        outputs = (TensorSpec("score", "float32", (-1,)),)
        batched = True              # requests may be put together; without it they are not

        def __init__(self, model: SealedModel, *, scale: float = 1.0) -> None:
            self.weights = np.frombuffer(model.load("weights.bin"), np.float32)

        def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...

        def close(self) -> None: ...    # if there is something to free

The specs may come from the configuration instead. ``predict`` is called from several threads at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from strongroom.errors import UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec

__all__ = ["load"]

_CLASS: Final = "class"


class _Model:
    platform = "python"

    def __init__(self, model: Any, signature: Signature) -> None:
        self._model = model
        self._predict = model.predict
        self._specs = signature.outputs
        self.signatures = {"serving_default": signature}

    def run(
        self, signature: str, inputs: Arrays, outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        found = self._predict(dict(inputs))
        return {name: _array(found[name], self._specs[name]) for name in outputs}

    def close(self) -> None:
        close = getattr(self._model, "close", None)
        if close is not None:
            close()


def load(model: SealedModel, options: BackendOptions) -> _Model:
    """An instance of the class.

    Raises:
        UsageError: no class is named, there is none of that name, or it lacks what is needed.
        what the class raises.
    """
    extra = dict(options.extra)
    made = _class(extra.pop(_CLASS, None))(model, **extra)
    if not callable(getattr(made, "predict", None)):
        raise UsageError(f"{type(made).__name__} has no method predict.")
    inputs, outputs = (
        _specs(made, what, said)
        for what, said in (("inputs", options.inputs), ("outputs", options.outputs))
    )
    batched = bool(getattr(made, "batched", False))
    if batched and not all(one.shape and one.shape[0] == -1 for one in (*inputs, *outputs)):
        raise UsageError(
            f"{type(made).__name__} is batched, and not every shape of it has -1 for its first dimension."
        )
    signature = Signature(
        {one.name: one for one in inputs}, {one.name: one for one in outputs}, batched=batched
    )
    return _Model(made, signature)


def _class(name: Any) -> Callable[..., Any]:
    module, colon, member = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (module and colon and member.isidentifier()):
        raise UsageError(
            "The python backend needs the option class.",
            hint="options: {class: package.module:Class}, installed where the server runs.",
        )
    try:
        found = getattr(importlib.import_module(module), member, None)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name}: there is no module {error.name}.") from None
    if not isinstance(found, type):
        raise UsageError(f"{name} is no class.")
    return found


def _specs(made: Any, what: str, said: Sequence[TensorSpec] | None) -> Sequence[TensorSpec]:
    specs = getattr(made, what, None) if said is None else said
    if not specs or not all(isinstance(one, TensorSpec) for one in specs):
        raise UsageError(
            f"{type(made).__name__} does not say its {what}.",
            hint=f"TensorSpecs in the class, or {what} in the configuration of the model.",
        )
    return tuple(specs)


def _array(value: Any, spec: TensorSpec) -> np.ndarray[Any, Any]:
    if spec.dtype != BYTES:
        # Never from one kind of number to another that loses some of it.
        return np.asarray(value).astype(DTYPES[spec.dtype], casting="same_kind", copy=False)
    array = np.asarray(value, object)
    texts = [one.encode() if isinstance(one, str) else bytes(one) for one in array.flat]
    return np.array(texts, object).reshape(array.shape)
