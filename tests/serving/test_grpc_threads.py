"""Calls of gRPC: answered by the thread that reads where nothing takes time, and by others where it does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from strongroom.serving import grpc_loop
from strongroom.serving.access_log import AccessLog
from strongroom.serving.clients import Access
from strongroom.serving.config import Batching, ClientRule, Limits, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.grpc_server import GrpcServer
from strongroom.serving.messages import message
from strongroom.serving.metrics import Metrics
from strongroom.serving.servable import Servable
from strongroom.serving.settings import Listen, RequestLimits
from strongroom.serving.tensors import Signature, TensorSpec
from strongroom.serving.v2 import service

PATH = "/inference.GRPCInferenceService/ModelInfer"


class Model:
    """Doubles; says which threads ran it, and waits where it is told to."""

    platform = "test"

    def __init__(self):
        x, y = (TensorSpec(name, "float32", (-1, 4)) for name in "xy")
        self.signatures = {"serving_default": Signature({"x": x}, {"y": y}, batched=True)}
        self.threads = []
        self.go, self.running = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def run(self, signature, inputs, outputs):
        self.threads.append(threading.current_thread().name)
        self.running.release()
        assert self.go.wait(60)
        return {"y": inputs["x"] * 2}

    def close(self):
        pass


def request(value=1.0):
    made = message("inference.ModelInferRequest")(model_name="m")
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(np.full((1, 4), value, np.float32).tobytes())
    return made


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Served:
    def __init__(self, tmp_path, **config):
        (tmp_path / "m").write_text("")
        self.model = Model()
        config = ModelConfig("m", str(tmp_path / "m"), **config)
        self.engine = Engine([config], lambda config, version, _: Servable(config, version, self.model))
        self.engine.start()
        self.engine.load("m")
        self.access = Access(lambda name: self.engine.config(name).clients)
        self.server = GrpcServer(
            service.handlers(self.engine),
            Listen(grpc_port=0, rest_port=0),
            RequestLimits(grpc_threads=4, grpc_waiting=8),
            None,
            self.access,
            Metrics(),
            AccessLog(wanted=False),
        )
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.call = self.channel.unary_unary(
            PATH,
            request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
            response_deserializer=message("inference.ModelInferResponse").FromString,
        )

    def ask(self, value=1.0, **more):
        response = self.call(request(value), timeout=60, **more)
        return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()

    def close(self):
        self.model.go.set()
        self.channel.close()
        self.server.stop(10).wait(60)
        self.engine.close()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    made = []
    # How long the machine takes is not what is tested.
    monkeypatch.setattr("strongroom.serving.servable._QUICK_SECONDS", 3600.0)
    monkeypatch.setattr("strongroom.serving.grpc_guard._ELSEWHERE_SECONDS", 0.0)

    def serve(**config):
        made.append(Served(tmp_path, **config))
        return made[-1]

    yield serve
    for one in made:
        one.close()


def test_the_names_that_are_reached_for_are_there():
    """With the gRPC of these tests; with another that has none of them, the last test is what happens."""
    assert grpc_loop.KNOWN


def test_what_is_quick_is_answered_by_the_thread_that_reads(serve):
    served = serve()
    assert [served.ask(value) for value in (1.0, 2.0, 3.0)] == [[2.0] * 4, [4.0] * 4, [6.0] * 4]
    first, *others = served.model.threads
    assert first.startswith("grpc-")  # nobody knew yet
    assert all(not one.startswith("grpc-") for one in others)
    assert len(set(others)) == 1


def test_what_is_as_large_as_what_had_to_wait_is_not_tried_again(serve, monkeypatch):
    monkeypatch.setattr("strongroom.serving.grpc_guard._ELSEWHERE_SECONDS", 3600.0)
    served = serve()
    large = request(1.0)
    large.id = "x" * 50
    for one in (large, large, request(1.0)):
        served.call(one, timeout=60)
    *waited, tried = [one.startswith("grpc-") for one in served.model.threads]
    assert waited == [True, True]
    assert not tried


def test_what_has_to_wait_keeps_no_other_call_from_being_answered(serve):
    """The place is taken: the call waits in a thread of its own, and runs once."""
    served = serve(limits=Limits(concurrency=1))
    served.ask()
    served.model.go.clear()
    with ThreadPoolExecutor(1) as pool:
        # In a thread of a server of its own, as over HTTP.
        lease = served.engine._repository.acquire("m")
        assert lease.servable._admission.enter() is None
        waiting = pool.submit(served.ask, 5.0)
        live = served.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=60)
        assert not waiting.done()
        served.model.go.set()
        lease.servable._admission.leave()
        lease.release()
        assert waiting.result(60) == [10.0] * 4
    assert served.model.threads[-1].startswith("grpc-")
    assert len(served.model.threads) == 2


@pytest.mark.parametrize(
    "config",
    [{"batching": Batching(max_batch=4)}, {"clients": (ClientRule(token_sha256="a" * 64),)}],
)
def test_batches_and_rules_are_for_threads(serve, config):
    served = serve(**config)
    for _ in range(3):
        if "clients" in config:
            with pytest.raises(grpc.RpcError) as caught:
                served.ask()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        else:
            assert served.ask() == [2.0] * 4
    assert all(one.startswith("batch-") for one in served.model.threads)


def test_a_quota_counts_each_call_once(serve):
    rule = ClientRule(
        token_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        requests_per_second=0.001,
    )
    served = serve(clients=(rule,))
    metadata = (("authorization", "Bearer test"),)
    assert served.ask(metadata=metadata) == [2.0] * 4
    with pytest.raises(grpc.RpcError) as caught:
        served.ask(metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("known", [True, False])
def test_calls_that_are_none(serve, monkeypatch, known):
    """In this project's way to answer calls, and in gRPC's own."""
    monkeypatch.setattr(grpc_loop, "KNOWN", known)
    served = serve()
    assert served.ask() == served.ask() == [2.0] * 4
    with pytest.raises(grpc.RpcError) as caught:
        served.call(b"\xff", timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        served.channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    # A call that ends without a message.
    stream = served.channel.stream_unary(PATH)
    with pytest.raises(grpc.RpcError) as caught:
        stream(iter(()), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert served.ask(4.0) == [8.0] * 4


def test_calls_beyond_the_limit_are_refused_and_places_come_back(serve):
    served = serve()
    served.ask()
    served.model.go.clear()
    with served.engine._repository.acquire("m") as servable:
        servable._quick_bytes = -1
    with ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(served.ask) for _ in range(32)]
        for _ in range(2):
            assert served.model.running.acquire(timeout=60)
        served.model.go.set()
        ends = [one.exception(60) for one in asked]
    codes = {one.code() for one in ends if one is not None}
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert ends.count(None) >= 2
    for _ in range(30):
        assert served.ask() == [2.0] * 4


def test_a_client_that_goes_is_noted_and_its_call_does_not_run(serve):
    served = serve(limits=Limits(concurrency=1))
    served.model.go.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.ask)
        assert served.model.running.acquire(timeout=60)
        waiting = served.call.future(request(5.0), timeout=60)
        with served.engine._repository.acquire("m") as servable:
            until(lambda: servable._admission.waiting)
        assert waiting.cancel()
        until(lambda: any(one._gone for one in list(served.server._server._state.rpc_states)))
        served.model.go.set()
        assert running.result(60) == [2.0] * 4
    assert served.ask(3.0) == [6.0] * 4
    assert len(served.model.threads) == 2


def test_calls_that_are_over_leave_nothing(serve):
    """Answered at once, in a thread, refused, and given up by the client."""
    served = serve()
    state = served.server._server._state
    for _ in range(3):
        served.ask()
        with pytest.raises(grpc.RpcError):
            served.call(b"\xff", timeout=60)
    with served.engine._repository.acquire("m") as servable:
        servable._quick_bytes = -1
    served.model.go.clear()
    given_up = [served.call.future(request(), timeout=60) for _ in range(3)]
    assert served.model.running.acquire(timeout=60)
    for one in given_up:
        one.cancel()
    served.model.go.set()
    served.ask()
    until(lambda: not state.rpc_states and not state.active_rpc_count)
    assert not served.server._threads._waiting
    assert served.server._threads._held == 0


def test_a_fault_of_this_server_is_told_without_its_words(serve, monkeypatch):
    served = serve()

    def fault(call):
        raise ValueError("secret")

    monkeypatch.setattr(served.engine, "infer", fault)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            served.ask()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "The server failed."


def test_without_a_thread_a_call_is_refused_and_the_next_one_answered(serve, monkeypatch):
    served, start_one = serve(), threading.Thread.start

    def start(thread):
        if thread.name.startswith("grpc-"):
            raise RuntimeError("can't start new thread")
        start_one(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(grpc.RpcError) as caught:
            served.ask()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.ask() == [2.0] * 4
