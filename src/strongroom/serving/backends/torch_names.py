"""Names of inputs and outputs: those of a file of PyTorch, and those of the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strongroom.errors import UsageError
from strongroom.serving.tensors import TensorSpec

__all__ = ["Parameters", "leaf_names", "matched", "missing", "renamed", "script_parameters"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of ``forward`` of a TorchScript module.

    Attributes:
        names: of those that take a tensor, in order.
        needed: of those that have no default.
        container: dict or list, where all tensors go into one parameter.
    """

    names: tuple[str, ...]
    needed: tuple[str, ...] = ()
    container: type | None = None


def script_parameters(file: str, schema: Any) -> Parameters:
    """What ``forward`` takes.

    Raises:
        UsageError: something that no request carries.
    """
    names, needed = [], []
    arguments = schema.arguments[1:]  # the first is self
    if len(arguments) == 1:
        kind, type_ = arguments[0].type.kind(), str(arguments[0].type)
        if kind == "DictType" and type_ == "Dict[str, Tensor]":
            return Parameters((), container=dict)
        if kind == "ListType" and type_ == "List[Tensor]":
            return Parameters((), container=list)
    for one in arguments:
        if str(one.type) in ("Tensor", "Optional[Tensor]"):
            names.append(one.name)
            if not one.has_default_value():
                needed.append(one.name)
        elif not one.has_default_value():
            raise UsageError(
                f"The parameter {one.name} of {file} is of type {one.type}, and requests carry tensors.",
                hint="Save a module whose forward takes tensors alone.",
            )
    return Parameters(tuple(names), tuple(needed))


def missing(
    file: str, what: str, names: Iterable[str] = (), specs: Iterable[TensorSpec] = ()
) -> UsageError:
    """The error for inputs or outputs that have to be configured.

    Args:
        what: ``inputs`` or ``outputs``.
        names: that the file has for them.
        specs: that may be the right ones.
    """
    lines = [f"{{name: {one.name}, dtype: {one.dtype}, shape: {_shape(one)}}}" for one in specs] or [
        f"{{name: {name}, dtype: float32, shape: [-1, 3]}}" for name in names or (f"{what[:-1]}0",)
    ]
    return UsageError(
        f"{file} does not say dtypes and shapes of its {what}.",
        hint=f"Write them into models.yaml, such as {what}: [{', '.join(lines)}]; "
        "-1 is a dimension of any size.",
    )


def matched(
    file: str, what: str, said: Sequence[TensorSpec], known: Sequence[str], needed: Sequence[str]
) -> list[str]:
    """For each configured input or output the name that the file has for it.

    The names of the configuration are those of the file, or all others: then their order counts.

    Raises:
        UsageError: they do not fit.
    """
    names = [one.name for one in said]
    if set(names) <= set(known):
        found = names
    elif set(names).isdisjoint(known) and len(names) <= len(known):
        found = list(known[: len(names)])
    else:
        raise UsageError(
            f"The {what} of {file} are {', '.join(known)}, and not {', '.join(names)}.",
            hint="Use these names; or names of your own for all of them, in the same order.",
        )
    for name in needed:
        if name not in found:
            raise UsageError(f"The {what} of the configuration lack {name}, which {file} needs.")
    return found


def renamed(
    file: str, what: str, specs: Sequence[TensorSpec], said: Sequence[TensorSpec] | None
) -> tuple[TensorSpec, ...]:
    """What the file says, under the names of the configuration."""
    if said is None:
        return tuple(specs)
    known = [one.name for one in specs]
    own = dict(zip(matched(file, what, said, known, known), (one.name for one in said), strict=True))
    return tuple(replace(one, name=own[one.name]) for one in specs)


def leaf_names(paths: Iterable[Sequence[Any]], prefix: str) -> list[str]:
    """Names for the leaves of nested lists, tuples and dicts.

    Args:
        paths: as ``tree_flatten_with_path`` has them; ``("logits",)`` is ``logits``, ``(0,)`` and ``()``
            are ``output0``, and ``("past", 0)`` is ``past_0``.
        prefix: for numbers.
    """
    names = []
    for path in paths:
        parts = [_part(key) for key in path] or ["0"]
        names.append((prefix if parts[0].isdecimal() else "") + "_".join(parts))
    if len(set(names)) < len(names):
        return [f"{prefix}{number}" for number in range(len(names))]
    return names


def _part(key: Any) -> str:
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _shape(spec: TensorSpec) -> str:
    return "null" if spec.shape is None else f"[{', '.join(map(str, spec.shape))}]"
