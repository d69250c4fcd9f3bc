"""What is sent: random numbers, an image or a file, as the model takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from strongroom.errors import MissingExtra, UsageError, os_errors
from strongroom.loadtest.protocols import Arrays
from strongroom.serving.tensors import BYTES, DTYPES, TensorSpec

__all__ = ["from_file", "from_image", "random_inputs"]

_Array = np.ndarray[Any, Any]

_VARIANTS: Final = 16
"""Different random inputs, so that no cache answers."""
_VARIANTS_BYTES: Final = 64 << 20
_MAX_BYTES: Final = 2 << 30
_CHANNELS: Final = (1, 3)
_INTEGERS: Final = 10
"""Random integers are below it: they may be indices."""


def random_inputs(
    specs: Sequence[TensorSpec], batch: int, shapes: Mapping[str, tuple[int, ...]], seed: int
) -> list[Arrays]:
    """Up to 16 different inputs: floats in [0, 1), integers from 0 to 9, strings of 8 letters.

    Args:
        specs: of all inputs.
        batch: size of the first dimension, where the model leaves it open.
        shapes: of inputs with other dimensions that the model leaves open.
        seed: the same gives the same.

    Raises:
        UsageError: the model leaves more open than that, or wants another batch.
    """
    sizes = {spec.name: shapes.get(spec.name) or _shape(spec, batch) for spec in specs}
    unknown = shapes.keys() - sizes.keys()
    if unknown:
        raise UsageError(f"The model has no input {min(unknown)}.")
    total = sum(math.prod(sizes[spec.name]) * DTYPES[spec.dtype].itemsize for spec in specs)
    if total > _MAX_BYTES:
        raise UsageError("An input of this size is more than a message can carry.")
    generator = np.random.default_rng(seed)
    count = max(1, min(_VARIANTS, _VARIANTS_BYTES // max(total, 1)))
    return [
        {spec.name: _random(spec, sizes[spec.name], generator) for spec in specs} for _ in range(count)
    ]


def _random(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> _Array:
    dtype = DTYPES[spec.dtype]
    if spec.dtype == BYTES:
        letters = generator.integers(97, 123, (math.prod(shape), 8), np.uint8)
        array = np.empty(len(letters), object)
        array[:] = [bytes(row) for row in letters]
        return array.reshape(shape)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, _INTEGERS, shape).astype(dtype)
    return generator.random(shape, np.float32).astype(dtype)


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    if spec.shape is None or -1 in spec.shape[1:]:
        raise UsageError(
            f"The model leaves the shape of input {spec.name} open.",
            hint=f"--shape {spec.name}=1,3,224,224",
        )
    return _batched(spec, batch)


def _batched(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The shape with the batch where the model leaves it open."""
    shape = spec.shape or ()
    if shape and shape[0] == -1:
        return (batch, *shape[1:])
    if batch > 1 and (not shape or shape[0] != batch):
        raise UsageError(f"Input {spec.name} has a fixed shape: a batch of {batch} does not fit.")
    return shape


def _repeated(spec: TensorSpec, array: _Array, batch: int) -> _Array:
    """An array as the model takes it: a whole batch, or one example that is repeated.

    Raises:
        UsageError: it does not fit.
    """
    if spec.shape is None:
        return array
    if array.ndim == len(spec.shape) - 1 and spec.shape[0] in (-1, batch):
        array = array[np.newaxis]
    if array.ndim == len(spec.shape) and array.ndim and len(array) == 1 and batch > 1:
        array = np.repeat(array, batch, axis=0)
    wanted = _batched(spec, batch)
    if array.ndim != len(wanted) or any(
        size not in (-1, has) for size, has in zip(wanted, array.shape, strict=True)
    ):
        raise UsageError(
            f"Input {spec.name} is {_shown(spec.shape)} in the model, with a batch of {batch},"
            f" and {_shown(array.shape)} in the file."
        )
    return array


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join('?' if size < 0 else str(size) for size in shape)}]"


