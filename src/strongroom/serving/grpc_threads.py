"""The threads of gRPC, and an end for calls that stall.

gRPC waits for the message of a call in the thread that is to answer it, and without an end: as many calls
as there are threads, each without its message, kept all others from being answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import grpc
from grpc._cython import cygrpc

__all__ = ["Threads"]

_HURRIED: Final = 5.0
"""Seconds that a message may take where half of the threads wait for one."""

_LOOK_EVERY: Final = 1.0
_LATE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_WORDS: Final = "The message took too long to arrive."


class Threads(ThreadPoolExecutor):
    """For ``grpc.server``.

    Args:
        most: threads.
        seconds: in which the message of a call, or the first of a stream, arrives.
    """

    def __init__(self, most: int, seconds: float) -> None:
        super().__init__(most, "grpc")
        self._most = most
        self._seconds = seconds
        # By thread; each adds and removes its own, in one step of the interpreter.
        self._waiting: dict[int, tuple[float, Any]] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="grpc-stalls", daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Answer a call; one of ``arguments`` is the event that says that it is there."""
        for one in arguments:
            if type(one) is cygrpc.RequestCallEvent:
                return super().submit(self._answer, one.call, function, arguments, options)
        return super().submit(function, *arguments, **options)

    def arrived(self) -> None:
        """The message of the call that this thread answers is there."""
        self._waiting.pop(threading.get_ident(), None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._stopped.set()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _answer(
        self, call: Any, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> None:
        self._waiting[threading.get_ident()] = time.monotonic(), call
        try:
            function(*arguments, **options)
        finally:
            self.arrived()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            waiting = list(self._waiting.values())
            limit = self._seconds
            if 2 * len(waiting) >= self._most:
                limit = min(limit, _HURRIED)
            now = time.monotonic()
            for since, call in waiting:
                if now - since > limit:
                    call.cancel(_LATE, _WORDS)
