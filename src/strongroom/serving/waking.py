"""From threads to the event loop, with one wake-up for all that are done at the same time.

``asyncio.wrap_future`` writes to the loop's socket for each: of a batch of 32, that was half the time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

__all__ = ["Waking"]


class Waking:
    """What is done and was not told to the loop yet.

    Args:
        loop: to tell.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._told = False

    async def wait(self, tell: Callable[[Callable[..., None]], object], seconds: float) -> None:
        """Wait for a call, or until the time is over.

        Args:
            tell: is given what shall be called, from any thread.
            seconds: at most.
        """
        waiter: asyncio.Future[None] = self.loop.create_future()
        tell(partial(self._wake, waiter))
        timer = self.loop.call_later(max(0.0, seconds), _finish, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def _wake(self, waiter: asyncio.Future[None], *what: object) -> None:
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


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
