"""The threads of gRPC, an end for calls that stall, and how much of messages is in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import grpc
from grpc._cython import cygrpc

from strongroom.serving.workers import Workers

__all__ = ["AT_ONCE", "Threads"]

AT_ONCE: Final = "strongroom_at_once"
"""The attribute of functions that may be called by the thread that reads; they raise Elsewhere if they would
have to wait."""

_HURRIED: Final = 5.0
"""Seconds that a message may take where half of the threads, or of all calls, wait for one."""

_LARGE: Final = 64 << 10
"""Bytes from which messages are counted: of smaller ones there are never too many."""

_LOOK_EVERY: Final = 1.0
_LATE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_WORDS: Final = "The message took too long to arrive."


class Counted(Protocol):
    """A call.

    Attributes:
        bytes: of its message, while they count.
    """

    bytes: int


class Threads:
    """For ``grpc.server``, in place of a ``ThreadPoolExecutor``.

    Args:
        most: threads.
        waiting: calls beyond those.
        seconds: in which the message of a call, or the first of a stream, arrives.
        held: bytes of large messages whose calls are not answered yet.
    """

    def __init__(self, most: int, waiting: int, seconds: float, held: int) -> None:
        self._workers = Workers(most, "grpc")
        self._most = most
        self._most_calls = most + waiting
        self._seconds = seconds
        self._held, self._most_held = 0, held
        self._lock = threading.Lock()
        # By thread or call; each adds and removes its own, in one step of the interpreter.
        self._waiting: dict[Any, tuple[float, Any]] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="grpc-stalls", daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Answer a call; gRPC's thread that reads is here."""
        for one in arguments:
            if type(one) is cygrpc.RequestCallEvent:
                answer = partial(self._answer, one.call, function, arguments, options)
                return self._workers.submit(answer)
        return self._workers.submit(partial(function, *arguments, **options))

    def waits(self, key: Any, call: Any) -> None:
        """A call waits for its message, until :meth:`arrived`."""
        self._waiting[key] = time.monotonic(), call

    def arrived(self, key: Any = None) -> None:
        """The message of a call is there; None is the one that this thread answers."""
        self._waiting.pop(threading.get_ident() if key is None else key, None)

    def has_room(self, call: Counted, size: int) -> bool:
        """Whether a message may stay, until :meth:`leaves`."""
        if size < _LARGE:
            return True
        with self._lock:
            if self._held + size > self._most_held:
                return False
            self._held += size
            call.bytes = size
            return True

    def leaves(self, call: Counted) -> None:
        """The message of a call is away."""
        with self._lock:
            self._held -= call.bytes
        call.bytes = 0

    def shutdown(self, wait: bool = True) -> None:
        """End the threads when they have answered."""
        self._stopped.set()
        self._workers.close(wait)

    def _answer(
        self, call: Any, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> None:
        self.waits(threading.get_ident(), call)
        try:
            function(*arguments, **options)
        finally:
            self.arrived()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            waiting = list(self._waiting.items())
            # Streams wait in threads; calls take the place of calls alone.
            streams = [one for key, one in waiting if type(key) is int]
            calls = [one for key, one in waiting if type(key) is not int]
            self._end(streams, self._most)
            self._end(calls, self._most_calls)

    def _end(self, waiting: list[tuple[float, Any]], most: int) -> None:
        """End those that have waited for too long, of so many that there can be."""
        limit = self._seconds
        if 2 * len(waiting) >= most:
            limit = min(limit, _HURRIED)
        now = time.monotonic()
        for since, call in waiting:
            if now - since > limit:
                call.cancel(_LATE, _WORDS)
