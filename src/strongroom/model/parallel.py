"""A few threads over numbered pieces of work. The work releases the GIL; these loops only hand it out.

Threads live for one call: starting two takes 0.1 ms, and there is no pool that a fork would break.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import partial

from strongroom.model.memory import allocate

__all__ = ["default_threads", "for_each", "in_order"]

_MIN_THREADS = 4
# Also on two cores: a thread that decrypts does not read, and a disk wants several requests at once
# (benchmarks/parts.py --cold). From a warm cache four are as fast as two.
_MAX_THREADS = 8
# Beyond eight, memory bandwidth and not AES is the limit.


def default_threads() -> int:
    """``STRONGROOM_THREADS``, or the processors this process may use, but from four to eight."""
    configured = os.environ.get("STRONGROOM_THREADS", "")
    if configured.isdecimal() and int(configured) > 0:
        return int(configured)
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(_MIN_THREADS, min(processors, _MAX_THREADS))


def _start(run: Callable[[], None], count: int) -> list[threading.Thread]:
    """As many threads as the system gives, up to ``count``; in a full container that may be none."""
    started = []
    for _ in range(count):
        thread = threading.Thread(target=run, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        started.append(thread)
    return started


def for_each(count: int, work: Callable[[int], None], threads: int | None = None) -> None:
    """Call ``work`` with 0 … count-1, in any order and from several threads.

    After a failure no new piece is begun, and of the failures that of the lowest number is raised.
    """
    threads = min(count, threads or default_threads())
    numbers = itertools.count()
    failures: dict[int, BaseException] = {}
    stop = threading.Event()

    def run() -> None:
        number = -1
        try:
            while not stop.is_set() and (number := next(numbers)) < count:
                work(number)
        except BaseException as error:
            failures[number] = error
            stop.set()

    helpers = _start(run, threads - 1)
    run()
    try:
        for helper in helpers:
            helper.join()
    except BaseException:  # Ctrl-C while waiting: nobody may write to the buffer after this call
        stop.set()
        for helper in helpers:
            helper.join()
        raise
    if failures:
        error = failures[min(failures)]
        failures.clear()
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


def in_order(
    count: int,
    buffer_size: int,
    produce: Callable[[int, memoryview], int],
    consume: Callable[[memoryview], None],
    threads: int | None = None,
) -> None:
    """Produce pieces 0 … count-1 in threads, each into a buffer, and consume them in order here.

    ``produce(number, buffer)`` returns how many bytes it wrote. Memory: a buffer per thread
    and two more. The first failure, of producing or of consuming, is raised.
    """
    threads = min(count, threads or default_threads())
    if threads <= 1:
        buffer = allocate(buffer_size)
        for number in range(count):
            consume(buffer[: produce(number, buffer)])
        return

    numbers = itertools.count()
    changed = threading.Condition()
    free = [allocate(buffer_size) for _ in range(threads + 2)]
    done: dict[int, tuple[memoryview, int] | BaseException] = {}
    stopped = False

    def run() -> None:
        while True:
            with changed:
                # The buffer first and the number second: whoever has the next number can go on.
                changed.wait_for(lambda: free or stopped)
                if stopped:
                    return
                number = next(numbers)
                if number >= count:
                    return
                buffer = free.pop()
            outcome: tuple[memoryview, int] | BaseException
            try:
                outcome = (buffer, produce(number, buffer))
            except BaseException as error:
                outcome = error
            with changed:
                done[number] = outcome
                changed.notify_all()
            del outcome  # an exception's traceback holds this frame

    helpers = _start(run, threads)
    if not helpers:
        in_order(count, buffer_size, produce, consume, 1)
        return
    try:
        for number in range(count):
            with changed:
                changed.wait_for(partial(done.__contains__, number))
                outcome = done.pop(number)
            if isinstance(outcome, BaseException):
                try:
                    raise outcome
                finally:
                    del outcome
            buffer, size = outcome
            consume(buffer[:size])
            with changed:
                free.append(buffer)
                changed.notify_all()
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        for helper in helpers:
            helper.join()
