"""Requests over HTTP in one piece, in several, and many in one: each is answered once, and in its turn."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import socket
import time
from typing import Any

import pytest
from front_process import PREDICT, Server, X

from strongroom.serving.connections import _Cycle
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.http import Begun

TOKEN = hashlib.sha256(b"right").hexdigest()
FLAT = {"name": "x", "datatype": "FP32", "shape": [1, 16]}


def infer(value, model="m"):
    body = json.dumps({"inputs": [{**FLAT, "data": [value] * 16}]}).encode()
    return post(f"/v2/models/{model}/infer", body)


def post(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("connections")
    for name, seconds in (("m", "0"), ("slow", "0.05"), ("slower", "1.5")):
        (place / name).write_text(seconds)
    made = Server(
        place,
        models=[
            {"name": "m", "path": str(place / "m")},
            {"name": "slow", "path": str(place / "slow")},
            {"name": "slower", "path": str(place / "slower")},
            {
                "name": "ruled",
                "path": str(place / "m"),
                "clients": [{"token_sha256": TOKEN}],
            },
            {"name": "together", "path": str(place / "m"), "batching": {"max_batch": 8}},
        ],
        limits={"bytes": 10_000},
        listen={"keep_alive": 2, "management_port": 0},
    )
    made.until(lambda: made.ask("GET", "/readyz")[0] == 200)
    yield made
    assert not made.lines("fault")
    made.kill()


class Client:
    """A connection whose answers are read one by one."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self.socket.makefile("rb")

    def send(self, *requests):
        self.socket.sendall(b"".join(requests))

    def answer(self):
        """Status, headers and body of the next answer."""
        status = self._file.readline()
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            assert name not in headers
            headers[name] = value
        body = self._file.read(int(headers["content-length"]))
        return int(status.split()[1]), headers, body

    def value(self):
        """Of an answer of ``infer``."""
        status, headers, body = self.answer()
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert "date" in headers
        return json.loads(body)["outputs"][0]["data"][15]

    def ended(self):
        return self._file.read() == b""


@pytest.fixture
def client(server):
    made = Client(server.rest)
    yield made
    made.socket.close()


@pytest.mark.parametrize("model", ["m", "slow", "together"])
def test_one_after_another(client, model):
    for number in range(20):
        client.send(infer(number, model))
        assert client.value() == 2 * number


@pytest.mark.parametrize(
    "models",
    [
        ["m"] * 100,
        ["slow", "m", "m", "slow", "m", "m"],
        ["m", "slow", "m", "together", "m"] * 6,
        ["m"] * 20 + ["slow"] + ["m"] * 20,
    ],
    ids=["quick", "mixed", "all kinds", "one in many"],
)
def test_many_in_one_piece(client, models):
    client.send(infer(-1), *(infer(number, model) for number, model in enumerate(models)))
    assert client.value() == -2
    assert [client.value() for _ in models] == [2 * number for number in range(len(models))]
    client.send(infer(5))
    assert client.value() == 10


def test_what_follows_a_request_that_waits(client):
    """It comes while the model runs, and has its turn."""
    client.send(infer(1, "slow"))
    client.send(infer(2), get("/v2"), infer(3)[:40])
    assert client.value() == 2
    assert client.value() == 4
    assert json.loads(client.answer()[2])["name"]
    client.send(infer(3)[40:])
    assert client.value() == 6


@pytest.mark.parametrize("at", [1, 30, 70, 110, -1])
def test_a_request_in_two_pieces(client, at):
    one = infer(7)
    for _ in range(2):
        client.send(one[:at])
        # Whatever comes first has been read when this was answered.
        other = Client(client.socket.getpeername()[1])
        other.send(infer(1))
        assert other.value() == 2
        other.socket.close()
        client.send(one[at:])
        assert client.value() == 14


