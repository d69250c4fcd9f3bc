"""Requests put together: one thread gathers what waits, runs the model once, and hands out the parts.

What works together is what has the same signature, outputs and shapes behind the first dimension. A
request with more examples than a batch takes runs alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strongroom.serving.admission import full, gone, late
from strongroom.serving.backend import Arrays
from strongroom.serving.call import Call
from strongroom.serving.config import Batching
from strongroom.serving.status import Code, RequestError

__all__ = ["Batcher", "Work"]

Outputs = dict[str, "np.ndarray[Any, Any]"]


@dataclass(slots=True)
class Work:
    """A request that fits its signature.

    Attributes:
        call: the request.
        signature, outputs: of the run.
        size: examples.
        deadline: moment of ``time.monotonic()``.
        arrived, told: moment when it was queued, and what is called, from any thread, when it has ended;
            set by :meth:`Batcher.submit`.
        given_up: nobody waits for it any more.
        taken: moment when it was put together with others; 0 for one that runs alone.
        started, ended: moments of the model's run.
        together: examples in that run.
    """

    call: Call
    signature: str
    outputs: Sequence[str]
    size: int
    deadline: float
    arrived: float = field(init=False)
    told: Callable[[], object] = field(init=False)
    given_up: bool = False
    taken: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    together: int = 0
    _result: Outputs | RequestError | None = None

    def fits(self, other: Work) -> bool:
        """Whether the two can be put together."""
        if self.signature != other.signature or self.outputs != other.outputs:
            return False
        inputs = other.call.inputs
        return all(
            value.shape[1:] == inputs[name].shape[1:] for name, value in self.call.inputs.items()
        )

    def end(self, result: Outputs | RequestError) -> None:
        """These are the outputs, or this is why there are none."""
        if isinstance(result, RequestError):
            # Its traceback holds the work, and all that was sent until the garbage collector comes by.
            result = result.with_traceback(None)
        self._result = result
        self.told()

    def result(self) -> Outputs:
        """The outputs; once.

        Raises:
            RequestError: it failed; DEADLINE_EXCEEDED: it has not ended, and goes no further.
        """
        result, self._result = self._result, None
        if isinstance(result, dict):
            return result
        self.given_up = True
        try:
            raise result or late()
        finally:
            del result


class Batcher:
    """The queue of one version of a model, and its threads.

    Args:
        run: the model: signature, inputs, outputs wanted → outputs; raises nothing but RequestError.
        batching: how many examples, and how long to wait for them.
        queue: works that may wait.
        threads: runs at the same time.
        ran: told the examples and seconds of each run.
    """

    def __init__(
        self,
        run: Callable[[str, Arrays, Sequence[str]], Outputs],
        batching: Batching,
        *,
        queue: int,
        threads: int = 1,
        ran: Callable[[int, float], None] = lambda examples, seconds: None,
    ) -> None:
        self._run = run
        self._batching = batching
        self._limit = queue
        self._ran = ran
        self._queue: deque[Work] = deque()
        self._examples = 0
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"batch-{number}", daemon=True)
            for number in range(threads)
        ]
        for one in self._threads:
            one.start()

    @property
    def waiting(self) -> int:
        """Works in the queue."""
        return len(self._queue)

    def submit(self, work: Work, told: Callable[[], object]) -> None:
        """Queue a work; ``told`` is called when it has ended.

        Raises:
            RequestError: RESOURCE_EXHAUSTED; UNAVAILABLE once it is closed.
        """
        with self._changed:
            if self._closed:
                raise RequestError(Code.UNAVAILABLE, "This version of the model is being unloaded.")
            if len(self._queue) >= self._limit:
                self._keep(deque(one for one in self._queue if not one.given_up))
            if len(self._queue) >= self._limit:
                raise full(self._limit)
            work.arrived, work.told = time.monotonic(), told
            self._queue.append(work)
            self._examples += work.size
            # A thread that waits for others to join the first is not woken for each of them: that took
            # 80 µs of the 315 that a request cost.
            if len(self._queue) == 1 or self._full():
                self._changed.notify()

    def close(self) -> None:
        """Run what is queued, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for one in self._threads:
            one.join()

    def _loop(self) -> None:
        while self._serve_next():
            pass

    def _serve_next(self) -> bool:
        # A function of its own: a thread that waits keeps nothing of the last batch.
        batch = self._gather()
        if batch:
            self._serve(batch)
        return bool(batch)

    def _gather(self) -> list[Work]:
        """What to run next; empty at the end."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._queue[0].arrived + self._batching.delay - time.monotonic()
                if left > 0 and not self._closed and not self._full():
                    self._changed.wait(left)
                elif batch := self._take():
                    return batch

    def _full(self) -> bool:
        return self._examples >= self._batching.max_batch

    def _keep(self, queue: deque[Work]) -> None:
        self._queue = queue
        self._examples = sum(one.size for one in queue)

    def _take(self) -> list[Work]:
        """The first work, and those behind it that fit with it; the others keep their order."""
        batch: list[Work] = []
        rest: deque[Work] = deque()
        size, now = 0, time.monotonic()
        for one in self._queue:
            if one.given_up:
                continue
            if batch and (size + one.size > self._batching.max_batch or not one.fits(batch[0])):
                rest.append(one)
            elif one.call.cancelled:
                one.end(gone())
            elif one.deadline <= now:
                one.end(late())
            else:
                batch.append(one)
                size += one.size
        self._keep(rest)
        if rest:
            self._changed.notify()  # another thread may wait with these
        return batch

    def _serve(self, batch: Sequence[Work]) -> None:
        try:
            results = self._run_together(batch)
        except RequestError as error:
            if len(batch) == 1:
                batch[0].end(error)
                return
            # What the model cannot do with the values of one is not the fault of the others.
            for one in batch:
                self._serve([one])
        else:
            for one, outputs in zip(batch, results, strict=True):
                one.end(outputs)

    def _run_together(self, batch: Sequence[Work]) -> list[Outputs]:
        first, taken = batch[0], time.monotonic()
        size = sum(one.size for one in batch)
        inputs = first.call.inputs
        if len(batch) > 1:
            inputs = {name: _together([one.call.inputs[name] for one in batch]) for name in inputs}
        began = time.monotonic()
        outputs = self._run(first.signature, inputs, first.outputs)
        ended = time.monotonic()
        self._ran(size, ended - began)
        for one in batch:
            one.taken, one.started, one.ended, one.together = taken, began, ended, size
        if len(batch) == 1:
            return [outputs]
        if any(value.ndim == 0 or value.shape[0] != size for value in outputs.values()):
            raise RequestError(
                Code.INTERNAL, "The model does not keep examples apart: it cannot be batched."
            )
        parts, end = [], 0
        for one in batch:
            start, end = end, end + one.size
            parts.append({name: value[start:end] for name, value in outputs.items()})
        return parts


def _together(values: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    try:
        return np.concatenate(values)
    except MemoryError:
        raise RequestError(Code.RESOURCE_EXHAUSTED, "There is no memory for a batch.") from None
