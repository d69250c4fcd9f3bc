"""More than the server takes, and clients that take their time: refusals in order, bounded memory, no harm."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from front_process import DOUBLED, PREDICT, Server
from raw_http2 import Connection
from test_front_grpc import infer

PATH = "/v1/models/{}:predict"


def memory(server, what="RssAnon"):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = dict(line.split(":", 1) for line in status.splitlines())
    return int(found[what].split()[0]) << 10


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("floods")
    (place / "m").write_text("0")
    (place / "slow").write_text("0.02")
    (place / "busy").write_text("0.3")
    (place / "stuck").write_text("3")
    made = Server(
        place,
        models=[
            {"name": "m", "path": str(place / "m")},
            {"name": "slow", "path": str(place / "slow")},
            {"name": "busy", "path": str(place / "busy")},
            {"name": "stuck", "path": str(place / "stuck")},
        ],
        limits={
            "bytes": 1 << 20,
            "bytes_held": 10 << 20,
            "head_seconds": 2.0,
            "body_seconds": 2.0,
            "grpc_threads": 8,
            "grpc_waiting": 32,
        },
        listen={"connections_per_address": 2000},
    )
    made.until(lambda: made.ask("GET", "/readyz")[0] == 200)
    yield made
    try:
        assert made.process.poll() is None
        assert json.loads(made.ask("POST", PATH.format("m"), PREDICT)[2]) == DOUBLED
        assert not made.lines("fault")
    finally:
        made.kill()


def runs(server, model):
    """How often a model has run."""
    text = server.ask("GET", "/metrics")[2].decode()
    name = "strongroom_serving_run_seconds_count"
    return sum(map(float, re.findall(rf'^{name}{{model="{model}",.*}} ([\d.e+]+)$', text, re.M)))


def head(model, length):
    return f"POST {PATH.format(model)} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


def test_many_that_are_slow_keep_nobody_waiting(server):
    """Heads and bodies, byte by byte; each ends after its time, and others are answered all the while."""
    before = memory(server)
    connections = []
    for number in range(400):
        one = socket.create_connection(("127.0.0.1", server.rest), timeout=60)
        one.sendall(head("m", 100_000) + b"[" if number % 2 else b"POST / HT")
        connections.append(one)
    for _ in range(20):
        assert server.ask("POST", PATH.format("m"), PREDICT)[0] == 200
    assert memory(server) < before + (64 << 20)
    for one in connections:
        with contextlib.suppress(ConnectionError):  # says 408, or nothing
            one.settimeout(60)
            while data := one.recv(4096):
                assert data.startswith(b"HTTP/1.1 408 ")
        one.close()


def test_large_bodies_that_wait_for_a_model_are_bounded(server):
    """What has arrived and waits for its turn is in memory like what arrives."""
    before = memory(server)
    body = PREDICT + b" " * ((1 << 20) - len(PREDICT))
    statuses, peak, done = [], [], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak.append(memory(server))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with ThreadPoolExecutor(60) as pool:
            asked = [pool.submit(server.ask, "POST", PATH.format("slow"), body) for _ in range(120)]
            for one in asked:
                # Who is refused while it still writes, and is slow at it, is closed on.
                with contextlib.suppress(OSError):
                    statuses.append(one.result()[0])
    finally:
        done.set()
        watching.join()
    assert set(statuses) <= {200, 408, 429}
    assert statuses.count(200) >= 10
    assert max(peak) < before + (64 << 20)
    server.until(lambda: server.ask("POST", PATH.format("m"), body)[0] == 200)


@pytest.mark.parametrize("unit", [b"[],", b'"ab",'], ids=["lists", "texts"])
def test_json_that_grows_is_bounded(tmp_path, unit):
    """Lists of nothing take 24 times their size: many at once what is allowed for one of each protocol."""
    (tmp_path / "m").write_text("0")
    limits = {"bytes": 4 << 20, "bytes_held": 16 << 20, "json_bytes": 16 << 20}
    server = Server(tmp_path, models=[{"name": "m", "path": str(tmp_path / "m")}], limits=limits)
    try:
        values = b"[" + unit * ((2 << 20) // len(unit)) + b"0]"
        v2 = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,16],"data":%b}]}' % values
        asks = [(PATH.format("m"), b'{"instances":%b}' % values), ("/v2/models/m/infer", v2)]
        before = memory(server, "VmHWM")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda one: server.ask("POST", *one), asks * 8))
        assert {status for status, *_ in found} <= {413, 429}
        assert any(b"Inference-Header-Content-Length" in content for *_, content in found)
        assert memory(server, "VmHWM") < before + (80 << 20)
        # Binary tensors are not counted as if they were JSON.
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [32768, 16],
                        "parameters": {"binary_data_size": 2 << 20},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        length = {"inference-header-content-length": str(len(head))}
        asked = server.ask("POST", "/v2/models/m/infer", head + b"[" * (2 << 20), length)
        assert asked[0] == 200, asked[2][:300]
        # For who reads all of it, the header says nothing.
        assert server.ask("POST", PATH.format("m"), asks[0][1], length)[0] == 413
    finally:
        server.kill()


def test_a_flood_over_both_ports(server):
    """Each call is answered or refused by its code; none is lost, and the server is as it was."""
    found = []

    def rest(_):
        found.append(server.ask("POST", PATH.format("slow"), PREDICT)[0])

    def over_grpc(_):
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            for _ in range(4):
                try:
                    infer(channel, "slow", timeout=60)
                    found.append("OK")
                except grpc.RpcError as error:
                    found.append(error.code().name)

    with ThreadPoolExecutor(80) as pool:
        list(pool.map(lambda number: (rest if number % 2 else over_grpc)(number), range(160)))
    assert len(found) == 80 + 320
    assert set(found) <= {200, 429, "OK", "RESOURCE_EXHAUSTED"}
    assert {200, "OK"} <= set(found)


def test_clients_that_close_half_of_a_connection(server):
    """Nobody works for who has gone; and what was asked for in full before is not held against the others."""
    body = head("stuck", len(PREDICT)) + PREDICT
    before = runs(server, "stuck")
    connections = [socket.create_connection(("127.0.0.1", server.rest), timeout=60) for _ in range(20)]
    for one in connections:
        one.sendall(body)
        one.shutdown(socket.SHUT_WR)
    for one in connections:
        with contextlib.suppress(ConnectionError):
            assert one.recv(100) == b""
        one.close()
    assert server.ask("POST", PATH.format("m"), PREDICT)[0] == 200
    assert server.ask("POST", PATH.format("stuck"), PREDICT)[0] == 200
    # Some may have begun before it was known that they had gone.
    assert 1 <= runs(server, "stuck") - before <= 10


def test_requests_one_behind_the_other_without_reading(server):
    """Pipelined requests whose answers nobody reads are not read without end."""
    before = memory(server)
    one = socket.create_connection(("127.0.0.1", server.rest), timeout=3)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = head("m", len(PREDICT)) + PREDICT
    with contextlib.suppress(OSError):  # the server has stopped reading
        for _ in range(20_000):
            one.sendall(request * 10)
    assert memory(server) < before + (32 << 20)
    assert server.ask("POST", PATH.format("m"), PREDICT)[0] == 200
    one.close()


def test_requests_one_behind_the_other_without_end(server):
    """Of who reads the answers, too, no more is read than is answered."""
    before = memory(server)
    one = socket.create_connection(("127.0.0.1", server.rest), timeout=60)
    body = PREDICT + b" " * 4000
    requests = (head("m", len(body)) + body) * 100
    stop = threading.Event()

    def write():
        with contextlib.suppress(OSError):
            while not stop.is_set():
                one.sendall(requests)

    writing = threading.Thread(target=write)
    writing.start()
    read, peak = 0, 0
    try:
        while read < 2000:
            data = one.recv(65536)
            assert data, "it was closed"
            read += data.count(b"HTTP/1.1 200")
            peak = max(peak, memory(server))
    finally:
        stop.set()
        one.shutdown(socket.SHUT_RDWR)
        writing.join()
        one.close()
    assert peak < before + (16 << 20)


def test_a_thousand_requests_at_once(server):
    """More in one piece than a client may send ahead: refused, like what is no request."""
    with socket.create_connection(("127.0.0.1", server.rest), timeout=60) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        found = b""
        with contextlib.suppress(ConnectionError):
            while data := one.recv(65536):
                found += data
    assert found.count(b"HTTP/1.1 400") == 1


def test_a_few_requests_one_behind_the_other(server):
    """Pipelining as such is as good as before: each is answered, in order."""
    with socket.create_connection(("127.0.0.1", server.rest), timeout=60) as one:
        bodies = [json.dumps({"instances": [[float(at)] * 16]}).encode() for at in range(100)]
        one.sendall(b"".join(head("m", len(body)) + body for body in bodies))
        found = b""
        while found.count(b"HTTP/1.1 200") < 100 or not found.endswith(b"]]}"):
            found += one.recv(65536)
    answers = [json.loads(part[part.index(b"\r\n\r\n") :]) for part in found.split(b"HTTP/1.1 200")[1:]]
    assert [one["predictions"][0][0] for one in answers] == [2.0 * at for at in range(100)]


def test_connections_that_come_and_go(server):
    before = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    for _ in range(500):
        with contextlib.suppress(OSError, http.client.HTTPException):
            one = socket.create_connection(("127.0.0.1", server.rest), timeout=60)
            one.sendall(head("m", 10))
            one.close()
    server.until(
        lambda: len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) <= before + 4, seconds=60
    )


def test_connections_of_grpc_are_bounded(start):
    server = start(listen={"connections": 20})
    connections, answered = [], 0
    for _ in range(40):
        with contextlib.suppress(OSError, StopIteration):
            connections.append(Connection(server.grpc))
            next(connections[-1].frames())
            answered += 1
    assert answered == 20
    for one in connections:
        one.socket.close()

    def answers():
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            try:
                return infer(channel).model_name == "m"
            except grpc.RpcError:
                return False

    server.until(answers, 60)


def test_calls_whose_message_does_not_come_end(start):
    """After their time; or soon, where they are half of all that there may be."""
    server = start(limits={"grpc_threads": 4, "grpc_waiting": 16, "body_seconds": 600.0})
    with Connection(server.grpc, timeout=60) as connection:
        streams = [connection.call("/inference.GRPCInferenceService/ModelInfer") for _ in range(12)]
        connection.until_ended(streams[0])
    server = start(limits={"body_seconds": 1.0})
    with Connection(server.grpc, timeout=60) as connection:
        connection.until_ended(connection.call("/inference.GRPCInferenceService/ModelInfer"))


def test_large_messages_that_wait_for_a_model_are_bounded(server):
    """As over HTTP."""
    before, codes, peak = memory(server), [], []
    options = [("grpc.use_local_subchannel_pool", 1)]

    def ask(_):
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", options) as channel:
            try:
                infer(channel, "busy", rows=16_000, timeout=60)
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
            peak.append(memory(server))

    for _ in range(5):
        with ThreadPoolExecutor(36) as pool:
            list(pool.map(ask, range(36)))
        if "RESOURCE_EXHAUSTED" in codes:
            break  # on a busy machine they may have come one after the other
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert max(peak) < before + (96 << 20)
    assert server.ask("POST", PATH.format("m"), PREDICT)[0] == 200
