"""Whose fault a failed run is, of frameworks whose exceptions do not say it.

PyTorch and OpenVINO raise RuntimeError for a shape that two operators disagree on, for an index that a
client chose, and for a model that never worked. A model that has worked once gets the benefit of the
doubt: clients choose shapes and values, and their mistakes must not look like the server's.
"""

from __future__ import annotations

from typing import Final

from strongroom.serving.status import Code, RequestError

__all__ = ["blame"]

_NO_MEMORY: Final = ("allocate memory", "out of memory", "bad_alloc", "bad allocation")


def blame(error: Exception, *, worked: bool) -> Exception:
    """What to raise for what a framework raised; without its words, which may quote values.

    Args:
        worked: the model has answered before, be it in its warm-up.
    """
    if isinstance(error, NotImplementedError):  # an operator that lacks a dtype or device
        return error
    text = str(error).lower()
    if any(words in text for words in _NO_MEMORY):
        return RequestError(Code.RESOURCE_EXHAUSTED, "There is no memory to compute with these values.")
    if not worked:
        return error
    return RequestError(Code.INVALID_ARGUMENT, "The model cannot compute with these values.")
