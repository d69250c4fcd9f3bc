"""Calls over gRPC that are wrong, that stall, or that never end: each has its code, and harms nobody else."""

from __future__ import annotations

import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
import pytest
from raw_http2 import Connection
from sealed_server import Serve

from strongroom.serving.messages import message

CANARY = 31337.25
V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Serve.of_all(tmp_path_factory.mktemp("hostile-grpc"), "--max-request-bytes", "1000000")
    yield made
    try:
        made.check_health()
        assert str(CANARY) not in made.text()
    finally:
        made.kill()


@pytest.fixture(scope="module")
def channel(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", options) as made:
        yield made


def call(channel, method, data, timeout=60.0):
    """Bytes to a method, bytes from it."""
    return channel.unary_unary(method)(data, timeout=timeout)


def refused(channel, method, request, codes=("INVALID_ARGUMENT",)):
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, data)
    assert caught.value.code().name in codes, caught.value.details()
    assert str(CANARY) not in caught.value.details()
    assert 0 < len(caught.value.details()) < 2000
    return caught.value.details()


def infer(model="m", shape=(1, 16), datatype="FP32", name="x", raw=None):
    request = message("inference.ModelInferRequest")(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is None:
        raw = np.full(16, CANARY, np.float32).tobytes()
    request.raw_input_contents.append(raw)
    return request


def changed(request, change):
    change(request)
    return request


def answers(channel):
    request = infer()
    found = message("inference.ModelInferResponse").FromString(
        call(channel, V2 + "ModelInfer", request.SerializeToString())
    )
    return np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [2 * CANARY] * 16


WRONG_V2 = {
    "no message": b"\xff\xff\xff",
    "no model": (infer(""), "NOT_FOUND"),
    "another model": (infer("none"), "NOT_FOUND"),
    "no input": changed(infer(), lambda one: one.ClearField("inputs")),
    "another input": infer(name="z"),
    "a name without end": infer(name="z" * 100_000),
    "another dtype": infer(datatype="FP64", raw=bytes(128)),
    "no such dtype": infer(datatype="FP31"),
    "no dtype": infer(datatype=""),
    "rank 1": infer(shape=[16]),
    "rank 3": infer(shape=[1, 16, 1]),
    "rank 1000": infer(shape=[1] * 1000),
    "another size": infer(shape=[1, 15], raw=bytes(60)),
    "negative": infer(shape=[-1, -16]),
    "huge": infer(shape=[2**62, 2**62]),
    "truncated": infer(raw=bytes(63)),
    "too long": infer(raw=bytes(65)),
    "empty": infer(raw=b""),
    "raw contents of two": changed(infer(), lambda one: one.raw_input_contents.append(b"")),
    "both contents": changed(infer(), lambda one: one.inputs[0].contents.fp32_contents.append(1)),
    "contents of another dtype": changed(
        changed(infer(), lambda one: one.ClearField("raw_input_contents")),
        lambda one: one.inputs[0].contents.int_contents.extend([1] * 16),
    ),
    "twice": changed(infer(), lambda one: one.inputs.append(one.inputs[0])),
    "another output": changed(infer(), lambda one: one.outputs.add(name="z")),
    "a version of letters": changed(infer(), lambda one: setattr(one, "model_version", "x")),
    "another version": (changed(infer(), lambda one: setattr(one, "model_version", "7")), "NOT_FOUND"),
    "a text that ends early": infer("texts", [1, 2], "BYTES", raw=struct.pack("<II", 2**32 - 1, 0)),
    "texts that are none": infer(
        "texts", [1, 2], "BYTES", raw=struct.pack("<I", 2) + b"\xff\xfe" + bytes(4)
    ),
    "an index beyond": infer("gather", [1], "INT64", raw=struct.pack("<q", 4)),
    "sizes that do not fit": infer("reshape", [16]),
    "more memory than there is": (
        infer("fill", [1], "INT64", raw=struct.pack("<q", 2**45)),
        "RESOURCE_EXHAUSTED",
    ),
    "a timeout that is over": (
        changed(infer(), lambda one: setattr(one.parameters["timeout"], "int64_param", 1)),
        "DEADLINE_EXCEEDED",
    ),
    "a timeout that is none": changed(
        infer(), lambda one: setattr(one.parameters["timeout"], "string_param", "1")
    ),
}


@pytest.mark.parametrize("name", WRONG_V2)
def test_v2(server, channel, name):
    found = WRONG_V2[name]
    request, *codes = found if isinstance(found, tuple) else (found,)
    refused(channel, V2 + "ModelInfer", request, codes or ("INVALID_ARGUMENT",))


def predict(model="m", name="x", dtype=1, shape=(1, 16), **values):
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = model
    made = request.inputs[name]
    made.dtype = dtype
    for size in shape:
        made.tensor_shape.dim.add().size = size
    for field, value in (values or {"float_val": [CANARY] * 16}).items():
        if isinstance(value, bytes):
            setattr(made, field, value)
        else:
            getattr(made, field).extend(value)
    return request


WRONG_TFS = {
    "no message": b"\x0a\xff",
    "no model": predict(""),
    "another model": (predict("none"), "NOT_FOUND"),
    "another input": predict(name="z"),
    "another dtype": predict(dtype=2, double_val=[1.0] * 16),
    "no such dtype": predict(dtype=9999),
    "a resource": predict(dtype=20),
    "rank 1": predict(shape=[16]),
    "rank 1000": predict(shape=[1] * 1000),
    "another size": predict(shape=[1, 15], float_val=[1.0] * 15),
    "negative": predict(shape=[-1, -16]),
    "huge": predict(shape=[2**62, 2**62]),
    "one value for a gigabyte": predict(shape=[2**24, 16], float_val=[CANARY]),
    "too many": predict(float_val=[CANARY] * 17),
    "truncated": predict(tensor_content=bytes(63)),
    "too long": predict(tensor_content=bytes(65)),
    "another version": (
        changed(predict(), lambda one: setattr(one.model_spec.version, "value", 7)),
        "NOT_FOUND",
    ),
    "another label": (
        changed(predict(), lambda one: setattr(one.model_spec, "version_label", "none")),
        "NOT_FOUND",
    ),
    "another signature": changed(
        predict(), lambda one: setattr(one.model_spec, "signature_name", "none")
    ),
    "another output": changed(predict(), lambda one: one.output_filter.append("z")),
    "sizes that do not fit": predict("reshape", shape=[16]),
}


@pytest.mark.parametrize("name", WRONG_TFS)
def test_tfs(server, channel, name):
    found = WRONG_TFS[name]
    request, *codes = found if isinstance(found, tuple) else (found,)
    refused(channel, TFS + "Predict", request, codes or ("INVALID_ARGUMENT",))


def test_methods_that_are_not_there(server, channel):
    for method in (V2 + "Explain", "/none.Service/Method", "/", "//", TFS + "predict"):
        refused(channel, method, b"", ("UNIMPLEMENTED",))


def test_a_message_without_end(server):
    """What says that it has a gigabyte is refused by its head, and nothing is kept for it."""
    before = server.memory()
    with Connection(server.grpc) as connection:
        for _ in range(10):
            stream = connection.call(V2 + "ModelInfer")
            connection.message(stream, b"x" * 1000, 1 << 30)
            connection.until_ended(stream)
    assert server.memory() < before + (32 << 20)


def test_a_gigabyte_over_http_is_kept_no_further_than_the_limit(server):
    before = server.memory()
    connection = server.connect()

    def body():
        for _ in range(1024):
            yield bytes(1 << 20)

    try:
        # The server answers at the limit, reads what comes for two seconds more, and closes.
        with suppress(OSError):
            connection.request("POST", "/v2/models/m/infer", body(), encode_chunked=True)
            assert connection.getresponse().status == 413
    finally:
        connection.close()
    assert server.memory() < before + (32 << 20)
    assert server.ask("GET", "/readyz")[0] == 200


def test_connections_that_say_nothing_and_nonsense(server, channel):
    for content in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * 100,
    ):
        with Connection(server.grpc) as connection, suppress(OSError):
            connection.socket.sendall(content)
    with Connection(server.grpc) as connection, suppress(OSError):  # it is closed at once
        connection.send(0, 0, 1, b"data of no stream")
        connection.send(9, 0, 1, b"the rest of no head")
        list(connection.frames())
    assert answers(channel)


