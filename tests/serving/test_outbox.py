"""Answers that are written together: all of them, in their order, and soon."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
import uvicorn
from front_process import Server
from test_connections import Client, get, infer, post
from uvicorn.server import ServerState

from strongroom.serving import outbox
from strongroom.serving.connections import protocol_class
from strongroom.serving.exchange import HttpResponse
from strongroom.serving.outbox import Outbox
from strongroom.serving.settings import Listen, RequestLimits


class Transport:
    def __init__(self, log, name):
        self.log, self.name, self.closed = log, name, False

    def is_closing(self):
        return self.closed

    def write(self, data):
        self.log.append((self.name, data))


def test_written_in_order_at_the_end_of_the_turn(monkeypatch):
    monkeypatch.setattr(outbox, "_HELD", 60)

    async def main():
        loop, log, box = asyncio.get_running_loop(), [], Outbox()
        one, other = Transport(log, 1), Transport(log, 2)
        for number in range(3):
            box.write(loop, one, b"%d" % number)
            box.write(loop, other, b"%d" % number)
        assert log == []
        # What was asked for later than the first of them comes after all of them.
        loop.call_soon(log.append, "later")
        await asyncio.sleep(0)
        expected = [(name, b"%d" % number) for number in range(3) for name in (1, 2)]
        assert log == [*expected, "later"]
        box.write(loop, one, b"x")
        box.write(loop, other, b"y")
        one.closed = True
        box.flush()
        assert log[7:] == [(2, b"y")]
        box.write(loop, other, b"z")
        await asyncio.sleep(0)
        assert log[8:] == [(2, b"z")]

    asyncio.run(main())


def test_nothing_is_held_for_long(monkeypatch):
    now = 100.0
    monkeypatch.setattr(outbox.time, "perf_counter", lambda: now)

    async def main():
        nonlocal now
        loop, log, box = asyncio.get_running_loop(), [], Outbox()
        for _ in range(2):
            box.write(loop, Transport(log, 1), b"a")
            now += 0.0004
            box.write(loop, Transport(log, 2), b"b")
            assert log == []
            now += 0.0002
            box.write(loop, Transport(log, 3), b"c")
            assert [name for name, _ in log] == [1, 2, 3]
            log.clear()
        await asyncio.sleep(0)
        assert log == []

    asyncio.run(main())


def test_what_comes_together(monkeypatch):
    """One alone is not held: what begins right after an answer is, and what begins while others are."""
    now = 100.0
    monkeypatch.setattr(outbox.time, "perf_counter", lambda: now)

    async def main():
        nonlocal now
        box = Outbox()
        assert not box.follows()
        box.wrote()
        now += 0.00001
        assert box.follows()
        now += 0.0001
        assert not box.follows()
        box.write(asyncio.get_running_loop(), Transport([], 1), b"a")
        assert box.follows()
        box.flush()
        assert not box.follows()

    asyncio.run(main())


class Wire(asyncio.Transport):
    """Tells the end of what is written to it."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def write(self, data):
        self.log.append((len(data), data[-4:]))

    def close(self):
        self.log.append("closed")

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("outbox")
    for name, seconds in (("m", "0"), ("slow", "0.05")):
        (place / name).write_text(seconds)
    models = [{"name": name, "path": str(place / name)} for name in ("m", "slow")]
    models.append({"name": "together", "path": str(place / "m"), "batching": {"max_batch": 8}})
    made = Server(place, models=models)
    made.until(lambda: made.ask("GET", "/readyz")[0] == 200)
    yield made
    assert not made.lines("fault")
    made.kill()


def test_many_connections_have_their_own_answers(server):
    clients = [Client(server.rest) for _ in range(40)]
    for turn in range(20):
        for number, client in enumerate(clients):
            client.send(infer(100 * turn + number, ("m", "m", "together", "slow")[number % 4]))
        for number, client in enumerate(clients):
            assert client.value() == 2 * (100 * turn + number)
    for client in clients:
        client.socket.close()


def test_other_ways_of_an_answer_come_after_it(server):
    """Those of uvicorn, of refusals, of a connection that ends: each after a head that came before."""
    body = infer(7).partition(b"\r\n\r\n")[2]
    for after, status in (
        (get("/v2/nothing"), 404),
        (post("/v2/models/%6D/infer", body), 200),
        (post("/v2/models/m/infer", body, "Connection: close"), 200),
    ):
        client = Client(server.rest)
        for _ in range(3):
            client.send(infer(1))
            assert client.value() == 2
        client.send(infer(2))
        client.send(after)
        assert client.value() == 4
        found = client.answer()
        assert found[0] == status
        assert json.loads(found[2])
        client.socket.close()


class Front:
    """Answers each request with what came."""

    draining = False

    def head(self, connection, method, path, headers):
        return path

    def begin(self, head, body):
        return HttpResponse(200, body * 20_000 if body == b"long" else body)


@pytest.mark.parametrize("last", ["eof", "stop", "long", "other head", "nonsense", "nothing"])
def test_what_is_held_is_written_before_anything_else(monkeypatch, last):
    monkeypatch.setattr(outbox, "_HELD", 60)
    monkeypatch.setattr(outbox, "_GAP", 60)

    async def main():
        log = []
        numbers = SimpleNamespace(refused_early=lambda why: None)
        kind = protocol_class(Front(), Listen(), RequestLimits(), numbers)
        config = uvicorn.Config(lambda: None, http=kind, lifespan="off", log_config=None)
        one = kind(config, ServerState(), {}, asyncio.get_running_loop())
        one.connection_made(Wire(log))
        one.data_received(post("/v2", b"1234"))
        assert [end for _, end in log] == [b"1234"]
        one.data_received(post("/v2", b"5678"))
        assert len(log) == 1
        if last == "eof":
            one.eof_received()
        elif last == "stop":
            one.shutdown()
            assert log.pop() == "closed"
        elif last == "long":
            one.data_received(post("/v2", b"long"))
            assert log.pop()[1] == b"long" and log.pop()[1] == b"\r\n\r\n"
        elif last == "other head":
            one.data_received(post("/v1", b"9012"))
            assert log.pop()[1] == b"9012"
        elif last == "nonsense":
            one.data_received(b"nonsense\r\n\r\n")
            assert log.pop() == "closed"
            assert log.pop()[1].endswith(b"}")
        else:
            await asyncio.sleep(0)
        assert [end for _, end in log] == [b"1234", b"5678"]
        one.connection_lost(None)

    asyncio.run(main())
