"""Waiting for a moment to the tenth of a millisecond."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from typing import Final, Self

__all__ = ["Timer"]

_CLOCK: Final = 1  # CLOCK_MONOTONIC, which time.perf_counter reads too


class _Spec(ctypes.Structure):
    """``struct itimerspec``: the interval, of which there is none, and the moment."""

    _fields_ = (
        ("interval", ctypes.c_long * 2),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Timer:
    """A timer of the kernel, for one waiter at a time.

    Those of event loops count in milliseconds, and a loop that waits awake takes the processor from the
    server that it measures. Python has timerfd from 3.13 on.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(_CLOCK, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._loop.add_reader(self._descriptor, self._ring)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _ring(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until(self, moment: float) -> None:
        """Wait for a moment of ``time.perf_counter``; one that has passed is there at once."""
        if moment <= time.perf_counter():
            return
        self._waiter = self._loop.create_future()
        seconds = int(moment)
        spec = _Spec(seconds=seconds, nanoseconds=round((moment - seconds) * 1e9))
        if self._libc.timerfd_settime(self._descriptor, 1, ctypes.byref(spec), None):  # absolute
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._waiter
