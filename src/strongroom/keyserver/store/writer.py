"""Group commit: one thread writes for all who wait, so that they share the wait for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

from strongroom.errors import StrongroomError, Unavailable, UsageError

__all__ = ["Coming", "Writer"]

_BATCH: Final = 128
"""Writes in one transaction: some 10 ms of work, so that nobody waits long for those before him."""

_GATHER_SECONDS: Final = 0.024
"""A transaction costs 0.6 ms of a core whatever is in it (PostgreSQL: 1.1 ms), and a release 0.1 ms more."""

_STUCK_SECONDS: Final = 0.25
"""A write that has been coming for so long waits for something else than a core, and not for others."""

Coming = int
"""A write that is being prepared."""

Work = tuple[Any, "Future[Any]"]


class Writer:
    """A thread and its queue.

    Args:
        commit: writes all in one transaction and gives their outcomes, in order; where it raises,
            nothing is written.
    """

    def __init__(self, commit: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._commit = commit
        self._changed = threading.Condition()
        self._queue: list[Work] = []
        self._numbers = count()
        self._coming: dict[Coming, float] = {}
        self._awaited: set[Coming] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def coming(self) -> Iterator[Coming]:
        """While a write is being prepared: those before it wait for it, if not for long.

        Gives what :meth:`submit` is to be told, so that they wait no longer.
        """
        with self._changed:
            one = next(self._numbers)
            self._coming[one] = time.monotonic()
        try:
            yield one
        finally:
            with self._changed:
                if self._arrived(one) and self._complete():
                    self._changed.notify()

    def submit(self, write: Any, coming: Coming | None = None) -> Future[Any]:
        """Queue a write; the future is done once it is on the disk, or is not going to be."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise Unavailable("The key store is closed.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()
            self._queue.append((write, future))
            self._arrived(coming)
            # The thread is not woken for each of those that it waits for.
            if len(self._queue) == 1 or self._complete():
                self._changed.notify()
        return future

    def _arrived(self, coming: Coming | None) -> bool:
        """It is coming no more; whether it was, until now."""
        if coming is None:
            return False
        self._awaited.discard(coming)
        return self._coming.pop(coming, None) is not None

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._write(batch)

    def _next(self) -> Sequence[Work]:
        """What is to be written together; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            # Not for those who come later: at 250 releases a second somebody always does.
            stuck = time.monotonic() - _STUCK_SECONDS
            self._awaited = {one for one, since in self._coming.items() if since > stuck}
            self._changed.wait_for(self._complete, _GATHER_SECONDS)
            batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
        return batch

    def _complete(self) -> bool:
        """Whether there is nobody to wait for: alone, a write is written at once."""
        return not self._awaited or self._closed or len(self._queue) >= _BATCH

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