def test_a_head_that_came_before(client):
    """It is not read again; whatever differs from it in a byte is."""
    path = "/v2/models/m/infer"
    for _ in range(2):
        for number in (1, 2, 3):  # as long as one another
            client.send(infer(number))
            assert client.value() == 2 * number
        client.send(infer(4), infer(5))
        assert [client.value(), client.value()] == [8, 10]
        client.send(infer(6).replace(b"Host: x", b"Host: y"))
        assert client.value() == 12
        client.send(infer(7).replace(path.encode(), b"/v2/models/n/infer"))
        assert client.answer()[0] == 404
        client.send(infer(8, "slow"), infer(9, "slow"))
        assert [client.value(), client.value()] == [16, 18]
    client.send(infer(1))
    assert client.value() == 2
    client.send(infer(2).replace(b"Content-Length", b"Content_Length"))
    assert client.answer()[0] == 400  # a head without a length, and a body that is no request
    assert client.answer()[0] == 400
    assert client.ended()


def test_a_token_is_looked_at_each_time(client):
    body = infer(3).partition(b"\r\n\r\n")[2]
    for token, status in (("right", 200), ("wrong", 403), ("right", 200)):
        for _ in range(3):
            client.send(post("/v2/models/ruled/infer", body, f"Authorization: Bearer {token}"))
            assert client.answer()[0] == status


def test_the_end_of_a_head_is_no_head(client):
    """Its beginning came with the request before it."""
    client.send(infer(1), b"POS")
    assert client.value() == 2
    client.send(infer(2)[3:])
    assert client.value() == 4
    client.send(infer(3)[3:])
    assert client.answer()[0] == 400
    assert client.ended()


def test_ends_of_lines_around_a_body_that_is_made_of_them(client):
    """Where a head ends is what the parser says."""
    path, body = "/v2/models/m/infer", infer(1).partition(b"\r\n\r\n")[2]
    empty = b"\r\n\r\n"
    for before, after in ((b"", b"\r\n"), (b"\r\n", b""), (b"\r\n\r\n", b"\r\n\r\n")):
        for _ in range(3):
            client.send(before, post(path, empty), after)
            assert client.answer()[0] == 400
            client.send(before, post(path, b"\r\n" + body + b"\r\n"), after)
            assert client.value() == 2
    client.send(infer(9))
    assert client.value() == 18


def test_ways_to_send_that_are_not_the_usual_one(client):
    body = json.dumps({"inputs": [{**FLAT, "data": [4.0] * 16}]}).encode()
    path = "/v2/models/m/infer"
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client.send(head + chunked)
    assert client.value() == 8
    client.send(post("/v2/models/%6D/infer", body))  # m
    assert client.value() == 8
    client.send(post(path + "?x=y", body))
    assert client.value() == 8
    client.send(get("/v2").replace(b"GET", b"HEAD"), infer(1))
    line = client._file.readline()
    assert line.startswith(b"HTTP/1.1 ")
    while client._file.readline().strip():
        pass  # no body, whatever its length
    assert client.value() == 2
    # A client may wait to be asked for its body.
    head, _, rest = post(path, body, "Expect: 100-continue").partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client._file.readline().startswith(b"HTTP/1.1 100 ")
    assert client._file.readline() == b"\r\n"
    client.send(rest)
    assert client.value() == 8
    client.send(post(path, body, "Connection: close"))
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert client.ended()


def test_mistakes_do_not_end_a_connection(client):
    for wrong, status in (
        (post("/v2/models/m/infer", b"{"), 400),
        (post("/v2/models/nobody/infer", b"{}"), 400),
        (post("/v1/models/nobody:predict", PREDICT), 404),
        (post("/v2/models/m/infer", b"x", "Content-Encoding: gzip"), 400),
        (post("/v2/models/m/infer", b"x", "Content-Encoding: br"), 415),
        (get("/v2/models/m/infer"), 405),
        (get("/v2/nothing"), 404),
    ):
        client.send(wrong)
        found = client.answer()
        assert found[0] == status, found
        assert json.loads(found[2])["error"]
    client.send(infer(9))
    assert client.value() == 18


