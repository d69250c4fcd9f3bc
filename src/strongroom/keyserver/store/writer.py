"""Group commit: one thread writes for all who wait, so that they share the wait for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

from strongroom.errors import StrongroomError, Unavailable, UsageError

__all__ = ["Writer"]

_BATCH: Final = 128
"""Writes in one transaction: some 10 ms of work, so that nobody waits long for those before him."""

_GATHER_SECONDS: Final = 0.004
"""A transaction costs 2 ms of a core whatever is in it, and 0.1 ms more for each release."""

Work = tuple[Any, "Future[Any]"]


class Writer:
    """A thread and its queue.

    Args:
        commit: writes all in one transaction and gives their outcomes, in order; where it raises,
            nothing is written.
    """

    def __init__(self, commit: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._commit = commit
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, write: Any) -> Future[Any]:
        """Queue a write; the future is done once it is on the disk, or is not going to be."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("The key store is closed.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()
            self._queue.put((write, future))
        return future

    def close(self) -> None:
        """Write what waits, and end."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        busy = False
        while (first := self._queue.get()) is not None:
            batch: list[Work] = [first]
            end = False
            # Alone, a write does not wait for others; under load a few milliseconds gather many.
            until = time.monotonic() + (_GATHER_SECONDS if busy else 0.0)
            while len(batch) < _BATCH and not end:
                try:
                    more = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if more is None:
                    end = True
                else:
                    batch.append(more)
            busy = len(batch) > 1
            self._write(batch)
            if end:
                return

    def _write(self, batch: Sequence[Work]) -> None:
        # A future that its waiter has given up is still written: the others cannot tell.
        running = [work for work in batch if work[1].set_running_or_notify_cancel()]
        if not running:
            return
        try:
            outcomes = self._commit([write for write, _ in running])
        except Unavailable as error:
            for _, future in running:
                future.set_exception(error)
        except Exception as error:
            self._one_by_one(running, error)
        else:
            for (_, future), outcome in zip(running, outcomes, strict=True):
                future.set_result(outcome)

    def _one_by_one(self, running: Sequence[Work], error: Exception) -> None:
        """One of them is at fault: the others must not suffer."""
        if len(running) == 1:
            running[0][1].set_exception(_passed_on(error))
            return
        for write, future in running:
            try:
                (outcome,) = self._commit([write])
            except Exception as own:
                future.set_exception(_passed_on(own))
            else:
                future.set_result(outcome)


def _passed_on(error: Exception) -> Exception:
    if isinstance(error, StrongroomError):
        return error
    if isinstance(error, ValueError | TypeError):
        return UsageError(f"What is to be written cannot be recorded: {error}.")
    return Unavailable(f"The write failed ({type(error).__name__}).")
