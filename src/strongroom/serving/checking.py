"""Do the inputs of a call fit the signature? What does not is refused in words before the model sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from strongroom.serving.backend import Arrays
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, Signature, TensorSpec, dtype_name

__all__ = ["check_inputs", "wanted_outputs"]


def check_inputs(inputs: Arrays, signature: Signature, *, together: bool = True) -> int:
    """The number of examples; 1 where the signature is not batched.

    Args:
        together: requests may be put together, and their inputs have as many examples as one another.

    Raises:
        RequestError: INVALID_ARGUMENT: an input is missing, unknown, or has another dtype, rank or shape.
    """
    specs = signature.inputs
    if inputs.keys() != specs.keys():
        _refuse_names(inputs, signature)
    for name, spec in specs.items():
        value = inputs[name]
        if value.dtype != DTYPES[spec.dtype]:
            raise _invalid(f"Input {name} has dtype {_dtype(value)}, and the model wants {spec.dtype}.")
        if spec.shape is not None and not _fits(value.shape, spec.shape) and not spec.loose:
            wanted = _shape(spec)
            raise _invalid(f"Input {name} has shape {list(value.shape)}, and the model wants {wanted}.")
    if not signature.batched:
        return 1
    if len(inputs) == 1 and value.ndim:
        return int(value.shape[0])
    sizes = [value.shape[0] if value.ndim else -1 for value in inputs.values()]
    size = sizes[0] if sizes else -1
    if size < 0 or sizes.count(size) != len(sizes):
        if not together:
            return 1
        raise _invalid("The inputs differ in their first dimension, the number of examples.")
    return size


def wanted_outputs(outputs: Sequence[str], signature: Signature) -> tuple[str, ...]:
    """The outputs to compute: those named, or all.

    Raises:
        RequestError: INVALID_ARGUMENT: the model does not have one of them.
    """
    if not outputs:
        return tuple(signature.outputs)
    for name in outputs:
        if name not in signature.outputs:
            raise _invalid(
                f"The model has no output {_shown(name)}; it has {_list(signature.outputs)}."
            )
    return tuple(outputs)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted):  # noqa: B905, SIM110  half the time of all()
        if want != size and want != -1:
            return False
    return True


def _refuse_names(inputs: Arrays, signature: Signature) -> None:
    unknown = [name for name in inputs if name not in signature.inputs]
    if unknown:
        raise _invalid(
            f"The model has no input {_shown(unknown[0])}; it has {_list(signature.inputs)}."
        )
    missing = [name for name in signature.inputs if name not in inputs]
    raise _invalid(f"Input {missing[0]} is missing.")


def _dtype(value: np.ndarray[Any, Any]) -> str:
    try:
        return dtype_name(value.dtype)
    except ValueError:
        return str(value.dtype.name)


def _shape(spec: TensorSpec) -> str:
    assert spec.shape is not None
    return f"[{', '.join(map(str, spec.shape))}]"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, message)
