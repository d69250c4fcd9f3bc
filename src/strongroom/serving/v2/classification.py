"""The classification extension: an output as its highest values, ``value:index`` each."""

from __future__ import annotations

from typing import Any

import numpy as np

from strongroom.serving.v2.datatypes import invalid

__all__ = ["classify", "count_of"]


def count_of(value: object) -> int:
    """The number of classes asked for; 0 asks for none.

    Raises:
        RequestError: INVALID_ARGUMENT: it is no such number.
    """
    if type(value) is not int or not 0 <= value < 2**31:
        raise invalid("The parameter classification is a number of classes.")
    return value


def classify(name: str, array: np.ndarray[Any, Any], count: int, batched: bool) -> np.ndarray[Any, Any]:
    """The ``count`` highest values, highest first, as BYTES.

    Args:
        name: for messages.
        array: an output.
        count: at least 1; fewer are given where there are fewer.
        batched: of each element of the first dimension, instead of all.

    Raises:
        RequestError: INVALID_ARGUMENT: the output is no numbers.
    """
    if array.dtype.kind not in "iufV":
        raise invalid(f"Output {name} is no numbers, and has no classes.")
    rows = array.reshape(len(array), -1) if batched and array.size else array.reshape(1, -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = [
        b"%f:%d" % (row[at], at)
        for row, best in zip(rows.tolist(), order.tolist(), strict=True)
        for at in best
    ]
    found = np.array(texts, object).reshape(order.shape)
    return found if batched else found[0]
