"""Writes that go together: who waits for whom, and for how long."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing

import pytest

from strongroom.errors import Unavailable
from strongroom.keyserver.store import writer as module
from strongroom.keyserver.store.writer import Writer

LONG = 30.0


@pytest.fixture
def batches():
    return []


@pytest.fixture
def writer(batches):
    def commit(writes):
        batches.append(list(writes))
        return [one * 10 for one in writes]

    with closing(Writer(commit)) as made:
        yield made


@pytest.fixture
def patient(monkeypatch):
    """Who waits for somebody waits longer than a test may take."""
    monkeypatch.setattr(module, "_GATHER_SECONDS", 2 * LONG)


@pytest.mark.usefixtures("patient")
def test_alone_nobody_waits(writer, batches):
    assert [writer.submit(number).result(LONG) for number in range(3)] == [0, 10, 20]
    assert batches == [[0], [1], [2]]


@pytest.mark.usefixtures("patient")
def test_one_that_is_coming_is_waited_for(writer, batches):
    with ExitStack() as coming:
        numbers = [coming.enter_context(writer.coming()) for _ in range(2)]
        first = writer.submit(1)
        time.sleep(0.1)
        assert not first.done()
        second = writer.submit(2, numbers[0])
        time.sleep(0.1)
        assert not second.done()
        third = writer.submit(3, numbers[1])
        assert [one.result(LONG) for one in (first, second, third)] == [10, 20, 30]
    assert batches == [[1, 2, 3]]


@pytest.mark.usefixtures("patient")
def test_who_comes_later_is_not_waited_for(writer, batches):
    with writer.coming() as before:
        first = writer.submit(1)
        time.sleep(0.1)
        assert not first.done()
        with writer.coming() as after:
            second = writer.submit(2, before)
            assert [one.result(LONG) for one in (first, second)] == [10, 20]
            assert writer.submit(3, after).result(LONG) == 30
    assert batches == [[1, 2], [3]]


@pytest.mark.usefixtures("patient")
def test_who_gives_up_is_not_waited_for(writer, batches):
    with writer.coming():
        first = writer.submit(1)
        time.sleep(0.1)
        assert not first.done()
    assert first.result(LONG) == 10
    assert not writer._coming


@pytest.mark.usefixtures("patient")
def test_who_has_been_coming_for_long_is_not_waited_for(writer, batches, monkeypatch):
    monkeypatch.setattr(module, "_STUCK_SECONDS", 0.05)
    with writer.coming():
        time.sleep(0.06)
        assert writer.submit(1).result(LONG) == 10
    assert batches == [[1]]


def test_one_that_never_comes_is_not_waited_for_long(writer, batches):
    with writer.coming():
        assert writer.submit(1).result(LONG) == 10
    with pytest.raises(ValueError), writer.coming():
        first = writer.submit(2)
        raise ValueError
    assert first.result(LONG) == 20
    assert batches == [[1], [2]]


@pytest.mark.usefixtures("patient")
def test_a_full_batch_waits_for_nobody(writer, batches):
    with writer.coming():
        futures = [writer.submit(number) for number in range(module._BATCH)]
        assert [one.result(LONG) for one in futures] == [10 * n for n in range(module._BATCH)]
    assert batches == [list(range(module._BATCH))]


def test_what_comes_while_others_are_written_goes_together():
    entered, go, batches = threading.Event(), threading.Event(), []

    def commit(writes):
        batches.append(list(writes))
        entered.set()
        assert go.wait(LONG)
        return writes

    with closing(Writer(commit)) as writer:
        futures = [writer.submit(0)]
        assert entered.wait(LONG)
        futures += [writer.submit(number) for number in range(1, 300)]
        go.set()
        assert [one.result(LONG) for one in futures] == list(range(300))
    assert [len(one) for one in batches] == [1, 128, 128, 43]


@pytest.mark.usefixtures("patient")
def test_who_closes_waits_for_nobody_that_is_coming(writer, batches):
    with writer.coming():
        first = writer.submit(1)
        writer.close()
        assert first.result(0) == 10
        with pytest.raises(Unavailable, match="closed"):
            writer.submit(2)
    assert batches == [[1]]


@pytest.mark.usefixtures("patient")
def test_an_outcome_that_is_not_known_is_not_made_another(batches):
    """Its commit may have come through: written again, it would find its own challenge used."""

    def commit(writes):
        batches.append(list(writes))
        raise Unavailable("The connection was lost.")

    with closing(Writer(commit)) as writer, writer.coming() as one, writer.coming() as two:
        futures = [writer.submit(1, one), writer.submit(2, two)]
        assert [type(each.exception(LONG)) for each in futures] == [Unavailable] * 2
    assert batches == [[1, 2]]
