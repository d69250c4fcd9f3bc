"""Open dimensions that are not quite open: with bounds, or with one size in several places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom.serving.backend import Arrays
from strongroom.serving.status import Code, RequestError

__all__ = ["Open", "check_dimensions"]


@dataclass(frozen=True, slots=True)
class Open:
    """What a file says of one dimension.

    Attributes:
        least, most: sizes; None has no bound.
        name: dimensions of one name have one size.
    """

    least: int = 0
    most: int | None = None
    name: str | None = None


def check_dimensions(inputs: Arrays, known: Mapping[str, Sequence[Open | None]]) -> None:
    """Refuse sizes that do not fit.

    Args:
        inputs: whose ranks fit already.
        known: of some of the inputs, one for each axis; None is checked elsewhere.

    Raises:
        RequestError: INVALID_ARGUMENT, with the names and sizes.
    """
    sizes: dict[str, int] = {}
    for name, dimensions in known.items():
        for axis, (size, one) in enumerate(zip(inputs[name].shape, dimensions, strict=True)):
            if one is None:
                continue
            if size < one.least or (one.most is not None and size > one.most):
                bounds = f"at least {one.least}" if size < one.least else f"at most {one.most}"
                raise RequestError(
                    Code.INVALID_ARGUMENT,
                    f"Input {name} has {size} in dimension {axis}, and the model takes {bounds}.",
                )
            if one.name is not None and sizes.setdefault(one.name, size) != size:
                raise RequestError(
                    Code.INVALID_ARGUMENT,
                    f"Input {name} has {size} in dimension {axis}, "
                    f"and the model wants {sizes[one.name]}, as elsewhere in the request.",
                )
