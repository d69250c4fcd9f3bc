"""A model's first runs, before somebody waits for them: frameworks make their plans and buffers then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from strongroom.serving.backend import Arrays, LoadedModel
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec

__all__ = ["Sample", "WithSamples", "random_inputs", "replay", "warm_up"]

Sample = tuple[str, Arrays, Sequence[str]]
"""A request: signature, inputs, outputs."""


@runtime_checkable
class WithSamples(Protocol):
    """A loaded model that comes with requests."""

    def samples(self) -> Sequence[Sample]:
        """Once; they are not kept.

        Raises:
            FormatError: they cannot be read.
            RequestError: INVALID_ARGUMENT, where one does not fit the model.
        """


def warm_up(model: LoadedModel, signature: str, runs: int, batch: int = 1) -> None:
    """Run a model with random inputs.

    Args:
        signature: of the model.
        runs: for each size.
        batch: most examples that are put together; one of a signature that is batched.

    Raises:
        what the model raises: an open dimension may be one that cannot have any size.
    """
    spec = model.signatures[signature]
    for size in sorted({1, batch if spec.batched else 1}):
        for _ in range(runs):
            model.run(signature, random_inputs(spec, size), tuple(spec.outputs))


def replay(model: LoadedModel, samples: Sequence[Sample], runs: int) -> None:
    """Run a model with requests that came with it, each so many times.

    Raises:
        what the model raises.
    """
    for sample in samples:
        for _ in range(runs):
            model.run(*sample)


def random_inputs(signature: Signature, size: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs that fit: numbers from 0 to 1, and integers 0 and 1, which count as indices too.

    Args:
        size: of the first dimension, where it is open; other open dimensions are 1.
    """
    random = np.random.default_rng(0)
    return {name: _value(spec, size, random) for name, spec in signature.inputs.items()}


def _value(spec: TensorSpec, size: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    sizes = spec.shape or ()
    shape = tuple((1 if axis else size) if one == -1 else one for axis, one in enumerate(sizes))
    if spec.dtype == BYTES:
        return np.full(shape, b"a", object)
    dtype = DTYPES[spec.dtype]
    if dtype.kind in "biu":
        return random.integers(0, 2, shape).astype(dtype)
    return np.asarray(random.random(shape)).astype(dtype)
