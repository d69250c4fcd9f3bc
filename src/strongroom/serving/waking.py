"""From futures of threads to the event loop, with one wake-up for all that are done at the same time.

``asyncio.wrap_future`` writes to the loop's socket for each: of a batch of 32, that was half the time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

__all__ = ["Waking", "wait"]


class Waking:
    """What is done and was not told to the loop yet.

    Args:
        loop: to tell.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._told = False

    def wake(self, waiter: asyncio.Future[None], future: Future[Any]) -> None:
        """From any thread: let the waiter go on."""
        self._done.append(waiter)
        # Whoever reads True here has appended before the loop begins to take out.
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self.loop.call_soon_threadsafe(self._take_out)

    def _take_out(self) -> None:
        self._told = False
        while self._done:
            _finish(self._done.popleft())


async def wait(waking: Waking, future: Future[Any], seconds: float) -> bool:
    """Wait until a future is done, in the loop of ``waking``; False: the time is over before."""
    if future.done():
        return True
    waiter: asyncio.Future[None] = waking.loop.create_future()
    timer = waking.loop.call_later(max(0.0, seconds), _finish, waiter)
    future.add_done_callback(partial(waking.wake, waiter))
    try:
        await waiter
    finally:
        timer.cancel()
    return future.done()


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
