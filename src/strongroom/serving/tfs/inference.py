"""Classify and Regress, for both transports."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from strongroom.serving.call import Answer, Call
from strongroom.serving.engine import Engine
from strongroom.serving.servable import DEFAULT_SIGNATURE
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature
from strongroom.serving.tfs.examples import to_inputs

__all__ = ["METHODS", "classifications", "prepare", "regressions"]

METHODS: Final = {name: f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress")}
"""Methods of signatures, as they are on the wire."""

_OUTPUTS: Final = {"classify": ("classes", "scores"), "regress": ("outputs",)}

Array = np.ndarray[Any, Any]


def prepare(engine: Engine, call: Call, method: str, examples: list[Any]) -> Call:
    """Give the call the examples as inputs, and the outputs that ``classify`` or ``regress`` reads.

    Models that know nothing of either do, if their outputs have the names: ``classes`` and ``scores``,
    or ``outputs``.

    Raises:
        RequestError: INVALID_ARGUMENT: the signature is for something else, or the examples do not fit.
    """
    signature = signature_of(engine, call)
    outputs = [name for name in _OUTPUTS[method] if name in signature.outputs]
    if signature.method not in (method, "predict") or not outputs:
        raise _invalid(
            f"Signature {call.signature or DEFAULT_SIGNATURE} is none to {method}: its method is"
            f" {signature.method}, and its outputs are {', '.join(sorted(signature.outputs))}."
        )
    call.inputs = to_inputs(examples, signature)
    call.outputs = outputs
    return call


def signature_of(engine: Engine, call: Call) -> Signature:
    """The signature that the call is for.

    Raises:
        RequestError: INVALID_ARGUMENT: the model does not have it; or as :meth:`.Engine.signatures`.
    """
    signatures = engine.signatures(call.model, call.version, call.label)
    name = call.signature or DEFAULT_SIGNATURE
    found = signatures.get(name)
    if found is None:
        known = ", ".join(sorted(signatures))
        raise _invalid(f"The model has no signature {name[:80]!r}; it has {known}.")
    return found


def classifications(answer: Answer, examples: int) -> list[list[tuple[str, np.float32]]]:
    """Labels and scores of each example; empty, or zero, where the model gives only the other.

    Raises:
        RequestError: INVALID_ARGUMENT: the outputs are no classification of so many examples.
    """
    classes, scores = (answer.outputs.get(name) for name in _OUTPUTS["classify"])
    labels = None if classes is None else _labels(_matrix("classes", classes, examples))
    numbers = None if scores is None else _floats("scores", _matrix("scores", scores, examples))
    if labels is not None and numbers is not None:
        if len(labels[0]) != numbers.shape[1]:
            raise _invalid("The model's classes and scores differ in number.")
    elif labels is None:
        assert numbers is not None
        labels = [[""] * numbers.shape[1]] * examples
    else:
        numbers = np.zeros((examples, len(labels[0])), np.float32)
    return [list(zip(*row, strict=True)) for row in zip(labels, numbers, strict=True)]


def regressions(answer: Answer, examples: int) -> Array:
    """The value of each example, float32[examples].

    Raises:
        RequestError: INVALID_ARGUMENT: the output is no regression of so many examples.
    """
    found = _matrix("outputs", answer.outputs["outputs"], examples)
    if found.shape[1] != 1:
        raise _invalid(f"The model gives {found.shape[1]} values for an example, and not one.")
    return _floats("outputs", found).ravel()


def _matrix(name: str, array: Array, examples: int) -> Array:
    if array.ndim not in (1, 2) or len(array) != examples:
        raise _invalid(
            f"The model's {name} have shape {list(array.shape)}, which is none for {examples} examples."
        )
    return array.reshape(examples, -1) if array.size else array.reshape(examples, 0)


def _labels(array: Array) -> list[list[str]]:
    return [
        [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in row]
        for row in array.tolist()
    ]


def _floats(name: str, array: Array) -> Array:
    if array.dtype.kind in "OSUc":
        raise _invalid(f"The model's {name} are no real numbers.")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _invalid(said: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, said)
