"""Infer requests of OpenVINO, as many as run at the same time, and none on a graph that has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Requests"]

Result = TypeVar("Result")


class Requests:
    """What a compiled model is run with.

    A run that fails half way leaves shapes and values behind in the graph of its stream. The next runs
    there fail as well, or compute with what the failed request brought (2026.4, plugin for CPUs). So
    nothing runs there any more: when the other runs have ended, the model is compiled anew.

    Args:
        compiled: makes a compiled model.

    Attributes:
        compiled: the one in use.
    """

    def __init__(self, compiled: Callable[[], Any]) -> None:
        self._compile = compiled
        self._changed = threading.Condition()
        self._running = 0
        self._failed = False
        self._renew()

    def _renew(self) -> None:
        self._idle: list[Any] = []
        self.compiled: Any = None  # freed before there is another
        self.compiled = self._compile()
        self._most = max(1, int(self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        self._idle.extend(self.compiled.create_infer_request() for _ in range(self._most))
        # What a model keeps from one call for the next is of another client.
        self._keeps = bool(self._idle[0].query_state())
        self._failed = False

    def run(self, compute: Callable[[Any], Result]) -> Result:
        """What ``compute`` makes with a request that nobody else has; it may be called again.

        Raises:
            what ``compute`` raises.
        """
        while True:
            request = self._take()
            try:
                found = compute(request)
            except BaseException:
                self._give(request, failed=True)
                raise
            if self._give(request, failed=False):
                return found

    def _take(self) -> Any:
        with self._changed:
            while self._running and (self._failed or self._running >= self._most):
                self._changed.wait()
            if self._failed:
                self._renew()
            request = self._idle.pop()
            self._running += 1
        if self._keeps:
            request.reset_state()
        return request

    def _give(self, request: Any, *, failed: bool) -> bool:
        """Whether what was computed is sound: nothing has failed meanwhile, beside it or before it."""
        with self._changed:
            self._running -= 1
            self._failed = self._failed or failed
            self._idle.append(request)
            self._changed.notify_all()
            return not self._failed
