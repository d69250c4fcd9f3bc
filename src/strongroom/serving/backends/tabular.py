"""What models of tables have in common: rows of features in, one array for each function of the model out.

The features are one matrix, or, where the configuration says so, one input for each column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from strongroom.errors import UsageError
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec, dtype_name
from strongroom.serving.warmup import random_inputs

__all__ = [
    "Function",
    "Table",
    "TableModel",
    "booster_model",
    "chosen",
    "described",
    "nothing",
    "options_of",
    "regress",
    "table_of",
]

Array = np.ndarray[Any, Any]
Function = Callable[[Any], Any]
"""From features to an array whose first dimension counts rows."""

_INPUTS: Final = "inputs"
_REGRESSION: Final = "outputs"


@dataclass(frozen=True, slots=True)
class Table:
    """The inputs of a model.

    Attributes:
        specs: of one matrix or list of rows, or of the columns in the order of the model.
        columns: whether they are columns.
    """

    specs: tuple[TensorSpec, ...]
    columns: bool

    def rows(self, inputs: Arrays) -> int:
        """How many there are.

        Raises:
            RequestError: INVALID_ARGUMENT: the columns differ in it.
        """
        sizes = {len(inputs[spec.name]) for spec in self.specs}
        if len(sizes) > 1:
            raise RequestError(Code.INVALID_ARGUMENT, "The columns differ in their number of rows.")
        return sizes.pop()

    def values(self, inputs: Arrays) -> list[Array]:
        """In the order of :attr:`specs`, text as ``str``.

        Raises:
            RequestError: INVALID_ARGUMENT: it is not UTF-8.
        """
        return [
            _text(spec.name, inputs[spec.name]) if spec.dtype == BYTES else inputs[spec.name]
            for spec in self.specs
        ]

    def matrix(self, inputs: Arrays) -> Array:
        """All of it as one array.

        Raises:
            RequestError: see :meth:`values`.
        """
        values = self.values(inputs)
        return np.column_stack(values) if self.columns else values[0]


def table_of(
    options: BackendOptions, features: int | None, names: Sequence[str] | None, dtype: str
) -> Table:
    """The inputs as the configuration or else the model has them.

    Args:
        features: how many the model has, if it says so.
        names: of them, if it says so.
        dtype: of the matrix that is the input where the configuration says nothing.

    Raises:
        UsageError: neither says what there has to be, or they contradict one another.
    """
    said = tuple(options.inputs or ())
    if not said:
        if features is None:
            raise UsageError(
                "The model does not say how many features it has.",
                hint="inputs: [{name: inputs, dtype: float64, shape: [-1, N]}], or for text "
                "[{name: text, dtype: bytes, shape: [-1]}].",
            )
        return Table((TensorSpec(_INPUTS, dtype, (-1, features)),), columns=False)
    for spec in said:
        if spec.shape is None or len(spec.shape) not in (1, 2) or spec.shape[0] != -1:
            raise UsageError(
                f"The input {spec.name} of the configuration is neither a matrix nor a column.",
                hint="Its shape is [-1, N] for all features together, [-1] for one.",
            )
    matrix = len(said) == 1 and len(said[0].shape or ()) == 2
    if matrix or (len(said) == 1 and features is None):
        return Table((_matrix(said[0], features),), columns=False)
    return Table(_columns(said, features, names), columns=True)


def _matrix(spec: TensorSpec, features: int | None) -> TensorSpec:
    if features is None or spec.shape is None or spec.shape[1] == features:
        return spec
    if spec.shape[1] == -1:
        return TensorSpec(spec.name, spec.dtype, (-1, features))
    raise UsageError(f"The model has {features} features, and not {spec.shape[1]} as configured.")


def _columns(
    said: tuple[TensorSpec, ...], features: int | None, names: Sequence[str] | None
) -> tuple[TensorSpec, ...]:
    for spec in said:
        if len(spec.shape or ()) != 1:
            raise UsageError(
                f"The input {spec.name} of the configuration is no column.",
                hint="Several inputs are one for each feature, each of the shape [-1].",
            )
    if names is None:
        if features is not None and features != len(said):
            raise UsageError(
                f"The model has {features} features, and the configuration {len(said)} inputs."
            )
        return said
    by_name = {spec.name: spec for spec in said}
    if by_name.keys() != set(names):
        missing = [name for name in names if name not in by_name]
        wrong = missing or [name for name in by_name if name not in names]
        what = "has no input for the feature" if missing else "has the input"
        raise UsageError(
            f"The configuration {what} {wrong[0]}.",
            hint="The model's features are " + ", ".join(names[:50]) + ("…" if names[50:] else "."),
        )
    return tuple(by_name[name] for name in names)


def nothing(spec: TensorSpec) -> Array:
    """An output for no rows; other dimensions of any size are 0 too."""
    sizes = (spec.shape or (0,))[1:]
    return np.empty((0, *(max(one, 0) for one in sizes)), DTYPES[spec.dtype])


def _text(name: str, value: Array) -> Array:
    try:
        texts = [one.decode() for one in value.flat]
    except UnicodeDecodeError:
        raise RequestError(Code.INVALID_ARGUMENT, f"Input {name} is not text in UTF-8.") from None
    found = np.empty(len(texts), object)
    found[:] = texts
    return found.reshape(value.shape)


class TableModel:
    """A model of functions; see :class:`..backend.LoadedModel`.

    Args:
        platform: as the Open Inference Protocol names it.
        table: its inputs.
        features: makes of the inputs what the functions take.
        functions: by signature and output.
        specs: of the outputs, likewise.
        invalid: what the functions raise about values.
    """

    def __init__(
        self,
        platform: str,
        table: Table,
        features: Callable[[Arrays], Any],
        functions: Mapping[str, Mapping[str, Function]],
        specs: Mapping[str, Mapping[str, TensorSpec]],
        invalid: tuple[type[Exception], ...] = (),
    ) -> None:
        self.platform = platform
        self._table = table
        self._features = features
        self._functions = functions
        self._invalid = invalid
        inputs = {one.name: one for one in table.specs}
        self.signatures = {
            name: Signature(inputs, outputs, batched=True) for name, outputs in specs.items()
        }

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, Array]:
        specs = self.signatures[signature].outputs
        rows = self._table.rows(inputs)
        if not rows:
            # Of no rows scikit-learn refuses to say anything, and the shapes of the others are off.
            return {name: nothing(specs[name]) for name in outputs}
        functions = self._functions[signature]
        try:
            features = self._features(inputs)
            found = {name: functions[name](features) for name in outputs}
        except self._invalid:
            # Their words quote the values.
            raise RequestError(
                Code.INVALID_ARGUMENT, "The model cannot compute with these values."
            ) from None
        return {name: _fitting(value, specs[name], rows) for name, value in found.items()}

    def close(self) -> None:
        self._functions = {}
        del self._features


def described(
    name: str, function: Function, table: Table, features: Callable[[Arrays], Any]
) -> TensorSpec:
    """An output, by what comes of one row of random features.

    Raises:
        what the function raises: it may know nothing of such features.
        ValueError: what comes is no array of rows, or no protocol carries it.
    """
    inputs = {one.name: one for one in table.specs}
    found = _dense(function(features(random_inputs(Signature(inputs, {})))))
    if found.ndim == 0 or len(found) != 1:
        raise ValueError("is no array of rows")
    return TensorSpec(name, dtype_name(found.dtype), (-1, *found.shape[1:]))


def chosen(
    options: BackendOptions, functions: Mapping[str, Function], default: Sequence[str]
) -> list[str]:
    """The outputs that the configuration names, or else the default ones.

    Raises:
        UsageError: the model does not have one of them.
    """
    said = [spec.name for spec in options.outputs or ()]
    for name in said:
        if name not in functions:
            raise UsageError(
                f"The model has no output {name} as configured.",
                hint="It has " + ", ".join(functions) + ".",
            )
    return said or [name for name in default if name in functions]


def regress(output: TensorSpec, function: Function) -> tuple[TensorSpec, Function] | None:
    """The output of a signature for ``regress`` of TensorFlow Serving's API, of a model of one number."""
    if output.dtype == BYTES or output.shape is None or len(output.shape) != 1:
        return None
    return TensorSpec(_REGRESSION, output.dtype, output.shape), function