def test_what_is_no_request_comes_after_one(client):
    client.send(infer(1))  # the first run of a model is not for the thread that reads
    assert client.value() == 2
    client.send(infer(1), b"nonsense\r\n\r\n")
    assert client.value() == 2
    assert client.answer()[0] == 400
    assert client.ended()


def test_a_body_beyond_the_limit_in_one_piece(client):
    client.send(post("/v2/models/m/infer", b" " * 20_000))
    assert client.answer()[0] == 413


@pytest.mark.parametrize("models", ["m m m", "slow slow", "m together m", "m slow"])
def test_an_idle_connection_ends_after_the_last_answer(client, models):
    for model in models.split():
        began = time.monotonic()
        client.send(infer(1, model))
        assert client.value() == 2
    assert client.ended()
    assert 1 < time.monotonic() - began < 60


def test_a_connection_is_not_idle_while_its_request_waits(client):
    """The timer of the answer before it ends meanwhile."""
    client.send(infer(1))
    assert client.value() == 2
    time.sleep(1)
    client.send(infer(1, "slower"))
    assert client.value() == 2
    client.send(infer(3)[:50])
    time.sleep(1.5)
    client.send(infer(3)[50:])
    assert client.value() == 6


def test_a_client_that_goes_while_its_request_waits(server, client):
    before = len([one for one in server.lines("request") if one["status"] == 499])
    client.send(infer(1), infer(1, "slower"))
    assert client.value() == 2
    client.socket.shutdown(socket.SHUT_RDWR)
    server.until(
        lambda: len([one for one in server.lines("request") if one["status"] == 499]) == before + 1
    )


def test_each_is_logged_and_counted_once(server, client):
    def counted():
        text = server.numbers()
        lines = [
            one for one in text.splitlines() if one.startswith("strongroom_serving_requests_total")
        ]
        return {
            model: sum(float(one.split()[-1]) for one in lines if f'model="{model}"' in one)
            for model in ("m", "slow")
        }

    before, logged = counted(), len(server.lines("request"))
    client.send(*(infer(1, model) for model in ("m", "slow", "m")))
    assert [client.value() for _ in range(3)] == [2, 2, 2]
    after = counted()
    assert {model: after[model] - before[model] for model in after} == {"m": 2, "slow": 1}
    server.until(lambda: len(server.lines("request")) >= logged + 3)


@pytest.mark.parametrize("end", ["answer", "error", "cancel", "cancel late"])
def test_a_coroutine_that_waits_without_a_task(end):
    ended: list[Any] = []

    async def work(first, second):
        try:
            found = [await first]
            try:
                found.append(await second)
            except ValueError as error:
                found.append(str(error))
            return found
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        finally:
            ended.append("end")

    async def main():
        loop = asyncio.get_running_loop()
        first, second, answer = (loop.create_future() for _ in range(3))
        coroutine = work(first, second)
        waits_for = coroutine.send(None)
        begun = Begun(HttpRequest("GET", "/", {}), coroutine)
        cycle = _Cycle(begun, waits_for, lambda one, found: answer.set_result(found))
        first.set_result(1)
        await asyncio.sleep(0)
        assert not cycle.response_complete
        if end == "cancel":
            cycle.cancel()
            assert second.cancelled()
        elif end == "error":
            second.set_exception(ValueError("no"))
        else:
            second.set_result(2)
        if end == "cancel late":
            cycle.cancel()
        found = await answer
        assert cycle.response_complete
        assert not gc.get_referrers(begun)
        cycle.cancel()  # of one that has ended
        return found

    cancelled = end.startswith("cancel")
    found = {"answer": [1, 2], "error": [1, "no"]}.get(end)
    assert asyncio.run(main()) == found
    assert ended == (["cancelled", "end"] if cancelled else ["end"])


def test_a_value_of_both_protocols_in_one_piece(client):
    client.send(post("/v1/models/m:predict", PREDICT), infer(3))
    assert json.loads(client.answer()[2]) == {"predictions": [[2 * one for one in X[0]]]}
    assert client.value() == 6