def from_file(path: str, specs: Sequence[TensorSpec], batch: int) -> Arrays:
    """The arrays in a ``.npy`` (for a model with one input), ``.npz`` or ``.json`` file (by name).

    Raises:
        UsageError: they are not what the model takes.
        NotFound: there is no such file.
    """
    found = dict(_contents(path, specs))
    missing = [spec.name for spec in specs if spec.name not in found]
    unknown = [name for name in found if name not in {spec.name for spec in specs}]
    if missing or unknown:
        what = f"has no input {missing[0]}" if missing else f"has {unknown[0]}, which is no input"
        raise UsageError(f"{path} {what}.", hint=f"Inputs: {', '.join(s.name for s in specs)}.")
    return {spec.name: _repeated(spec, _typed(spec, found[spec.name]), batch) for spec in specs}


def _contents(path: str, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, Any]]:
    with os_errors(path):
        data = Path(path).read_bytes()
    try:
        if path.endswith(".npz"):
            with np.load(BytesIO(data), allow_pickle=False) as arrays:
                yield from arrays.items()
        elif path.endswith(".npy"):
            yield _only(specs), np.load(BytesIO(data), allow_pickle=False)
        elif path.endswith(".json"):
            value = json.loads(data)
            if isinstance(value, dict):
                inner = value.get("inputs")
                yield from (inner if isinstance(inner, dict) else value).items()
            else:
                yield _only(specs), value
        else:
            raise UsageError(f"{path}: inputs are a .npy, .npz or .json file.")
    except (ValueError, EOFError, OSError, RecursionError):
        raise UsageError(f"{path} cannot be read as what its name says.") from None


def _only(specs: Sequence[TensorSpec]) -> str:
    if len(specs) != 1:
        raise UsageError("The model has several inputs.", hint="Give them by name: .npz or .json.")
    return specs[0].name


def _typed(spec: TensorSpec, value: Any) -> _Array:
    try:
        if spec.dtype != BYTES:
            return np.asarray(value).astype(DTYPES[spec.dtype])
        found = np.asarray(value)
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in found.ravel().tolist()]
        array = np.empty(len(texts), object)
        array[:] = texts
        return array.reshape(found.shape)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"Input {spec.name} cannot be made {spec.dtype}.") from None


def from_image(path: str, specs: Sequence[TensorSpec], batch: int) -> Arrays:
    """An image for a model with one input: scaled to the model's height and width, values 0 to 255, NHWC or NCHW.

    A model that takes strings gets the file as it is.

    Raises:
        UsageError: the input is none for images.
        MissingExtra: Pillow is not installed.
        NotFound: there is no such file.
    """
    spec = next(iter(specs))
    _only(specs)
    with os_errors(path):
        data = Path(path).read_bytes()
    if spec.dtype == BYTES:
        return {spec.name: np.full(_batched(spec, batch), data, object)}
    count = _batched(spec, batch)[0] if spec.shape else 1
    channels_first, height, width, channels = _layout(spec)
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("Reading an image", "loadtest") from None
    try:
        with Image.open(BytesIO(data)) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise UsageError(f"{path} is no image that can be read.") from None
    size = (image.width if width < 0 else width, image.height if height < 0 else height)
    array = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    array = array.reshape(*array.shape[:2], channels)
    if channels_first:
        array = array.transpose(2, 0, 1)
    return {spec.name: np.repeat(array[np.newaxis], count, 0).astype(DTYPES[spec.dtype])}


def _layout(spec: TensorSpec) -> tuple[bool, int, int, int]:
    """Whether channels come first, height, width, channels."""
    shape = spec.shape
    if shape is not None and len(shape) == 4 and DTYPES[spec.dtype].kind in "iufV":
        if shape[3] in _CHANNELS:
            return False, shape[1], shape[2], shape[3]
        if shape[1] in _CHANNELS:
            return True, shape[2], shape[3], shape[1]
    raise UsageError(
        f"Input {spec.name} takes no images.", hint="One that does is [?, 224, 224, 3], say."
    )
