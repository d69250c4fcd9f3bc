"""Rules for clients hold when a request is answered, and not only when its head came."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from strongroom.serving.call import Client
from strongroom.serving.clients import Access
from strongroom.serving.config import ClientRule
from strongroom.serving.exchange import HttpResponse
from strongroom.serving.http import Connection, Front
from strongroom.serving.settings import RequestLimits
from strongroom.serving.status import HTTP_STATUS, Code, RequestError
from strongroom.web.protocol import CONNECTION

SIZES = [b"100", b"200000", None]
"""Bodies that are read before anybody looks who asks, and after it: large ones, and those of no known size."""


class Api:
    """What answers those who are let in."""

    def __init__(self):
        self.answered = 0

    async def handle(self, request):
        self.answered += 1
        return HttpResponse(200, b"{}")

    def failure(self, error):
        return HttpResponse(HTTP_STATUS[error.code], b"{}")


def ask(rules, client, size, meanwhile=lambda: None, path="/v1/models/m:predict"):
    """The status of a request while whose body comes something happens, and how many were answered."""
    api = Api()
    numbers = SimpleNamespace(request=lambda *one: None, refused_early=lambda why: None)
    access = Access(rules, ())
    front = Front(
        {"v1": ("tfs", api)},
        lambda: True,
        RequestLimits(),
        access,
        numbers,
        SimpleNamespace(request=lambda *one: None),
    )
    sent = []

    async def receive():
        meanwhile()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"transfer-encoding", b"chunked") if size is None else (b"content-length", size)]
    scope = {"method": "POST", "path": path, "query_string": b"", "headers": headers}
    scope[CONNECTION] = Connection(client)
    asyncio.run(front(scope, receive, send))
    return sent[0]["status"], api.answered


@pytest.mark.parametrize("size", SIZES)
def test_rules_that_come_with_the_body(size):
    found = [()]
    ruled = (ClientRule(subject="CN=one"),)

    def now():
        found[0] = ruled

    assert ask(lambda model: found[0], Client(), size, now) == (401, 0)
    found[0] = ()
    assert ask(lambda model: found[0], Client(subject="CN=two"), size, now) == (403, 0)
    found[0] = ()
    assert ask(lambda model: found[0], Client(subject="CN=one"), size, now) == (200, 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_that_comes_with_the_body(size):
    there = []

    def rules(model):
        if not there:
            raise RequestError(Code.NOT_FOUND, "There is no such model.")
        return there

    assert ask(rules, Client(), size, lambda: there.append(ClientRule(subject="CN=one"))) == (401, 0)


@pytest.mark.parametrize("size", SIZES)
def test_each_request_counts_once(size):
    # A quota so small gives one request, and no second one for as long as a test takes.
    rules = (ClientRule(subject="CN=one", requests_per_second=0.001),)
    assert ask(lambda model: rules, Client(subject="CN=one"), size) == (200, 1)