def booster_model(
    platform: str, table: Table, functions: Mapping[str, Function], options: BackendOptions
) -> TableModel:
    """A model of boosted trees: it knows no names of classes, and computes with any numbers.

    Args:
        functions: the first is the output where the configuration says nothing.

    Raises:
        UsageError: the configuration is none for this model.
    """
    for spec in table.specs:
        if DTYPES[spec.dtype].kind not in "biuf":
            raise UsageError(
                f"The input {spec.name} of the configuration is {spec.dtype}, and the model takes numbers.",
                hint="A category is given as its number in the order of training.",
            )
    first = next(iter(functions))
    names = chosen(options, functions, [first])
    outputs = {name: described(name, functions[name], table, table.matrix) for name in names}
    signatures = {"serving_default": {name: functions[name] for name in names}}
    specs = {"serving_default": outputs}
    regression = regress(outputs[first], functions[first]) if first in outputs else None
    if regression is not None:
        spec, function = regression
        signatures["regress"], specs["regress"] = {spec.name: function}, {spec.name: spec}
    return TableModel(platform, table, table.matrix, signatures, specs)


def options_of(options: BackendOptions, known: Sequence[str]) -> dict[str, Any]:
    """The options for the framework.

    Raises:
        UsageError: one is not known.
    """
    for name in options.extra:
        if name not in known:
            raise UsageError(
                f"options.{name} is nothing that this backend knows.",
                hint="Known: " + ", ".join(known) + ".",
            )
    return dict(options.extra)


def _dense(value: Any) -> Array:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


def _fitting(value: Any, spec: TensorSpec, rows: int) -> Array:
    array = _dense(value)
    if spec.shape is not None and (array.ndim != len(spec.shape) or len(array) != rows):
        raise ValueError("an output of the model is not of its shape")
    if spec.dtype != BYTES:
        # Never from one kind of number to another that loses some of it.
        return array.astype(DTYPES[spec.dtype], casting="same_kind", copy=False)
    found = np.empty(array.size, object)
    found[:] = [one if isinstance(one, bytes) else str(one).encode() for one in array.flat]
    return found.reshape(array.shape)
