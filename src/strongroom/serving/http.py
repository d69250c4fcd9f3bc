"""The HTTP port: one ASGI application before the protocols.

It reads bodies within their limits, says who asks, refuses what may not be, hands the rest to the protocol
whose path it is, and writes down how it went. A client that closes its side of the connection has gone,
and nobody works for it any more: an end of file is all that a server sees of both.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson

from strongroom.serving.access_log import AccessLog
from strongroom.serving.bodies import Bodies, Receive, Refusal
from strongroom.serving.call import Client
from strongroom.serving.clients import Access, with_token
from strongroom.serving.exchange import Answering, HttpApi, HttpRequest, HttpResponse
from strongroom.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from strongroom.serving.openapi import document
from strongroom.serving.settings import RequestLimits
from strongroom.serving.status import HTTP_STATUS, Code, RequestError
from strongroom.serving.tracing import CURRENT, Trace, Tracing
from strongroom.web.logs import describe, log
from strongroom.web.protocol import CONNECTION

__all__ = ["CLOSE", "JOINED", "Begun", "Connection", "Front", "Head"]

_MODEL: Final = re.compile(r"/v[12]/(?:repository/)?models/([^/:]+)")
_ADMIN: Final = re.compile(r"/v2/repository/models/[^/]*/(?:un)?load/?")
_SHORT: Final = 256
"""Letters of a path of which it is kept what it is about."""

_CODES: Final = {int(status): code for code, status in reversed(HTTP_STATUS.items())} | {
    408: Code.DEADLINE_EXCEEDED,
    413: Code.INVALID_ARGUMENT,
    405: Code.UNIMPLEMENTED,
    415: Code.INVALID_ARGUMENT,
    500: Code.INTERNAL,
}
JOINED: Final = 64 << 10
"""Bytes of an answer up to which a copy costs less than further writes."""

_LINGER: Final = 2.0
"""Seconds in which what is left of a refused body is read: a client that still writes reads no answer."""

CLOSE: Final = (b"connection", b"close")
_TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Cancellable(Protocol):
    """A task, and what is like one."""

    def cancel(self) -> object:
        """Nobody waits for its end any more."""


class Connection:
    """One connection, which all its requests bring.

    Attributes:
        client: at the other end.
        request, task: what is answered now, and what ends that.
        complete: no request has come that is not there whole.
    """

    __slots__ = ("client", "complete", "request", "task")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.request: HttpRequest | None = None
        self.task: Cancellable | None = None
        self.complete = False

    def gone(self) -> None:
        """The client does not wait any more."""
        if self.request is not None:
            self.request.cancelled = True
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class Begun:
    """A request that is being answered.

    Attributes:
        request: that came.
        work: gives the response.
    """

    request: HttpRequest
    work: Coroutine[Any, Any, HttpResponse]


@dataclass(slots=True)
class Head:
    """What the head of a request means, for all requests that come with it.

    Attributes:
        name, api: of the protocol.
        what: method and path, for the log.
        method, path, headers: as of :class:`.exchange.HttpRequest`.
        client: who asks.
    """

    name: str
    api: HttpApi
    what: str
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    client: Client


class Front:
    """The ASGI application.

    Args:
        apis: name and protocol by the first part of its paths: ``{"v1": ("tfs", …), "v2": ("v2", …)}``.
        ready: every model answers.
        limits: of a request.
        access: who may use what.
        metrics, access_log: where it is written down.
        tracing: None traces nothing.
        tells: whether numbers, which name models, are for everybody who may connect.

    Attributes:
        draining: connections end with their next answer, and nobody shall come any more.
    """

    def __init__(
        self,
        apis: Mapping[str, tuple[str, HttpApi]],
        ready: Callable[[], bool],
        limits: RequestLimits,
        access: Access,
        metrics: Metrics,
        access_log: AccessLog,
        tracing: Tracing | None = None,
        tells: Callable[[], bool] = lambda: True,
    ) -> None:
        self._apis = apis
        self._tells = tells
        self._ready = ready
        self._access = access
        self._metrics = metrics
        self._log = access_log
        self._tracing = tracing
        self._bodies = Bodies(limits)
        self.draining = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        name, api = self._api(path)
        if api is None:
            await self._send(send, self._own(scope["method"], path), scope["method"])
            return
        connection: Connection = scope[CONNECTION]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = _client(connection, headers)
        request = HttpRequest(scope["method"], path, headers, b"", scope["query_string"], client)
        connection.request, connection.task = request, asyncio.current_task()
        began, trace = time.perf_counter(), None
        if self._tracing is not None:
            trace = self._tracing.of_http(request.method, path, headers)
            CURRENT.set(trace)
        status, left = 499, b"content-length" in headers or b"transfer-encoding" in headers
        response: HttpResponse | None = None
        try:
            try:
                # Where reading it costs little, a refusal need not end the connection.
                late = left and _is_small(headers)
                if not late:
                    self._authorise(request)
                if left:
                    request.body = await self._bodies.read(headers, receive, connection.complete)
                    left = False
                    if b"content-encoding" in headers:
                        self._bodies.unpack(request)
                    self._bodies.hold(request)
                    # What the client takes to send it is not what the server takes to answer.
                    began = time.perf_counter()
                    if trace is not None:
                        trace.arrived()
                    # While it came, the model may have, or rules that this client does not fit.
                    self._authorise(request, counts=late)
                response = await api.handle(request)
                if trace is not None:
                    trace.handled()
            except Exception as error:
                response = self._failure(api, error)
            status = response.status
            await self._send(send, response, request.method, receive if left else None)
        except asyncio.CancelledError:
            pass  # the client has gone, or the server stops without waiting any longer
        finally:
            connection.request = connection.task = None
            self._bodies.release(request)
            what = f"{request.method} {path}"
            self._note(name, what, request, response, status, began, trace)

    def head(
        self, connection: Connection, method: str, path: str, headers: dict[bytes, bytes]
    ) -> Head | None:
        """Of requests that :meth:`begin` answers; None where they are left to :meth:`__call__`."""
        name, api = self._api(path)
        if api is None or self._tracing is not None:
            return None
        what = f"{method} {path}"
        return Head(name, api, what, method, path, headers, _client(connection, headers))

    def begin(self, head: Head, body: bytes) -> HttpResponse | Begun | None:
        """Answer a request that is there whole; None where it is left to :meth:`__call__`."""
        if self.draining:
            return None
        began, api = time.perf_counter(), head.api
        request = HttpRequest(head.method, head.path, head.headers, body, b"", head.client)
        found: Answering
        try:
            if b"content-encoding" in head.headers:
                self._bodies.unpack(request)
            self._bodies.hold(request)
            self._authorise(request)
            found = api.begin(request)
        except Exception as error:
            found = self._failure(api, error)
        if not isinstance(found, HttpResponse):
            return Begun(request, self._wait(head, request, found, began))
        self._bodies.release(request)
        self._note(head.name, head.what, request, found, found.status, began)
        return found

    def _api(self, path: str) -> tuple[str, HttpApi | None]:
        return self._apis.get(path[1:3] if path[3:4] in ("", "/") else "", ("", None))

    async def _wait(
        self,
        head: Head,
        request: HttpRequest,
        work: Coroutine[Any, Any, HttpResponse],
        began: float,
    ) -> HttpResponse:
        response, status = None, 499
        try:
            try:
                response = await work
            except Exception as error:
                response = self._failure(head.api, error)
            status = response.status
            return response
        finally:
            self._bodies.release(request)
            self._note(head.name, head.what, request, response, status, began)

    def _failure(self, api: HttpApi, error: Exception) -> HttpResponse:
        if isinstance(error, Refusal):
            self._metrics.refused_early(str(error.status))
            said = RequestError(_CODES[error.status], error.message)
            return replace(api.failure(said), status=error.status)
        if not isinstance(error, RequestError):
            log.error("fault", **describe(error))
            error = RequestError(Code.INTERNAL, "The server failed.")
        return api.failure(error)

    def _authorise(self, request: HttpRequest, *, counts: bool = True) -> None:
        admin, model = _about(request.path)
        if admin:
            self._access.check_admin(request.client, counts=counts)
        elif model is not None:
            self._access.check(request.client, model, counts=counts)

    async def _send(
        self, send: Send, response: HttpResponse, method: str, unread: Receive | None = None
    ) -> None:
        body = response.body
        pieces: Sequence[bytes | memoryview]
        if isinstance(body, bytes):
            size, pieces = len(body), (body,)
        else:
            size = sum(map(len, body))
            pieces = (b"".join(body),) if size <= JOINED else body
        headers = [*response.headers, (b"content-length", b"%d" % size)]
        if self.draining or unread is not None:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if unread is None:
            for piece in pieces[:-1]:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": pieces[-1]})
            return
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER):
                while (message := await unread())["type"] == "http.request":
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body"})

    def _note(
        self,
        api: str,
        what: str,
        request: HttpRequest,
        response: HttpResponse | None,
        status: int,
        began: float,
        trace: Trace | None = None,
    ) -> None:
        seconds = time.perf_counter() - began
        model = None if response is None else response.model
        if model is None:
            model = self._asked(request.path)
        code = 0 if status < 400 else _CODES.get(status, Code.UNKNOWN)
        self._metrics.request(model, api, "rest", code, seconds)
        name, version = model or (None, None)
        client = request.client
        self._log.request(
            api,
            what,
            status,
            seconds,
            client.address,
            client.subject,
            name,
            version or None,
            len(request.body),
            None if trace is None else trace.id,
        )
        if trace is not None:
            trace.finish(model, api, code, status)

    def _asked(self, path: str) -> tuple[str, int] | None:
        """The model of a path, if it is one of this server's: others are what callers made up."""
        _, model = _about(path)
        return None if model is None or not self._access.known(model) else (model, 0)

    def _own(self, method: str, path: str) -> HttpResponse:
        if path not in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            return HttpResponse(404, orjson.dumps({"error": "There is nothing at this path."}))
        if method not in ("GET", "HEAD"):
            return HttpResponse(
                405,
                orjson.dumps({"error": f"This is read with GET, not {method}."}),
                ((b"content-type", b"application/json"), (b"allow", b"GET, HEAD")),
            )
        if path == "/openapi.json":
            return HttpResponse(200, document())
        if path == "/metrics":
            if not self._tells():
                return HttpResponse(
                    403, orjson.dumps({"error": "Numbers are read at the port for management."})
                )
            return HttpResponse(
                200, self._metrics.text(), ((b"content-type", CONTENT_TYPE_LATEST.encode()),)
            )
        if path == "/healthz":
            return HttpResponse(200, b"ok\n", _TEXT)
        if self.draining:
            return HttpResponse(503, b"draining\n", _TEXT)
        return HttpResponse(200, b"ready\n", _TEXT) if self._ready() else _NOT_READY


_NOT_READY: Final = HttpResponse(503, b"not every model answers\n", _TEXT)


def _about(path: str) -> tuple[bool, str | None]:
    """Whether a path is for administrators, and the model in it."""
    return _parsed(path) if len(path) <= _SHORT else _parsed.__wrapped__(path)


@lru_cache(1024)
def _parsed(path: str) -> tuple[bool, str | None]:
    match = _MODEL.match(path)
    return _ADMIN.fullmatch(path) is not None, None if match is None else match[1]


def _client(connection: Connection, headers: Mapping[bytes, bytes]) -> Client:
    token = headers.get(b"authorization")
    if token is None:
        return connection.client
    return with_token(connection.client, token.decode("latin-1"))


def _is_small(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" not in headers and len(headers[b"content-length"]) < 6
