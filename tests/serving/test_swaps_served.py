"""New versions under load, good and bad ones, on a real server: no request fails, and the status says why not."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_graphs import doubling, graph, tensor
from sealed_server import KEY, Serve, seal, write_key
from test_front_grpc import call

from strongroom.serving.messages import message

PATH = "/v2/models/m/infer"
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
).encode()


def times(factor):
    """y = factor · x."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (), [factor])
    return graph([("Mul", ["x", "w"], ["y"], {})], [tensor("x")], [tensor("y")], [weight])


def add(place, number, content=None, key=KEY, change=lambda data: data):
    """A version, whole from when it is seen."""
    folder = place / f".{number}"
    folder.mkdir()
    seal(folder / "m.sealed", times(float(number)) if content is None else content, key)
    (folder / "m.sealed").write_bytes(change((folder / "m.sealed").read_bytes()))
    folder.rename(place / str(number))


@pytest.fixture
def versions(tmp_path):
    write_key(tmp_path / "key")
    place = tmp_path / "versions"
    place.mkdir()
    add(place, 1)
    return place


@pytest.fixture
def serve(tmp_path, versions):
    started = []

    def make(*arguments):
        started.append(Serve(tmp_path, f"m={versions}", "-k", "key", "--no-access-log", *arguments))
        return started[-1]

    yield make
    for one in started:
        one.kill()


class Asking:
    """Clients of both ports that ask all the time; every answer is right for the version that gave it."""

    def __init__(self, server, each=3) -> None:
        self.server = server
        self.stop, self.failures, self.seen = threading.Event(), [], {"rest": 0, "grpc": 0}
        self.versions = set()
        self.threads = [
            threading.Thread(target=self._run, args=(ask,))
            for ask in (self._rest, self._grpc)
            for _ in range(each)
        ]

    def __enter__(self):
        for one in self.threads:
            one.start()
        return self

    def __exit__(self, *exc_info):
        self.stop.set()
        for one in self.threads:
            one.join(60)

    def _run(self, ask):
        try:
            ask()
        except Exception as error:
            self.failures.append(error)

    def _rest(self):
        connection = self.server.connect()
        while not self.stop.is_set():
            connection.request("POST", PATH, BODY)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                self.failures.append((answer.status, content))
                continue
            found = json.loads(content)
            self._check("rest", int(found["model_version"]), found["outputs"][0]["data"][0])
        connection.close()

    def _grpc(self):
        request = message("inference.ModelInferRequest")(model_name="m")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
        request.raw_input_contents.append(np.ones(16, np.float32).tobytes())
        with grpc.insecure_channel(f"127.0.0.1:{self.server.grpc}") as channel:
            while not self.stop.is_set():
                method = "/inference.GRPCInferenceService/ModelInfer"
                found = call(channel, method, request, "inference.ModelInferResponse", timeout=60)
                value = np.frombuffer(found.raw_output_contents[0], np.float32)[0]
                self._check("grpc", int(found.model_version), value)

    def _check(self, port, version, value):
        self.seen[port] += 1
        self.versions.add(version)
        if value != version:
            self.failures.append((port, version, value))


@pytest.mark.parametrize("batch", [(), ("--batch", "8:1")], ids=["alone", "batched"])
def test_swaps_under_load_over_both_ports(serve, versions, batch):
    server = serve(*batch)
    with Asking(server) as asking:
        for number in range(2, 12):
            add(versions, number)
            server.until(lambda wanted=number: wanted in asking.versions, 60)
            (versions / str(number - 1)).rename(versions / f".gone-{number - 1}")
    assert asking.failures == []
    assert asking.versions == set(range(1, 12))
    assert min(asking.seen.values()) > 20


def flipped(data):
    at = len(data) - 40
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BAD = {
    "a flipped bit": ({"change": flipped}, "DATA_LOSS"),
    "a cut file": ({"change": lambda data: data[:-1]}, "DATA_LOSS"),
    "half a header": ({"change": lambda data: data[:30]}, "DATA_LOSS"),
    "another key": ({"key": bytes(32)}, "PERMISSION_DENIED"),
    "not sealed": ({"change": lambda data: doubling()}, "INVALID_ARGUMENT"),
    "an empty file": ({"change": lambda data: b""}, "INVALID_ARGUMENT"),
    "no model": ({"content": b"no model of ONNX"}, None),
}


