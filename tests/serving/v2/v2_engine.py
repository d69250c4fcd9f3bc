"""An engine with small models, and its protocol behind real sockets."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import uvicorn

from strongroom.errors import ServerUnavailable
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.servable import Servable
from strongroom.serving.states import State
from strongroom.serving.tensors import DTYPES, Signature, TensorSpec
from strongroom.serving.v2 import service
from strongroom.serving.v2.rest import V2Rest

ECHOES = {f"echo-{name}": name for name in DTYPES}
"""Models that give their input "x" as their output "y", of each dtype and any shape."""


class Model:
    platform = "test"

    def __init__(self, inputs, outputs, compute, batched=False):
        specs = [
            {name: TensorSpec(name, dtype, shape) for name, (dtype, shape) in side.items()}
            for side in (inputs, outputs)
        ]
        self.signatures = {"serving_default": Signature(*specs, batched=batched)}
        self._compute = compute

    def run(self, signature, inputs, outputs):
        found = self._compute(**inputs)
        return {name: found[name] for name in outputs}

    def close(self):
        pass


def failing(x):
    raise ValueError("words of the model")


def make(name):
    if name in ECHOES:
        side = (ECHOES[name], None)
        return Model({"x": side}, {"y": side}, lambda x: {"y": x})
    if name == "faulty":
        return Model({"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}, failing)
    if name == "away":
        raise ServerUnavailable("the key server does not answer")
    if name == "two":
        side = ("float32", (-1,))
        return Model({"x": side, "z": side}, {"y": side}, lambda x, z: {"y": x + z})
    if name == "text":
        side = ("bytes", (-1, 1))
        return Model({"x": side}, {"y": side}, lambda x: {"y": x}, batched=True)
    assert name in ("same", "batched", "extra")
    side = ("float32", (-1, 16))
    sums = ("float64", (-1,))
    return Model(
        {"x": side},
        {"y": side, "sum": sums},
        lambda x: {"y": x, "sum": x.astype(np.float64).sum(1)},
        batched=True,
    )


@contextmanager
def serving(directory):
    place = directory / "model"
    place.write_bytes(b"1")
    names = ["same", "batched", "extra", "two", "text", "faulty", "away", *ECHOES]
    engine = Engine(
        [
            ModelConfig(one, str(place), batching=Batching(8, 0.001) if one == "batched" else None)
            for one in names
        ],
        lambda config, version, location: Servable(config, version, make(config.name)),
        poll=0,
    )
    engine.start()
    end = time.monotonic() + 60
    while not all(_settled(engine, one) for one in names):
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        yield engine
    finally:
        engine.close(5)


def _settled(engine, name):
    return any(one.state is State.AVAILABLE or one.message for one in engine.status(name))


def ask(api, method, path, body=b"", headers=()):
    """One request without sockets: status, headers, and the whole body."""
    response = asyncio.run(api.handle(HttpRequest(method, path, dict(headers), body)))
    pieces = response.body
    whole = pieces if isinstance(pieces, bytes) else b"".join(pieces)
    return response.status, dict(response.headers), whole


@contextmanager
def http_server(engine):
    """``host:port`` of a server with nothing but the protocol."""
    api = V2Rest(engine, control=True)

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        body = bytearray()
        more = True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        response = await api.handle(
            HttpRequest(scope["method"], scope["path"], dict(scope["headers"]), body)
        )
        pieces = [response.body] if isinstance(response.body, bytes) else list(response.body)
        length = (b"content-length", b"%d" % sum(len(one) for one in pieces))
        start = {"status": response.status, "headers": [*response.headers, length]}
        await send({"type": "http.response.start", **start})
        for one in pieces:
            await send({"type": "http.response.body", "body": bytes(one), "more_body": True})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def grpc_server(engine):
    """``host:port``, likewise."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers(service.handlers(engine, control=True))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
