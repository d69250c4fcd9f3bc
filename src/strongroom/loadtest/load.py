"""The load: closed loops, or queries at moments that are fixed beforehand."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from strongroom.loadtest.connection import Ask, Connection, Failed
from strongroom.loadtest.results import Outcome, Recorder
from strongroom.loadtest.timer import Timer

__all__ = ["closed_loop", "open_loop", "until_interrupted", "warm_up"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PAUSE: Final = 0.05
"""Seconds after a query that reached nobody, or a loop without end would do nothing but connect."""


async def warm_up(connections: Sequence[Connection], requests: Sequence[Ask], count: int) -> None:
    """Connect, and send ``count`` queries on each connection that do not count; their failures neither."""

    async def one(connection: Connection) -> None:
        for _, request in zip(range(count), itertools.cycle(requests), strict=False):
            try:
                await connection.ask(request)
            except Failed:
                return

    await asyncio.gather(*map(one, connections))


async def closed_loop(
    connections: Sequence[Connection], requests: Sequence[Ask], loops: int, batch: int
) -> Outcome:
    """Send the next query when the one before is answered, on every connection.

    Args:
        connections: each sends one query at a time.
        requests: taken in turn.
        loops: queries of each connection; 0 is for ever.
        batch: examples in a query.
    """
    recorder = Recorder()

    async def worker(task: int, connection: Connection) -> None:
        clock, ask, add, count = time.perf_counter, connection.ask, recorder.add, len(requests)
        for index in range(loops) if loops else itertools.count():
            begun = clock()
            try:
                await ask(requests[(task + index) % count])
            except Failed as error:
                recorder.fail(error)
                if error.unreachable:
                    await asyncio.sleep(_PAUSE)
            else:
                add(task, index, begun, clock() - begun)

    return await _measured(
        [worker(task, one) for task, one in enumerate(connections)], recorder, len(connections), batch
    )


async def open_loop(
    connections: Sequence[Connection],
    requests: Sequence[Ask],
    rate: float,
    seconds: float,
    batch: int,
    grace: float,
) -> Outcome:
    """Send queries at even distances, whether or not the ones before are answered.

    The latency counts from the moment at which a query should have been sent: a server that stops for a
    second is seen as such by all who came in that second, and not by one query alone.

    Args:
        connections: if all are busy, a query waits for one, and its time counts.
        requests: taken in turn.
        rate: queries a second.
        seconds: for how long.
        batch: examples in a query.
        grace: seconds after the end in which late ones are still sent.
    """
    recorder = Recorder()
    total = max(1, round(rate * seconds))
    sent = 0
    turn = asyncio.Lock()
    clock = time.perf_counter
    start = clock()
    timer = Timer()

    async def worker(task: int, connection: Connection) -> None:
        nonlocal sent
        while True:
            async with turn:  # one waits for its moment, those behind it for their turn
                number = sent
                due = start + number / rate
                if number >= total or clock() - start > seconds + grace:
                    return
                await timer.until(due)
                sent = number + 1
            recorder.delays.append(clock() - due)
            try:
                await connection.ask(requests[number % len(requests)])
            except Failed as error:
                recorder.fail(error)
                if error.unreachable:
                    await asyncio.sleep(_PAUSE)
            else:
                recorder.add(task, number, due, clock() - due)

    workers = [worker(task, one) for task, one in enumerate(connections)]
    with timer:
        outcome = await _measured(workers, recorder, len(connections), batch)
    return replace(outcome, unsent=total - sent) if outcome.interrupted is None else outcome


async def _measured(
    workers: Sequence[Coroutine[Any, Any, None]], recorder: Recorder, connections: int, batch: int
) -> Outcome:
    begun, cpu = time.perf_counter(), time.process_time()
    interrupted = await until_interrupted(workers)
    return Outcome(
        recorder,
        connections,
        batch,
        begun,
        time.perf_counter() - begun,
        time.process_time() - cpu,
        interrupted=interrupted,
    )


async def until_interrupted(workers: Sequence[Coroutine[Any, Any, None]]) -> int | None:
    """Run them to their end, or until a signal asks for it; its number.

    If one fails, the others are ended, and what it raised is raised.
    """
    caught: list[int] = []
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        caught.append(number)
        for task in tasks:
            task.cancel()

    try:
        with _signals(loop, stop):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(worker) for worker in workers]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return caught[0] if caught else None


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in caught:
        loop.add_signal_handler(number, stop, int(number))
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
