"""How many requests of a model run and wait at the same time."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

from strongroom.serving.config import Limits
from strongroom.serving.status import Code, RequestError

__all__ = ["Admission", "full", "gone", "late"]


class Admission:
    """Places to run, and a queue before them, first come first served.

    Args:
        limits: how many of both.
    """

    def __init__(self, limits: Limits) -> None:
        self._free = limits.concurrency
        self._most = limits.queue
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def enter(self) -> Future[None] | None:
        """Ask for a place: None gives one at once, a future is done when the place is there.

        Who has a place gives it back with :meth:`leave`, who has a future and no patience with
        :meth:`give_up`.

        Raises:
            RequestError: RESOURCE_EXHAUSTED: the queue is full.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            if len(self._waiting) >= self._most:
                raise full(self._most)
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def leave(self) -> None:
        """Give the place to who has waited longest."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    break
            else:
                self._free += 1
                return
        turn.set_result(None)

    def give_up(self, turn: Future[None]) -> None:
        """Leave the queue."""
        if not turn.cancel():
            # The place came at the last moment: it is for the next one.
            self.leave()
            return
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)


def full(limit: int) -> RequestError:
    """There is no room in the queue."""
    return RequestError(
        Code.RESOURCE_EXHAUSTED, f"The queue of this model is full ({limit} requests wait)."
    )


def late() -> RequestError:
    """The request's time is over."""
    return RequestError(Code.DEADLINE_EXCEEDED, "The request's deadline passed before it was answered.")


def gone() -> RequestError:
    """Nobody waits for the answer."""
    return RequestError(Code.CANCELLED, "The client has gone.")
