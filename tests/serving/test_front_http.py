"""The port of HTTP: limits, clients that misbehave, who may ask, and the end."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import select
import signal
import socket
import threading
import time

import pytest
from front_process import DOUBLED, PREDICT, Server, X

PATH = "/v1/models/m:predict"
INFER = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": X[0]}]}
).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("front")
    for name, seconds in (("m", "0"), ("slow", "60")):
        (place / name).write_text(seconds)
    digest = hashlib.sha256(b"open sesame").hexdigest()
    ours = {"token_sha256": digest, "requests_per_second": 0}
    few = {"token_sha256": hashlib.sha256(b"few").hexdigest(), "requests_per_second": 0.01}
    made = Server(
        place,
        models=[
            {"name": "m", "path": str(place / "m")},
            {"name": "ours", "path": str(place / "m"), "clients": [ours, few]},
            {"name": "slow", "path": str(place / "slow"), "warm_up": 0},
        ],
        limits={"bytes": 100_000, "head_seconds": 2.0, "body_seconds": 2.0},
        listen={"keep_alive": 2, "management_port": 0},
    )
    made.until(lambda: made.ask("GET", "/readyz")[0] == 200)
    yield made
    made.kill()


def raw(server, *parts, pause=0.0, close=False):
    """What comes back until the server closes, and after how many seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.rest), timeout=60) as one:
        for part in parts:
            one.sendall(part)
            time.sleep(pause)
        if close:
            one.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while data := one.recv(65536):
                found += data
        except ConnectionResetError:
            pass
    return found, time.monotonic() - began


def test_both_protocols_answer_over_one_connection(server):
    connection = server.connect()
    for path, body in ((PATH, PREDICT), ("/v2/models/m/infer", INFER), (PATH, PREDICT)):
        connection.request("POST", path, body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status == 200
        assert answer.getheader("connection") is None
        if path == PATH:
            assert content == DOUBLED
        else:
            assert content["outputs"][0]["data"] == DOUBLED["predictions"][0]
    connection.close()


def test_what_is_at_no_protocols_path(server):
    assert server.ask("GET", "/healthz")[::2] == (200, b"ok\n")
    assert server.ask("GET", "/readyz")[::2] == (200, b"ready\n")
    for path in ("/", "/v1x/models/m", "/v10/models/m", "/v3", "/healthz/", "/%2e%2e/etc/passwd"):
        status, _, content = server.ask("GET", path)
        assert (status, json.loads(content)) == (404, {"error": "There is nothing at this path."})
    status, headers, _ = server.ask("POST", "/metrics", b"")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        *("/healthz", "/readyz", "/v1/models/m", "/v1/models/none", "/v2", "/v2/health/live"),
        *("/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v2/models/none/ready"),
    ],
)
def test_probes_may_ask_with_head(server, path):
    connection = server.connect()
    found = []
    for method in ("GET", "HEAD"):
        connection.request(method, path)
        answer = connection.getresponse()
        found.append((answer.status, answer.getheader("content-length"), answer.read()))
    (status, length, body), other = found
    assert other == (status, length, b"")
    assert len(body) == int(length) > 0
    # Where one posts, a probe would be no probe.
    connection.request("HEAD", "/v2/models/m/infer")
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.getheader("allow")) == (405, "POST")
    connection.close()


@pytest.mark.parametrize("path", [PATH, "/v2/models/m/infer"], ids=["tfs", "v2"])
def test_a_body_beyond_the_limit(server, path):
    # Four megabytes more than what sockets buffer: the answer comes although the client still writes.
    body = b"[" + b"1," * 2_500_000
    for headers in ({}, {"transfer-encoding": "chunked"}):
        connection = server.connect()
        chunks = iter([body[at : at + 65536] for at in range(0, len(body), 65536)])
        connection.request("POST", path, chunks if headers else body, headers, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        assert answer.getheader("connection") == "close"
        assert json.loads(answer.read())["error"] == "The body has more than 100000 bytes."
        connection.close()


def test_http_1_0(server):
    # As nginx asks, and ApacheBench.
    for more in ("", "connection: keep-alive\r\n", "connection: upgrade\r\nupgrade: h2c\r\n"):
        head = f"POST {PATH} HTTP/1.0\r\ncontent-length: {len(PREDICT)}\r\n{more}\r\n".encode()
        found, _ = raw(server, head + PREDICT)
        assert found.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in found
        assert json.loads(found.partition(b"\r\n\r\n")[2]) == DOUBLED
    head = f"POST {PATH} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    assert raw(server, head + b"0\r\n\r\n")[0].startswith(b"HTTP/1.1 400 ")


def test_an_offer_of_http_2_is_declined(server):
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings, close\r\n"
    head += f"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\ncontent-length: {len(PREDICT)}\r\n\r\n"
    for parts in ([head.encode() + PREDICT], [head.encode(), PREDICT]):
        found, _ = raw(server, *parts, pause=0.05)
        assert found.count(b"HTTP/1.1 ") == found.count(b"HTTP/1.1 200 ") == 1
        assert json.loads(found.partition(b"\r\n\r\n")[2]) == DOUBLED


def test_a_gigabyte_is_refused_by_its_head(server):
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 30}\r\n\r\n".encode()
    found, seconds = raw(server, head, close=False)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert seconds < 60


