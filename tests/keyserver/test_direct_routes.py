"""The routes that pass the framework by answer what they would answer within it."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from strongroom.errors import ReleaseDenied, StorageError
from strongroom.format.encoding import b64url
from strongroom.keyserver.app import make_app
from strongroom.keyserver.direct_routes import DirectRoutes
from strongroom.keyserver.errors_http import HttpError
from strongroom.keyserver.guard import Guard
from strongroom.keyserver.settings import Limits
from strongroom.release.messages import Challenge

REQUEST = {
    "challenge": b64url(bytes(32)),
    "recipient": {"suite": "HPKE-X25519", "public_key": b64url(bytes(32))},
    "keys": [{"name": "m/x", "version": "current", "bundle": b64url(bytes(16))}],
}
JSON = (b"content-type", b"application/json")
LIMITS = Limits(body_bytes=1000, release_bytes=2000)
HASTY = replace(LIMITS, body_seconds=0.05)


class Release:
    """Instead of the core."""

    def __init__(self, outcome):
        self.outcome = outcome

    def challenge(self):
        return Challenge(bytes(32), "srv", datetime(2026, 3, 1, tzinfo=UTC))

    async def release(self, asked, known, source):
        assert (known, source) == ([], "192.0.2.1")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return {"payload": asked.keys[0].key.name, "signature": "é"}


class Counts:
    def __init__(self):
        self.requests, self.early = [], Counter()

    def request(self, path, method, status, seconds):
        self.requests.append((path, method, status))

    def refused_early(self, why):
        self.early[why] += 1


def ask(around, method="POST", path="/v1/release", body=b"", headers=(JSON,), outcome=None, more=False):
    counts, sent, waiting = Counts(), [], [body]
    limits = HASTY if more else LIMITS
    here = SimpleNamespace(
        config=SimpleNamespace(limits=limits),
        release=Release(outcome),
        metrics=counts,
        identities=None,
        clock=None,
    )

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": waiting.pop(), "more_body": more}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", b"%d" % (len(body) + more))],
        "client": ("192.0.2.1", 1),
    }
    asyncio.run(Guard(around(make_app(here)), limits, counts)(scope, receive, send))
    start, rest = sent
    headers = sorted(pair for pair in start["headers"] if pair[0] != b"x-request-id")
    return start["status"], headers, json.loads(rest["body"]), counts.requests, counts.early


def encoded(value):
    return json.dumps(value).encode()


def within(app):
    return app


CASES = {
    "challenge": ({"path": "/v1/challenge", "body": b"{}"}, 200),
    "challenge without a body": ({"path": "/v1/challenge", "headers": ()}, 200),
    "challenge with more": ({"path": "/v1/challenge", "body": b'{"a": 1}'}, 400),
    "challenge too large": ({"path": "/v1/challenge", "body": b" " * 1001}, 413),
    "challenge of no type": ({"path": "/v1/challenge", "body": b"{}", "headers": ()}, 415),
    "release": ({"body": encoded(REQUEST)}, 200),
    "release of nothing": ({"body": b"{}"}, 400),
    "release of no JSON": ({"body": b"{"}, 400),
    "release too large": ({"body": b" " * 2001}, 413),
    "release too slow": ({"body": b" ", "more": True}, 408),
    "release with a token of no kind": (
        {"body": encoded(REQUEST), "headers": (JSON, (b"authorization", b"Basic x"))},
        401,
    ),
    "release denied": (
        {"body": encoded(REQUEST), "outcome": ReleaseDenied("x", code="challenge")},
        403,
    ),
    "release limited": ({"body": encoded(REQUEST), "outcome": HttpError(429, "busy", "x")}, 429),
    "release unavailable": ({"body": encoded(REQUEST), "outcome": StorageError("/secret")}, 503),
    "release at fault": ({"body": encoded(REQUEST), "outcome": RuntimeError("/secret")}, 500),
    "another method": ({"method": "GET", "body": b""}, 405),
    "another path": ({"path": "/v1/release/"}, 404),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_the_same(case):
    given, status = CASES[case]
    direct = ask(DirectRoutes, **given)
    assert direct == ask(within, **given)
    assert direct[0] == status
    assert "/secret" not in str(direct)


@pytest.mark.parametrize("case", ["challenge", "release", "release denied", "release too slow"])
def test_the_framework_is_not_asked(case, monkeypatch):
    monkeypatch.setattr(FastAPI, "__call__", None)
    given, status = CASES[case]
    path = given.get("path", "/v1/release")
    found = ask(DirectRoutes, **given)
    assert found[0] == status
    assert found[3] == [(path, "POST", status)]
