"""Answers that are given again without asking the model: of one version, by all that went into them.

A version has a cache of its own, which goes with it: what another version answers is never given. Who
asks for what is being computed waits for it. Failures are not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from strongroom.serving.admission import late
from strongroom.serving.batching import Outputs, Work
from strongroom.serving.config import Cache

__all__ = ["CacheNumbers", "Pending", "ResponseCache"]

_QUICK_BYTES: Final = 64 << 10
"""Of inputs, whose digest the event loop makes itself, in 50 µs."""

_OVERHEAD: Final = 768
_OVERHEAD_OF_OUTPUT: Final = 256
"""Bytes for what surrounds answers (key, dictionaries) and outputs (array, name); somewhat more than
``tracemalloc`` says."""

Pending = Future["Outputs | None"]
"""An answer that is being computed for somebody else; None: it failed."""


@dataclass(slots=True)
class CacheNumbers:
    """Since the version was loaded; seconds are sums.

    Attributes:
        hits, misses: requests that were answered from the cache, or waited for another's answer; others.
        hit_seconds, miss_seconds: of looking.
        evicted: answers that had to make room; not those that were too old.
        entries, bytes: answers that are there, and what they take.
    """

    hits: int = 0
    misses: int = 0
    hit_seconds: float = 0.0
    miss_seconds: float = 0.0
    evicted: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Entry:
    outputs: Outputs
    size: int


class ResponseCache:
    """The answers of one version; for any thread.

    Args:
        limits: how many bytes, and for how long.
        clock: seconds that only grow.
    """

    def __init__(self, limits: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._used: OrderedDict[bytes, _Entry] = OrderedDict()  # least recently first
        self._aged: OrderedDict[bytes, float] = OrderedDict()  # oldest first
        self._pending: dict[bytes, Pending] = {}
        self._numbers = CacheNumbers()

    def key(self, work: Work) -> bytes | None:
        """What a request has in common with those of the same answer; None: it is for no cache.

        A digest in which nobody finds two of the same: who asks chooses the inputs, and the answer may
        be for another.
        """
        digest = hashlib.sha256()
        heads: list[Any] = [work.signature, tuple(work.outputs)]
        contents: list[Any] = []
        inputs = work.call.inputs
        for name in sorted(inputs):
            value = inputs[name]
            if value.dtype.hasobject:
                texts = value.ravel().tolist()
                if not all(type(one) is bytes for one in texts):
                    return None
                heads.append((name, "bytes", value.shape, list(map(len, texts))))
                contents += texts
            else:
                heads.append((name, value.dtype.name, value.shape))
                contents.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        # Every length is in the head: no two lists of contents run into one another.
        digest.update(repr(heads).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
        for one in contents:
            digest.update(one)
        return digest.digest()

    def answer(self, work: Work, compute: Callable[[Work], Outputs]) -> Outputs:
        """What was answered before, or what ``compute`` answers now; blocks."""
        key = self.key(work)
        if key is None:
            return compute(work)
        found = self._begin(key)
        if isinstance(found, Future):
            try:
                found = found.result(max(0.0, work.deadline - time.monotonic()))
            except TimeoutError:
                raise late() from None
            self._waited(found)
            if found is None:
                return compute(work)
        if found is not None:
            return found
        outputs = None
        try:
            outputs = compute(work)
        finally:
            self._finish(key, outputs)
        return outputs

    async def answer_async(
        self,
        work: Work,
        compute: Callable[[Work], Awaitable[Outputs]],
        wait: Callable[[Pending], Awaitable[Outputs | None]],
    ) -> Outputs:
        """As :meth:`answer`, for the event loop.

        Args:
            work: that is asked for.
            compute: asks the model.
            wait: for what somebody else computes; until the deadline.
        """
        if sum(one.nbytes for one in work.call.inputs.values()) <= _QUICK_BYTES:
            key = self.key(work)
        else:
            key = await asyncio.to_thread(self.key, work)
        if key is None:
            return await compute(work)
        found = self._begin(key)
        if isinstance(found, Future):
            found = await wait(found)
            self._waited(found)
            if found is None:
                return await compute(work)
        if found is not None:
            return found
        outputs = None
        try:
            outputs = await compute(work)
        finally:
            self._finish(key, outputs)
        return outputs

    def _begin(self, key: bytes) -> Outputs | Pending | None:
        """The answer, or one that somebody else is computing; None: the caller computes it.

        Who gets None ends with :meth:`_finish`, whatever happens.
        """
        began = time.monotonic()
        with self._lock:
            self._drop_aged()
            numbers, entry = self._numbers, self._used.get(key)
            if entry is not None:
                self._used.move_to_end(key)
                numbers.hits += 1
                numbers.hit_seconds += time.monotonic() - began
                return dict(entry.outputs)
            pending = self._pending.get(key)
            if pending is not None:
                return pending
            self._pending[key] = Future()
            numbers.misses += 1
            numbers.miss_seconds += time.monotonic() - began
            return None

    def _waited(self, found: Outputs | None) -> None:
        """Count who waited for another's answer."""
        with self._lock:
            if found is None:
                self._numbers.misses += 1
            else:
                self._numbers.hits += 1

    def _finish(self, key: bytes, outputs: Outputs | None) -> None:
        """Keep an answer, and give it to who waits for it; None: it failed."""
        kept = None
        if outputs is not None:
            with suppress(MemoryError):
                kept = {name: _kept(one) for name, one in outputs.items()}
        with self._lock:
            pending = self._pending.pop(key)
            if kept is not None:
                self._keep(key, kept)
        pending.set_result(kept)

    def _keep(self, key: bytes, outputs: Outputs) -> None:
        size = _OVERHEAD + sum(map(_size, outputs.values()))
        if size > self._limits.bytes:
            return
        numbers = self._numbers
        until = self._clock() + (self._limits.seconds or float("inf"))
        self._used[key], self._aged[key] = _Entry(outputs, size), until
        numbers.bytes += size
        while numbers.bytes > self._limits.bytes:
            self._drop(next(iter(self._used)))
            numbers.evicted += 1

    def _drop_aged(self) -> None:
        now = self._clock()
        while self._aged:
            key, until = next(iter(self._aged.items()))
            if until > now:
                return
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        del self._aged[key]
        self._numbers.bytes -= self._used.pop(key).size

    def numbers(self) -> CacheNumbers:
        """The numbers so far."""
        with self._lock:
            return replace(self._numbers, entries=len(self._used))


def _kept(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy: part of a batch would keep all of it, and a model may write into its own."""
    found = value.copy()
    found.flags.writeable = False
    return found


def _size(value: np.ndarray[Any, Any]) -> int:
    return (
        _OVERHEAD_OF_OUTPUT
        + value.nbytes
        + (sum(map(sys.getsizeof, value.flat)) if value.dtype.hasobject else 0)
    )
