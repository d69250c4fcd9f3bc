"""One loaded version of a model: who runs when, and what is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

from strongroom.serving.admission import Admission, gone, late
from strongroom.serving.backend import Arrays, LoadedModel
from strongroom.serving.batching import Batcher, Outputs, Work
from strongroom.serving.call import Answer, Call, Elsewhere
from strongroom.serving.checking import check_inputs, wanted_outputs
from strongroom.serving.config import ModelConfig
from strongroom.serving.counts import SECONDS, SIZES, Counts
from strongroom.serving.response_cache import CacheNumbers, ResponseCache
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tracing import CURRENT
from strongroom.serving.waking import Waking
from strongroom.serving.workers import Workers

__all__ = ["DEFAULT_SIGNATURE", "Servable", "Statistics"]

DEFAULT_SIGNATURE: Final = "serving_default"
_QUICK_SECONDS: Final = 0.0005
"""A run that takes less is for the event loop itself: another thread costs 0.1 ms."""

_PENANCE: Final = 10
_PATIENCE: Final = 1.0
"""How long a run takes may depend on values that clients choose. So slow runs have a tenth of the event
loop's time at most: each is a debt of ten times its seconds, and while that is above one second, the
event loop runs nothing of that model. The others are those that the system or another thread held up."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Statistics:
    """Since the version was loaded; seconds are sums.

    Attributes:
        requests, failed: answered, and not.
        request_seconds, failed_seconds: from when a request was there to its answer, or to its failure.
        batches: examples of each run of the model; fewer runs than requests where they were put together.
        running: seconds of each run.
        queued: seconds that each request waited for its run.
        last: moment of the last request, ``time.time()``; 0 before the first.
        waiting: requests in the queue now.
        cache: of its responses, where there is one.
    """

    requests: int = 0
    failed: int = 0
    request_seconds: float = 0.0
    failed_seconds: float = 0.0
    batches: Counts = field(default_factory=lambda: Counts(SIZES))
    running: Counts = field(default_factory=lambda: Counts(SECONDS))
    queued: Counts = field(default_factory=lambda: Counts(SECONDS))
    last: float = 0.0
    waiting: int = 0
    cache: CacheNumbers | None = None

    @property
    def examples(self) -> int:
        """That the model has computed."""
        return int(self.batches.total)


