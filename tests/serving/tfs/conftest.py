from __future__ import annotations

import asyncio

import orjson
import pytest
from tfs_models import grpc_server, serving

from strongroom.serving.exchange import HttpRequest
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.tfs.service import handlers


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("tfs")) as found:
        yield found


@pytest.fixture(scope="session")
def ask(engine):
    """Sends a body (or none) to a path below /v1/models; status and what the JSON says."""
    api = TfsRest(engine)

    def send(path, body=None, method=None):
        if body is not None and not isinstance(body, bytes):
            body = orjson.dumps(body)
        request = HttpRequest(
            method or ("GET" if body is None else "POST"), f"/v1/models{path}", {}, body or b""
        )
        answer = asyncio.run(api.handle(request))
        send.raw = answer.body
        return answer.status, orjson.loads(answer.body) if b"NaN" not in answer.body else None

    return send


@pytest.fixture(scope="session")
def address(engine):
    with grpc_server(handlers(engine, reload=True)) as found:
        yield found