def test_a_packed_body(server):
    pack = {"content-encoding": "gzip"}
    assert json.loads(server.ask("POST", PATH, gzip.compress(PREDICT), pack)[2]) == DOUBLED
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert server.ask("POST", PATH, bomb, pack)[0] == 413
    for body, coding, status in (
        (PREDICT, "gzip", 400),
        (gzip.compress(PREDICT)[:-3], "gzip", 400),
        (gzip.compress(PREDICT) + b"more", "gzip", 400),
        (PREDICT, "br", 415),
    ):
        found = server.ask("POST", PATH, body, {"content-encoding": coding})
        assert (found[0], set(json.loads(found[2]))) == (status, {"error"})


def test_slow_clients(server):
    slow_head, seconds = raw(server, b"POST /v1/models/m:predict HT", b"TP/1.1\r\nx", pause=0.2)
    assert slow_head == b""
    assert seconds < 60
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n".encode()
    slow_body, seconds = raw(server, head, b"{", b'"', pause=0.2)
    assert slow_body.startswith(b"HTTP/1.1 408 ")
    assert b"took too long to arrive" in slow_body
    assert seconds < 60


def test_a_request_that_is_none(server):
    for data in (b"\x16\x03\x01\x02\x00" * 10, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"):
        found, _ = raw(server, data)
        assert found.startswith(b"HTTP/1.1 400 ")
        assert b'{"error":' in found
    assert raw(server, b"GET / HTTP/1.1\r\nx: " + b"y" * 60_000)[0].startswith(b"HTTP/1.1 400 ")


def test_an_idle_connection_ends(server):
    found, seconds = raw(server, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert found.endswith(b"ok\n")
    assert 1 < seconds < 60


def left(server):
    """Lines of clients that did not wait for their answer."""
    return [one for one in server.lines("request") if one["status"] == 499]


def test_a_client_that_has_gone(server):
    head = f"POST /v1/models/slow:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(PREDICT)}\r\n\r\n"
    found, seconds = raw(server, head.encode() + PREDICT, close=True)
    assert found == b""
    assert seconds < 60
    gone = [one["model"] for one in server.until(lambda: left(server))]
    assert gone == ["slow"]
    # And one whose body never ends.
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{{".encode()
    assert raw(server, head, close=True)[0] == b""
    server.until(lambda: len(left(server)) == 2)
    assert server.ask("POST", PATH, PREDICT)[0] == 200


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_who_may_use_a_model(server, api):
    path, body = ("/v1/models/ours:predict", PREDICT)
    if api == "v2":
        path, body = "/v2/models/ours/infer", INFER

    def ask(token=None, method="POST"):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        status, _, content = server.ask(method, path, body, headers)
        assert status == 200 or set(json.loads(content)) == {"error"}
        return status

    assert ask("open sesame") == 200
    assert ask() == 401
    assert ask("open sesam") == 403
    assert ask("öpen") == 403
    large = {"authorization": "Bearer no"}
    assert server.ask("POST", path, b"x" * 90_000, large)[0] == 403
    # Escapes in the path lead to the same model.
    escaped = path.replace("ours", "%6Furs")
    assert server.ask("POST", escaped, body)[0] == 401
    assert server.ask("GET", f"/{api}/models/ours")[0] == 401
    assert "sesam" not in server.text()


def test_a_quota(server):
    few = {"authorization": "Bearer few"}
    found = [server.ask("POST", "/v1/models/ours:predict", PREDICT, few)[0] for _ in range(3)]
    assert found == [200, 429, 429]


def test_administration_is_for_nobody_unless_told(server):
    status, _, content = server.ask("POST", "/v2/repository/models/m/unload", b"{}")
    assert status == 403
    assert "--admin" in json.loads(content)["error"]
    assert server.ask("POST", PATH, PREDICT)[0] == 200


def test_administrators(start):
    digest = hashlib.sha256(b"root").hexdigest()
    server = start(admins=[{"token_sha256": digest}])
    unload, root = "/v2/repository/models/m/unload", {"authorization": "Bearer root"}
    assert server.ask("POST", unload, b"{}")[0] == 401
    assert server.ask("POST", unload, b"{}", {"authorization": "Bearer me"})[0] == 403
    assert server.ask("POST", unload, b"{}", root)[0] == 200
    assert server.ask("POST", PATH, PREDICT)[0] == 503
    assert server.ask("POST", "/v2/repository/models/m/load", b"{}", root)[0] == 200
    assert server.ask("POST", PATH, PREDICT)[0] == 200


def test_the_log_and_the_numbers(server):
    query = "?token=not-for-the-log"
    server.ask("POST", PATH + query, PREDICT, {"authorization": "Bearer not-for-the-log"})
    made_up = "/v1/models/made-up-by-a-caller:predict"
    server.ask("POST", made_up, PREDICT)
    lines = server.until(
        lambda: found if made_up in str((found := server.lines("request"))[-1:]) else None
    )
    first, second = lines[-2:]
    assert first["request"] == f"POST {PATH}"
    assert (first["status"], first["model"], first["version"], first["api"]) == (200, "m", 1, "tfs")
    assert (first["client"], first["bytes"]) == ("127.0.0.1", len(PREDICT))
    assert 0 < first["ms"] < 10_000
    assert second["status"] == 404
    assert "model" not in second
    assert "not-for-the-log" not in server.text()
    text = server.numbers()
    of = 'api="tfs",code="OK",model="m",transport="rest",version="1"'
    assert f"strongroom_serving_requests_total{{{of}}}" in text
    of = 'api="tfs",code="NOT_FOUND",model="",transport="rest",version=""'
    assert f"strongroom_serving_requests_total{{{of}}}" in text
    assert "made-up" not in text
    for name in ("request_seconds_bucket", "version_state", "loads_total"):
        assert f"strongroom_serving_{name}{{" in text


def test_draining_fails_no_request(start, tmp_path):
    (tmp_path / "slow").write_text("0.05")
    server = start(models=[{"name": "m", "path": str(tmp_path / "slow")}], listen={"drain": 600.0})
    statuses, failures, ready = [], [], threading.Barrier(5)

    def ask():
        connection = server.connect()
        asked = 0
        try:
            while True:
                connection.request("POST", PATH, PREDICT)
                answer = connection.getresponse()
                statuses.append(answer.status)
                answer.read()
                asked += 1
                if asked == 3:
                    ready.wait()
                if answer.getheader("connection") == "close":
                    return
        except (OSError, http.client.HTTPException, threading.BrokenBarrierError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    ready.wait(60)
    server.process.send_signal(signal.SIGTERM)
    server.until(lambda: server.ask("GET", "/readyz")[::2] == (503, b"draining\n"))
    assert server.ask("GET", "/healthz")[0] == 200
    for one in threads:
        one.join(60)
    assert not failures
    assert set(statuses) == {200}
    server.process.send_signal(signal.SIGTERM)  # a second one ends the draining
    assert server.process.wait(60) == 0
    assert server.line("stopped")


def test_a_request_under_way_is_answered(start, tmp_path):
    (tmp_path / "slow").write_text("1.5")
    models = [{"name": "m", "path": str(tmp_path / "slow"), "warm_up": 0}]
    server = start(models=models, listen={"drain": 0.0})
    found = []
    thread = threading.Thread(target=lambda: found.append(server.ask("POST", PATH, PREDICT)))
    thread.start()
    server.until((tmp_path / "slow.runs").exists)
    server.process.send_signal(signal.SIGINT)
    thread.join(60)
    assert (found[0][0], json.loads(found[0][2])) == (200, DOUBLED)
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("batching", [{}, {"batching": {"max_batch": 2}}], ids=["alone", "batched"])
def test_a_request_that_outlasts_the_end(start, tmp_path, batching):
    (tmp_path / "slow").write_text("60")
    models = [{"name": "m", "path": str(tmp_path / "slow"), "warm_up": 0, **batching}]
    server = start(models=models, listen={"drain": 0.0, "stop": 1.0})
    found = []

    def ask():
        try:
            found.append(server.ask("POST", PATH, PREDICT)[0])
        except (OSError, http.client.HTTPException) as error:
            found.append(type(error))

    thread = threading.Thread(target=ask)
    thread.start()
    server.until((tmp_path / "slow.runs").exists)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    thread.join(60)
    # The latter where its body came in a piece of its own, and uvicorn answers.
    assert found in ([http.client.RemoteDisconnected], [500])
    assert [one["model"] for one in left(server)] == ["m"]
    assert not server.lines("fault")


def test_bodies_that_arrive_share_a_budget(start):
    server = start(limits={"bytes": 1_000_000, "bytes_held": 1_500_000})
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", server.rest), timeout=60) for _ in range(2)]
    for one in slow:
        one.sendall(head + b" " * 900_000)
    answer = select.select(slow, [], [], 20)[0][0].recv(65536)
    assert answer.startswith(b"HTTP/1.1 429 ")
    for one in slow:
        one.close()
    # What has ended gives its part back.
    body = PREDICT + b" " * 900_000
    server.until(lambda: server.ask("POST", PATH, body)[0] == 200)
    server.until(lambda: server.ask("POST", PATH, body)[0] == 200)


def test_a_flood_of_connections_is_bounded(start):
    server = start(listen={"connections_per_address": 20})
    connections = [socket.create_connection(("127.0.0.1", server.rest)) for _ in range(40)]
    for one in connections:
        one.settimeout(60)
        with contextlib.suppress(ConnectionError):  # it is closed already
            one.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    answered = 0
    for one in connections:
        with contextlib.suppress(ConnectionError):
            answered += one.recv(100).startswith(b"HTTP/1.1 200")
    for one in connections:
        one.close()
    assert answered == 20
    server.until(lambda: _answers(server))


def _answers(server):
    try:
        return server.ask("POST", PATH, PREDICT)[0] == 200
    except (OSError, http.client.HTTPException):
        return False