def test_a_call_without_its_message(server, channel):
    with Connection(server.grpc) as connection:
        connection.until_ended(connection.call(V2 + "ModelInfer", end=True))
    assert answers(channel)


def stalled(connection, count, method=V2 + "ModelInfer"):
    """Calls whose message has begun and does not end."""
    streams = [connection.call(method) for _ in range(count)]
    for stream in streams:
        connection.message(stream, b"abc", 1000)
    return streams


def test_calls_that_stall_leave_others_their_threads(server, channel):
    """More than there are threads, over several connections; gRPC would wait for each without an end."""
    connections = [Connection(server.grpc, timeout=60) for _ in range(4)]
    try:
        for one in connections:
            stalled(one, 20)
        assert call(channel, V2 + "ServerLive", b"", 60)
        assert answers(channel)
    finally:
        for one in connections:
            one.socket.close()


@pytest.mark.parametrize(
    "method",
    [V2 + "ModelStreamInfer", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"],
    ids=["inference", "reflection"],
)
def test_streams_that_stall_leave_others_their_threads(server, channel, method):
    connections = [Connection(server.grpc, timeout=60) for _ in range(4)]
    try:
        for one in connections:
            stalled(one, 20, method)
        assert call(channel, V2 + "ServerLive", b"", 60)
        assert answers(channel)
    finally:
        for one in connections:
            one.socket.close()


def test_streams_that_are_open_are_few(server, channel):
    """Each takes a thread; beyond the limit there is a code for it, and calls are answered."""
    stub = channel.stream_stream(V2 + "ModelStreamInfer")
    stop, first = threading.Event(), infer().SerializeToString()

    def requests():
        yield first
        stop.wait(60)

    codes = []

    def one():
        stream = stub(requests(), timeout=60)
        try:
            next(stream)
            codes.append("OK")
            list(stream)
        except grpc.RpcError as error:
            codes.append(error.code().name)

    with ThreadPoolExecutor(12) as pool:
        for _ in range(12):
            pool.submit(one)
        end = time.monotonic() + 60
        while len(codes) < 12:
            assert time.monotonic() < end, codes
            time.sleep(0.02)
        assert answers(channel)
        stop.set()
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") == 4


def test_clients_that_go_away_in_the_middle(server, channel):
    before = server.descriptors()
    for number in range(100):
        connection = Connection(server.grpc)
        stream = connection.call(V2 + "ModelInfer")
        if number % 3 == 0:
            connection.message(connection.call(V2 + "ModelStreamInfer"), b"abc", 1000)
        if number % 2:
            connection.message(stream, infer().SerializeToString(), end=True)
        else:
            connection.message(stream, b"abc", 1000)
        connection.socket.close()
    server.until(lambda: server.descriptors() <= before + 4, 60)
    assert answers(channel)