class Servable:
    """A version that answers.

    Args:
        config: of the model.
        version: number.
        model: loaded.
        fault: told of exceptions that are the model's fault.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        model: LoadedModel,
        fault: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.name = config.name
        self.version = version
        self.platform = model.platform
        self.signatures = model.signatures
        self.batching = config.batching
        self._model = model
        self._fault = fault
        self._timeout = config.limits.timeout
        self._admission = Admission(config.limits)
        self._threads = Workers(config.limits.concurrency, f"{self.name}-{version}")
        self._batcher: Batcher | None = None
        if config.batching is not None:
            self._batcher = Batcher(
                self._run,
                config.batching,
                queue=config.limits.queue,
                threads=config.limits.concurrency,
                ran=self._ran,
            )
        self._cache = None if config.cache is None else ResponseCache(config.cache)
        self._waking: Waking | None = None
        self._quick_bytes = -1
        self._debt_until = 0.0
        self._numbers = Statistics()
        self._lock = threading.Lock()

    def infer(self, call: Call) -> Answer:
        """Answer a call; blocks.

        Raises:
            RequestError: with the code for the client.
        """
        began, work = time.monotonic(), None
        size = _bytes(call.inputs)
        if call.at_once and not self._is_quick(size, began):
            raise Elsewhere
        try:
            work = self._prepare(call, began)
            if self._cache is None:
                outputs = self._compute(work, size)
            else:
                outputs = self._cache.answer(work, partial(self._compute, size=size))
        except Elsewhere:
            raise
        except BaseException:
            self._failed(work, began)
            raise
        return self._answer(work, outputs, began)

    def _compute(self, work: Work, size: int) -> Outputs:
        if self._batcher is not None and self.signatures[work.signature].batched:
            there = threading.Event()
            self._batcher.submit(work, there.set)
            there.wait(max(0.0, work.deadline - time.monotonic()))
            return work.result()
        turn = self._admission.enter()
        if turn is not None:
            if work.call.at_once:
                self._admission.give_up(turn)
                raise Elsewhere
            self._wait(turn, work.deadline)
        return self._run_alone(work, size)

    def _is_quick(self, size: int, now: float) -> bool:
        """Whether a run with so many bytes is for a thread that others wait for."""
        return (
            size <= self._quick_bytes
            and self._debt_until < now + _PATIENCE
            and self._cache is None
            and self._batcher is None
        )

    async def infer_async(self, call: Call) -> Answer:
        """As :meth:`infer`, for the event loop, which runs a quick model itself."""
        began, work = time.monotonic(), None
        try:
            work = self._prepare(call, began)
            if self._cache is None:
                outputs = await self._compute_async(work, began)
            else:
                outputs = await self._cache.answer_async(
                    work,
                    partial(self._compute_async, began=began),
                    partial(self._await, deadline=work.deadline, give_up=_let_run),
                )
        except BaseException:
            self._failed(work, began)
            raise
        return self._answer(work, outputs, began)

    async def _compute_async(self, work: Work, began: float) -> Outputs:
        if self._batcher is not None and self.signatures[work.signature].batched:
            submit = partial(self._batcher.submit, work)
            try:
                await self._here().wait(submit, work.deadline - time.monotonic())
            except asyncio.CancelledError:
                work.given_up = True
                raise
            return work.result()
        turn = self._admission.enter()
        if turn is not None:
            await self._await(turn, work.deadline, self._admission.give_up)
        size = _bytes(work.call.inputs)
        if size <= self._quick_bytes and self._debt_until < began + _PATIENCE:
            return self._run_alone(work, size)
        run = partial(self._run_alone, work, size)
        return await self._await(self._threads.submit(run), work.deadline, _let_run)

    def _failed(self, work: Work | None, began: float) -> None:
        numbers, ended = self._numbers, time.monotonic()
        with self._lock:
            numbers.failed += 1
            numbers.failed_seconds += ended - began
            numbers.last = time.time()
        trace = CURRENT.get()
        if trace is not None:
            trace.inferred(began, ended, work)

    def _prepare(self, call: Call, began: float) -> Work:
        name = call.signature or DEFAULT_SIGNATURE
        signature = self.signatures.get(name)
        if signature is None:
            known = ", ".join(sorted(self.signatures))
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"The model has no signature {name[:80]!r}; it has {known}.",
            )
        if signature.defaults:
            call.inputs = {**signature.defaults, **call.inputs}
        size = check_inputs(call.inputs, signature, together=self._batcher is not None)
        outputs = wanted_outputs(call.outputs, signature)
        deadline = began + self._timeout
        if call.deadline is not None:
            deadline = min(deadline, call.deadline)
            if call.deadline <= began:
                raise late()
        return Work(call, name, outputs, size, deadline)

    def _answer(self, work: Work, outputs: Outputs, began: float) -> Answer:
        name = work.signature
        numbers, ended = self._numbers, time.monotonic()
        with self._lock:
            numbers.requests += 1
            numbers.request_seconds += ended - began
            if work.started:  # not from the cache
                numbers.queued.add(work.started - began)
            numbers.last = time.time()
        trace = CURRENT.get()
        if trace is not None:
            if not work.started:
                trace.from_cache()
            trace.inferred(began, ended, work)
        return Answer(self.name, self.version, name, outputs, self.signatures[name])

    def _wait(self, turn: Future[None], deadline: float) -> None:
        try:
            turn.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._admission.give_up(turn)
            raise late() from None

    async def _await(
        self,
        future: Future[Result],
        deadline: float,
        give_up: Callable[[Future[Any]], Any],
    ) -> Result:
        try:
            if not future.done():
                await self._here().wait(future.add_done_callback, deadline - time.monotonic())
            if not future.done():
                give_up(future)
                raise late()
            return future.result()
        except asyncio.CancelledError:
            give_up(future)
            raise
        finally:
            del future

    def _here(self) -> Waking:
        """Of the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self._waking is None or self._waking.loop is not loop:
            self._waking = Waking(loop)
        return self._waking

    def _run_alone(self, work: Work, size: int) -> Outputs:
        """Run the model; a run that is quick with inputs of ``size`` bytes is remembered."""
        try:
            if work.call.cancelled:
                raise gone()
            work.started = began = time.monotonic()
            if work.deadline <= began:
                raise late()
            outputs = self._run(work.signature, work.call.inputs, work.outputs)
            work.ended = ended = time.monotonic()
            seconds = ended - began
            if seconds >= _QUICK_SECONDS:
                self._debt_until = max(self._debt_until, ended) + _PENANCE * seconds
            elif size > self._quick_bytes:
                self._quick_bytes = size
            self._ran(work.size, seconds)
            return outputs
        finally:
            self._admission.leave()

    def _run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Outputs:
        try:
            return self._model.run(signature, inputs, outputs)
        except RequestError:
            raise
        except (Exception, SystemExit) as error:
            self._fault(error)
            # Its words may quote what it computed with.
            raise RequestError(
                Code.INTERNAL, f"The model {self.name} failed ({type(error).__name__})."
            ) from None

    def _ran(self, examples: int, seconds: float) -> None:
        numbers = self._numbers
        with self._lock:
            numbers.batches.add(examples)
            numbers.running.add(seconds)

    def statistics(self) -> Statistics:
        """The numbers so far."""
        batcher = self._batcher
        waiting = self._admission.waiting if batcher is None else batcher.waiting
        numbers = self._numbers
        with self._lock:
            return replace(
                numbers,
                batches=numbers.batches.copy(),
                running=numbers.running.copy(),
                queued=numbers.queued.copy(),
                waiting=waiting,
                cache=None if self._cache is None else self._cache.numbers(),
            )

    def close(self) -> None:
        """Answer what waits and let every run end, then free the model. Nothing new comes any more.

        It takes as long as the longest run, which cannot be stopped.
        """
        if self._batcher is not None:
            self._batcher.close()
        self._threads.close()
        try:
            self._model.close()
        except Exception as error:
            self._fault(error)


def _let_run(future: Future[Any]) -> None:
    """It gives its place back when it ends."""


def _bytes(inputs: Arrays) -> int:
    """How much there is to compute with."""
    size = 0
    for value in inputs.values():
        size += value.nbytes if value.dtype.kind != "O" else sum(map(len, value.flat))
    return size
