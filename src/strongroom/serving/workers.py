"""Threads that nobody has to wait for.

Those of ``concurrent.futures`` are joined when the process ends: a model that never returns would keep
it from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["Workers"]

Result = TypeVar("Result")


class Workers:
    """Functions run in threads, which are made when they are needed.

    Args:
        most: threads.
        name: of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Run a function; the future has what it returns or raises.

        Raises:
            RuntimeError: they are closed, or the system has no thread.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers are closed")
            if self._unfinished >= len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            self._unfinished += 1
            self._queue.put((future, function))
        return future

    def close(self, wait: bool = True) -> None:
        """End the threads when they have done what was submitted.

        Args:
            wait: for that.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        if wait:
            for one in self._threads:
                one.join()

    def _work(self) -> None:
        while (found := self._queue.get()) is not None:
            future, function = found
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            with self._lock:
                self._unfinished -= 1
            # While it waits, a thread keeps nothing of the last request.
            del found, future, function
