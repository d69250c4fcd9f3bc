import os
import threading

import pytest

from left_over import no_thread_left
from strongroom.model import parallel
from strongroom.model.parallel import default_threads, for_each, in_order


@pytest.mark.parametrize("threads", [1, 2, 3, 8, None])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_each_once(count, threads):
    seen = []
    for_each(count, seen.append, threads)
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("threads", [1, 2, 8, None])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_in_order(count, threads):
    consumed = []

    def produce(number, buffer):
        text = f"{number}.".encode()
        buffer[: len(text)] = text
        return len(text)

    in_order(count, 10, produce, lambda piece: consumed.append(bytes(piece)), threads)
    assert consumed == [f"{number}.".encode() for number in range(count)]


def test_several_threads_work():
    """Two pieces that wait for one another can only end in two threads."""
    barrier = threading.Barrier(2, timeout=60)
    for_each(2, lambda number: barrier.wait() and None, 2)
    in_order(2, 1, lambda number, buffer: barrier.wait() * 0, lambda piece: None, 2)


def test_failure_of_the_lowest_number_and_no_new_work():
    begun = []

    def work(number):
        begun.append(number)
        if number >= 3:
            raise ValueError(number)

    with pytest.raises(ValueError, match="3"):
        for_each(1000, work, 1)
    assert begun == [0, 1, 2, 3]
    begun.clear()
    with pytest.raises(ValueError, match=r"^3$|^4$|^5$|^6$"):
        for_each(1000, work, 4)
    assert len(begun) < 1000


def test_failing_producer():
    consumed = []

    def produce(number, buffer):
        if number == 5:
            raise KeyError(number)
        return 0

    for threads in (1, 4):
        consumed.clear()
        with pytest.raises(KeyError, match="5"):
            in_order(50, 1, produce, lambda piece: consumed.append(1), threads)
        assert len(consumed) == 5


def test_failing_consumer():
    def consume(piece):
        raise OSError("full")

    for threads in (1, 4):
        with pytest.raises(OSError, match="full"):
            in_order(50, 1, lambda number, buffer: 0, consume, threads)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupts_come_through(error):
    def work(number):
        if number == 10:
            raise error

    for threads in (1, 3):
        with pytest.raises(error):
            for_each(100, work, threads)
        with pytest.raises(error):
            in_order(100, 1, lambda number, buffer: work(number) or 0, lambda piece: None, threads)


def test_interrupt_while_waiting_for_the_others(monkeypatch):
    """They are waited for all the same: they write to memory of the caller."""
    working, finished = threading.Event(), []

    class Interrupted(threading.Thread):
        def join(self, timeout=None):
            if not working.is_set():
                working.set()
                raise KeyboardInterrupt
            super().join(timeout)

    monkeypatch.setattr(parallel.threading, "Thread", Interrupted)
    main = threading.current_thread()

    def work(number):
        if threading.current_thread() is not main:
            assert working.wait(60)
            finished.append(number)

    barrier = threading.Barrier(3, timeout=60)

    def all_have_one(number):
        barrier.wait()
        work(number)

    with pytest.raises(KeyboardInterrupt):
        for_each(3, all_have_one, 3)
    assert len(finished) == 2


def test_no_thread_is_left():
    with no_thread_left():
        for_each(100, lambda number: None, 8)
        in_order(100, 1, lambda number, buffer: 0, lambda piece: None, 8)
        with pytest.raises(ZeroDivisionError):
            in_order(100, 1, lambda number, buffer: 1 // 0, lambda piece: None, 8)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_system_that_gives_few_threads(monkeypatch, allowed):
    class Scarce(threading.Thread):
        started = 0

        def start(self):
            if Scarce.started >= allowed:
                raise RuntimeError("can't start new thread")
            Scarce.started += 1
            super().start()

    monkeypatch.setattr(parallel.threading, "Thread", Scarce)
    seen = []
    for_each(100, seen.append, 8)
    assert sorted(seen) == list(range(100))
    Scarce.started = 0
    consumed = []

    def produce(number, buffer):
        buffer[0] = number
        return 1

    in_order(100, 1, produce, lambda piece: consumed.append(piece[0]), 8)
    assert consumed == list(range(100))


@pytest.mark.parametrize(
    ("configured", "expected"),
    [("1", 1), ("3", 3), ("100", 100), ("0", None), ("-1", None), ("x", None), ("", None)],
)
def test_number_of_threads(monkeypatch, configured, expected):
    monkeypatch.setenv("STRONGROOM_THREADS", configured)
    if expected is None:
        assert 1 <= default_threads() <= max(8, len(os.sched_getaffinity(0)))
    else:
        assert default_threads() == expected


def test_number_of_threads_without_affinity(monkeypatch):
    monkeypatch.delenv("STRONGROOM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert default_threads() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() >= 1
