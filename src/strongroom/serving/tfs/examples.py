"""``tf.Example`` as inputs: serialized for signatures that parse them, else features by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from strongroom.serving.messages import message
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec

__all__ = ["examples_of", "to_inputs"]

Array = np.ndarray[Any, Any]

_INPUTS: Final = "inputs"
"""Of signatures that classify or regress."""

_KINDS: Final = {
    "bytes_list": "strings",
    "float_list": "floats",
    "int64_list": "integers",
    None: "nothing",
}


def examples_of(input: Any) -> list[Any]:
    """The examples of an ``Input``, each with the features of the context that it does not have itself.

    Raises:
        RequestError: INVALID_ARGUMENT: there is none.
    """
    kind = input.WhichOneof("kind")
    given = getattr(input, kind).examples if kind else ()
    if not given:
        raise _invalid("The input has no example.")
    if kind == "example_list":
        return list(given)
    context = input.example_list_with_context.context
    found = []
    for one in given:
        whole = message("tensorflow.Example")()
        whole.CopyFrom(context)
        whole.MergeFrom(one)
        for name, feature in one.features.feature.items():
            # Merging appends to a list of the context; the example's own replaces it.
            whole.features.feature[name].CopyFrom(feature)
        found.append(whole)
    return found


def to_inputs(examples: Sequence[Any], signature: Signature) -> dict[str, Array]:
    """What the signature takes, of examples, one after another in the first dimension.

    Raises:
        RequestError: INVALID_ARGUMENT: a feature is missing, or has another type or size than the input.
    """
    specs = signature.inputs
    if _takes_examples(signature):
        (name,) = specs
        array = np.empty(len(examples), object)
        array[:] = [one.SerializeToString() for one in examples]
        return {name: array}
    return {
        name: _column(spec, examples)
        for name, spec in specs.items()
        if name not in signature.defaults or any(name in one.features.feature for one in examples)
    }


def _takes_examples(signature: Signature) -> bool:
    """Its only input is a list of strings, and it is to classify or regress, or the name says so.

    What version 2 of TensorFlow saves is all to predict.
    """
    specs = tuple(signature.inputs.values())
    if len(specs) != 1 or specs[0].dtype != BYTES or len(specs[0].shape or (0,)) != 1:
        return False
    return signature.method in ("classify", "regress") or specs[0].name == _INPUTS


def _column(spec: TensorSpec, examples: Sequence[Any]) -> Array:
    rows = []
    for index, one in enumerate(examples):
        # Looking it up would add it to the message.
        if spec.name not in one.features.feature:
            raise _invalid(f"Example {index} has no feature {spec.name}.")
        rows.append(_values(spec, index, one.features.feature[spec.name]))
    size = len(rows[0])
    for index, row in enumerate(rows):
        if len(row) != size:
            raise _invalid(
                f"Feature {spec.name} has {len(row)} values in example {index}, and {size} in the first."
            )
    values = [value for row in rows for value in row]
    try:
        with np.errstate(over="raise"):
            array = np.empty(len(values), object) if spec.dtype == BYTES else None
            if array is None:
                array = np.array(values, DTYPES[spec.dtype])
            else:
                array[:] = values
    except (OverflowError, FloatingPointError):
        raise _invalid(f"Feature {spec.name} has values outside the range of {spec.dtype}.") from None
    return array.reshape(len(rows), *_inner(spec, size))


def _values(spec: TensorSpec, index: int, feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "O":
        fits = kind == "bytes_list"
    elif dtype.kind in "biu":
        fits = kind == "int64_list"
    else:  # of floats, bfloat16 too
        fits = kind in ("float_list", "int64_list") and dtype.kind != "c"
    if not fits:
        raise _invalid(
            f"Feature {spec.name} of example {index} has {_KINDS[kind]}, and the model wants {spec.dtype}."
        )
    return getattr(feature, kind).value


def _inner(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of one example's values."""
    if spec.shape is None:
        return () if size == 1 else (size,)
    if not spec.shape:
        raise _invalid(f"Input {spec.name} is a scalar, and takes no examples.")
    inner = spec.shape[1:]
    known = math.prod(one for one in inner if one >= 0)
    free = sum(one < 0 for one in inner)
    if free == 0 and size == known:
        return inner
    if free == 1 and known and size % known == 0:
        return tuple(size // known if one < 0 else one for one in inner)
    wanted = f"[{', '.join(map(str, inner))}]"
    raise _invalid(
        f"Feature {spec.name} has {size} values, and the model wants {wanted} of each example."
    )


def _invalid(said: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, said)
