"""What surrounds every request, without a network: faults, clients that do not read, the log."""

import asyncio
import io
import json
import logging
from datetime import datetime

import pytest

from strongroom.errors import (
    AuditBroken,
    InvalidPolicy,
    MissingExtra,
    NotAuthorised,
    NotFound,
    ReleaseDenied,
    StorageError,
    StrongroomError,
)
from strongroom.keyserver.errors_http import HttpError, error_answer
from strongroom.keyserver.guard import Guard
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.settings import Limits
from strongroom.web.logs import configure_logging, log

SECRET = "canary-secret"
NASTY = 'a"\n{}\x1b[0m\u2028é'


@pytest.fixture
def lines():
    """A function that gives what was logged, as JSON."""
    stream = io.StringIO()
    configure_logging(stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def ask(app, send=None, limits=None, headers=(), **changes):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def collect(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/x",
        "headers": list(headers),
        "client": ("192.0.2.1", 1),
        **changes,
    }
    asyncio.run(Guard(app, limits or Limits(), Metrics())(scope, receive, send or collect))
    return sent


def test_a_fault_is_told_to_the_log_without_its_text(lines):
    async def app(scope, receive, send):
        raise RuntimeError(SECRET)

    start, body = ask(app)
    assert start["status"] == 500
    answer = json.loads(body["body"])["error"]
    assert answer == {"code": "internal", "message": "The key server failed.", "hint": None}
    fault, request = lines()
    assert (fault["event"], fault["error"]) == ("fault", "RuntimeError")
    assert fault["where"].startswith("test_app_guard.py:")
    assert fault["request"] == request["request"] == dict(start["headers"])[b"x-request-id"].decode()
    assert request["path"] == "other"
    assert SECRET not in str(lines())


def test_a_fault_with_a_cause_names_the_types(lines):
    async def app(scope, receive, send):
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise StorageError("The database does not answer.") from error

    assert ask(app)[0]["status"] == 503
    assert lines()[0]["cause"] == "KeyError"
    assert lines()[0]["message"] == "The database does not answer."
    assert SECRET not in str(lines())


def test_a_request_that_ran_into_a_timeout_is_a_fault_like_others(lines):
    async def app(scope, receive, send):
        raise TimeoutError

    assert ask(app)[0]["status"] == 500
    assert lines()[0]["error"] == "TimeoutError"


def test_the_line_of_a_request_is_like_every_other_line(lines):
    async def app(scope, receive, send):
        log.info("within", method="GET", path="other", status=200, ms=0.0, actor=NASTY)
        scope["strongroom.actor"] = {"actor": NASTY, "role": "owner"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    sent = ask(app)
    log.info("outside")
    within, request, outside = lines()
    assert request["actor"] == within["actor"] == NASTY
    assert set(request) == {*within, "role"}
    assert {name: type(value) for name, value in request.items() if name != "role"} == {
        name: type(value) for name, value in within.items()
    }
    for name in ("request", "source", "method", "path", "status", "level"):
        assert request[name] == within[name], name
    assert request["request"] == dict(sent[0]["headers"])[b"x-request-id"].decode()
    assert datetime.fromisoformat(request["timestamp"]).tzinfo is not None
    assert len(request["timestamp"]) == len(within["timestamp"])
    assert "request" not in outside


def test_the_line_of_a_request_has_a_level(lines):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    logging.getLogger().setLevel(logging.WARNING)
    ask(app)
    assert lines() == []


def test_what_libraries_log_with_an_exception_is_its_type_alone(lines):
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("library").exception("it failed")
        log.error("it failed", exc_info=True)
    logging.getLogger("uvicorn.access").info(SECRET)
    logging.getLogger("sqlalchemy.engine").info(SECRET)
    assert [one["error"] for one in lines()] == ["ValueError", "ValueError"]
    assert SECRET not in str(lines())


def test_a_line_of_the_log_stays_one_line(lines):
    log.info("a\nb", value="c\n{}\x1b[0m")
    assert len(lines()) == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("x"), 404, "not-found"),
        (NotAuthorised("x"), 403, "not-authorised"),
        (ReleaseDenied("x", code="challenge"), 403, "challenge"),
        (InvalidPolicy("any[0]", "is empty"), 400, "invalid-policy"),
        (MissingExtra("x", "attest"), 501, "missing-extra"),
        (StorageError("/secret/path"), 503, "storage-error"),
        (AuditBroken("/secret/path"), 500, "internal"),
        (StrongroomError("/secret/path"), 500, "internal"),
        (ValueError("/secret/path"), 500, "internal"),
        (HttpError(408, "too-slow", "x"), 408, "too-slow"),
    ],
)
def test_every_error_has_a_status_and_a_code(error, status, code):
    answer = error_answer(error)
    assert answer.status_code == status
    body = json.loads(answer.body)
    assert set(body) == {"error"}
    assert body["error"]["code"] == code
    assert "/secret/path" not in str(body)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_every_class_of_the_tree_has_a_status_of_its_own_choice():
    def below(kind):
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    from strongroom.keyserver.errors_http import _STATUS

    ours = {one for one in below(StrongroomError) if one.__module__ == "strongroom.errors"}
    left = {one for one in ours if not any(issubclass(one, kind) for kind, _ in _STATUS)}
    assert left == {StrongroomError}
