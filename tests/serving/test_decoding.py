"""Where JSON is decoded, and what the garbage collector does meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextvars import ContextVar

import pytest

from strongroom.serving.decoding import LARGE, Decoding, uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_does_not_run_meanwhile(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        assert uncollected(gc.isenabled) is False
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="invalid literal"):
            uncollected(int, "x")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_large_bodies_have_a_thread():
    asked = ContextVar("asked", default=0)
    decoding = Decoding()

    def where(what):
        assert not gc.isenabled()
        return what, asked.get(), threading.current_thread()

    async def both():
        asked.set(7)
        return [await decoding.run(size, where, "what") for size in (LARGE - 1, LARGE, LARGE)]

    here, there, again = asyncio.run(both())
    assert here == ("what", 7, threading.current_thread())
    assert there[:2] == ("what", 7)
    assert there[2] is again[2] is not threading.current_thread()
    assert gc.isenabled()


def test_a_mistake_in_a_large_body_keeps_nothing():
    """Nothing but the reference counts frees the body: there are no cycles through the exception."""
    gone = threading.Event()

    class Body:
        def __del__(self):
            gone.set()

    def fail(body):
        parsed = [body]
        raise ValueError(len(parsed))

    async def ask():
        with pytest.raises(ValueError, match="1"):
            await decoding.run(LARGE, fail, Body())

    decoding = Decoding()
    gc.disable()
    try:
        asyncio.run(ask())
        assert gone.wait(60)
    finally:
        gc.enable()


def test_a_client_that_has_gone_is_not_decoded_for():
    decoding = Decoding()
    entered, leave, ran = threading.Event(), threading.Event(), []

    def hold():
        entered.set()
        assert leave.wait(60)

    async def ask():
        first = asyncio.create_task(decoding.run(LARGE, hold))
        await asyncio.to_thread(entered.wait, 10)
        second = asyncio.create_task(decoding.run(LARGE, ran.append, 2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        leave.set()
        await first
        await decoding.run(LARGE, ran.append, 3)

    asyncio.run(ask())
    assert ran == [3]