def test_bad_versions_replace_nothing_and_say_why(serve, versions):
    server = serve()
    with Asking(server, each=1) as asking:
        for number, (name, (made, code)) in enumerate(BAD.items(), 2):
            add(versions, number, **made)
            server.until(lambda wanted=number: server.states().get(wanted, ("", "OK"))[1] != "OK", 60)
            state, found, words = server.states()[number]
            assert state in ("END", "LOADING"), name
            assert code is None or found == code, (name, found, words)
            assert words.startswith(f"Version {number} of m cannot be loaded: "), name
            assert server.states()[1] == ("AVAILABLE", "OK", "")
            index = json.loads(server.ask("POST", "/v2/repository/index", b"{}")[2])
            by_version = {int(one["version"]): one for one in index}
            assert by_version[1]["state"] == "READY"
            assert by_version[number]["state"] != "READY"
            assert by_version[number]["reason"] == words
            assert server.ask("GET", "/readyz")[0] == 200
            (versions / str(number)).rename(versions / f".bad-{number}")
        add(versions, 99)
        server.until(lambda: 99 in asking.versions, 60)
    assert asking.failures == []
    assert asking.versions == {1, 99}


def test_a_file_that_is_replaced_by_a_bad_one(serve, versions, tmp_path):
    """Both are version 1: the old one answers, and its status has the reason."""
    server = serve()
    place = versions / "1" / "m.sealed"
    good = place.read_bytes()
    for content in (flipped(good), good[:-1]):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").rename(place)
        server.until(lambda: server.states()[1][1] != "OK", 60)
        state, code, words = server.states()[1]
        assert (state, code) == ("AVAILABLE", "DATA_LOSS")
        assert "cannot be loaded" in words
        assert server.ask("POST", PATH, BODY)[0] == 200
        assert server.ask("GET", "/readyz")[0] == 200
    (tmp_path / "new").write_bytes(good)
    (tmp_path / "new").rename(place)
    server.until(lambda: server.states()[1] == ("AVAILABLE", "OK", ""), 60)


def test_a_place_without_versions_says_so(tmp_path):
    (tmp_path / "named" / "first").mkdir(parents=True)
    models = [f"m={tmp_path / 'nowhere'}", f"n={tmp_path / 'named'}"]
    server = Serve(tmp_path, *models, wait_for="no versions")
    try:
        server.until(lambda: len(server.lines("no versions")) == 2, 60)
        hints = {one["model"]: one.get("hint") for one in server.lines("no versions")}
        assert hints["m"] is None
        assert "have numbers for names" in hints["n"]
        status, _, content = server.ask("POST", PATH, BODY)
        assert status == 503
        assert "nowhere" in json.loads(content)["error"]
        one = next(
            one
            for one in json.loads(server.ask("POST", "/v2/repository/index", b"{}")[2])
            if one["name"] == "m"
        )
        assert (one["state"], one["version"]) == ("UNAVAILABLE", "")
        assert "nowhere" in one["reason"]
    finally:
        server.kill()


MEGABYTES = 24


def large(seed):
    """Weights of so many megabytes, which no compression makes smaller."""
    size = MEGABYTES << 20
    random = np.random.default_rng(seed)
    shape = (16, size // 64)
    weight = helper.make_tensor("w", TensorProto.FLOAT, shape, random.bytes(size // 2) * 2, raw=True)
    return graph(
        [("MatMul", ["x", "w"], ["a"], {}), ("Slice", ["a", "b", "c", "d"], ["y"], {})],
        [tensor("x")],
        [tensor("y")],
        [
            weight,
            *(
                helper.make_tensor(name, TensorProto.INT64, (1,), [value])
                for name, value in zip("bcd", (0, 16, 1), strict=True)
            ),
        ],
    )


def test_one_copy_of_a_model_and_none_left_behind(serve, versions):
    """However many answer, the weights are there once; and no more of them after many swaps."""
    server = serve()
    with ThreadPoolExecutor(16) as pool:

        def ask(_):
            return server.ask("POST", PATH, BODY)[0]

        assert set(pool.map(ask, range(64))) == {200}
        small = server.memory()
        sizes = []
        for number in range(2, 10):
            add(versions, number, large(number))
            server.until(lambda wanted=number: server.states().get(wanted, ("",))[0] == "AVAILABLE", 60)
            (versions / str(number - 1)).rename(versions / f".gone-{number - 1}")
            server.until(lambda gone=number - 1: server.states()[gone][0] == "END", 60)
            assert set(pool.map(ask, range(32))) == {200}
            sizes.append((server.memory() - small) / (MEGABYTES << 20))
    assert 0.95 < min(sizes) < 1.4, sizes
    # What one swap has left behind is seen now and then, and gone after the next.
    assert max(sizes) < 2.7, sizes
