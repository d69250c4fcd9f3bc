"""Bodies of JSON become tensors: without the garbage collector, and large ones beside the event loop.

JSON becomes a list for each row, and when many have come, the collector looks at everything there is. With
TensorFlow in the process that takes 0.25 s, and every third image of 1.7 MB as nested lists made it do so.
There are no cycles in what is decoded: it is freed without the collector.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

from strongroom.serving.workers import Workers

__all__ = ["LARGE", "Decoding", "uncollected"]

LARGE: Final = 256 << 10
"""Bytes from which on a thread decodes, for 3 ms at least. While it does, the event loop waits for 7 ms at a
time for images of 1.7 MB, and not for 15 ms; a hop to the thread takes 0.1 ms."""

Result = TypeVar("Result")


def uncollected(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function, which takes milliseconds, while the collector does not run.

    Where several threads are in such calls, it may run when the first of them is done.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return function(*arguments)
    finally:
        if enabled:
            gc.enable()


class Decoding:
    """Where it is done. One thread for all: several would only take turns, and the event loop with them."""

    def __init__(self) -> None:
        self._thread = Workers(1, "decode")

    async def run(self, size: int, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that decodes ``size`` bytes.

        Raises:
            what the function raises.
        """
        if size < LARGE:
            return uncollected(function, *arguments)
        job = partial(copy_context().run, uncollected, function, *arguments)
        return await asyncio.wrap_future(self._thread.submit(job))
