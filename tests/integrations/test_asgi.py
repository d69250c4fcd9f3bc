"""The protocols of the model server inside somebody else's ASGI server, and models that start there."""

import asyncio
import hashlib
import json
import threading

import httpx
import numpy as np
import pytest

from strongroom.errors import ReleaseDenied, ServerUnavailable
from strongroom.integrations.asgi import Application
from strongroom.integrations.ray import SealedModels
from strongroom.integrations.starting import wait_until_ready
from strongroom.serving.config import ClientRule, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.servable import Servable
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec

TOKEN = "a-token-of-a-client"
RULES = (ClientRule(token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest()),)
X = np.arange(32, dtype=np.float32).reshape(2, 16)


class Doubling:
    platform = "test"

    def __init__(self):
        x, y = (TensorSpec(name, "float32", (-1, 16)) for name in "xy")
        self.signatures = {"serving_default": Signature({"x": x}, {"y": y}, batched=True)}
        self.closed = threading.Event()

    def run(self, signature, inputs, outputs):
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed.set()


@pytest.fixture
def loaded():
    return Doubling()


@pytest.fixture
def engine(tmp_path, loaded):
    (tmp_path / "m").write_text("")
    models = [
        ModelConfig("m", str(tmp_path / "m")),
        ModelConfig("ruled", str(tmp_path / "m"), clients=RULES),
    ]
    made = Engine(models, lambda config, version, location: Servable(config, version, loaded), poll=0)
    made.start()
    wait_until_ready(made, 30)
    yield made
    made.close(0)


@pytest.fixture
def ask(engine):
    app = Application(engine, max_request_bytes=1 << 20)

    def ask(method, path, *, root="", **more):
        async def run():
            transport = httpx.ASGITransport(app, root_path=root)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **more)

        return asyncio.run(run())

    return ask


@pytest.mark.parametrize("root", ["", "/models"])
def test_both_protocols_wherever_they_are_mounted(ask, root):
    found = ask("POST", f"{root}/v1/models/m:predict", root=root, json={"instances": X.tolist()})
    assert (found.status_code, found.json()) == (200, {"predictions": (2 * X).tolist()})
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 16], "data": X.ravel().tolist()}
    found = ask("POST", f"{root}/v2/models/m/infer", root=root, json={"inputs": [tensor]})
    assert found.json()["outputs"][0]["data"] == (2 * X).ravel().tolist()
    assert ask("GET", f"{root}/readyz", root=root).status_code == 200


def test_what_it_does_not_do(ask):
    assert ask("GET", "/metrics").status_code == 404
    assert ask("POST", "/v2/repository/models/m/unload").status_code == 403
    assert ask("POST", "/v1/models/m:predict", content=b" " * (2 << 20)).status_code == 413


def test_rules_for_clients(ask):
    body = {"instances": X.tolist()}
    for token, status in (("", 401), ("Bearer other", 403), (f"Bearer {TOKEN}", 200)):
        headers = {"Authorization": token} if token else {}
        assert ask("POST", "/v1/models/ruled:predict", json=body, headers=headers).status_code == status


def call(app, scope, *events):
    """What an application sends."""
    coming, sent = list(events), []

    async def receive():
        return coming.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_messages_are_bytes_alone(engine):
    x = np.zeros((4096, 16), np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/m/infer",
        "query_string": b"",
        "headers": [
            (b"inference-header-content-length", b"%d" % len(text)),
            (b"content-length", b"%d" % (len(text) + x.nbytes)),
        ],
    }
    body = {"type": "http.request", "body": text + x.tobytes(), "more_body": False}
    start, *pieces = call(Application(engine), scope, body)
    assert start["status"] == 200
    assert len(pieces) > 1
    assert {type(one["body"]) for one in pieces} == {bytes}


def test_a_replica_of_ray_says_what_it_is_missing(tmp_path, engine):
    replica = SealedModels.__new__(SealedModels)
    replica._engine = engine
    asyncio.run(replica.check_health())
    (tmp_path / "late").write_text("")
    away = Loads(*(ServerUnavailable("It is away.") for _ in range(100)))
    replica._engine = Engine([ModelConfig("late", str(tmp_path / "late"))], away, poll=0)
    replica._engine.start()
    try:
        with pytest.raises(RequestError, match="late"):
            asyncio.run(replica.check_health())
    finally:
        replica._engine.close(0)


def test_websockets_are_refused(engine):
    assert call(Application(engine), {"type": "websocket"}) == [{"type": "websocket.close"}]


def test_its_lifespan_closes_the_engine(engine, loaded):
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = call(Application(engine), {"type": "lifespan"}, *events)
    assert [one["type"] for one in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert loaded.closed.is_set()


class Loads:
    """Fails as it is told, until it does not."""

    def __init__(self, *failures):
        self.failures = list(failures)

    def __call__(self, config, version, location):
        if self.failures:
            raise self.failures.pop(0)
        return Servable(config, version, Doubling())


def start(tmp_path, load, patience):
    (tmp_path / "m").write_text("")
    engine = Engine([ModelConfig("m", str(tmp_path / "m"))], load, poll=0)
    engine.start()
    try:
        wait_until_ready(engine, patience)
        assert engine.ready()
    finally:
        engine.close(0)


def test_what_is_away_is_waited_for(tmp_path):
    load = Loads(ServerUnavailable("It is away."), ServerUnavailable("It is away."))
    start(tmp_path, load, None)
    assert load.failures == []


def test_patience_ends(tmp_path):
    with pytest.raises(RequestError, match="It is away") as caught:
        start(tmp_path, Loads(*(ServerUnavailable("It is away.") for _ in range(100))), 0.2)
    assert caught.value.code is Code.UNAVAILABLE


def test_what_is_refused_is_not_waited_for(tmp_path):
    with pytest.raises(RequestError, match="Not for you") as caught:
        start(tmp_path, Loads(*(ReleaseDenied("Not for you.", code="policy") for _ in range(100))), 60)
    assert caught.value.code is Code.PERMISSION_DENIED
