"""The HTTP port: one ASGI application before the protocols.

It reads bodies within their limits, says who asks, refuses what may not be, hands the rest to the protocol
whose path it is, and writes down how it went. A client that closes its side of the connection has gone,
and nobody works for it any more: an end of file is all that a server sees of both.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from strongroom.serving.access_log import AccessLog
from strongroom.serving.call import Client
from strongroom.serving.clients import Access, client_of, with_token
from strongroom.serving.exchange import HttpApi, HttpRequest, HttpResponse
from strongroom.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from strongroom.serving.settings import Listen, RequestLimits
from strongroom.serving.status import HTTP_STATUS, Code, RequestError
from strongroom.serving.tracing import CURRENT, Trace, Tracing
from strongroom.web.addresses import ConnectionCount
from strongroom.web.logs import describe, log
from strongroom.web.protocol import CONNECTION, HttpProtocol

__all__ = ["Connection", "Front", "protocol_class"]

_MODEL: Final = re.compile(r"/v[12]/(?:repository/)?models/([^/:]+)")
_ADMIN: Final = re.compile(r"/v2/repository/models/[^/]*/(?:un)?load/?")
_CODES: Final = {int(status): code for code, status in reversed(HTTP_STATUS.items())} | {
    408: Code.DEADLINE_EXCEEDED,
    413: Code.INVALID_ARGUMENT,
    405: Code.UNIMPLEMENTED,
    415: Code.INVALID_ARGUMENT,
    500: Code.INTERNAL,
}
_JOINED: Final = 64 << 10
"""Bytes of an answer up to which a copy costs less than further writes."""

_LINGER: Final = 2.0
"""Seconds in which what is left of a refused body is read: a client that still writes reads no answer."""

_CLOSE: Final = (b"connection", b"close")
_TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Connection:
    """One connection, which all its requests bring.

    Attributes:
        client: at the other end.
        request, task: what is answered now, and by whom.
        complete: no request has come that is not there whole.
    """

    __slots__ = ("client", "complete", "request", "task")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.request: HttpRequest | None = None
        self.task: asyncio.Task[Any] | None = None
        self.complete = False

    def gone(self) -> None:
        """The client does not wait any more."""
        if self.request is not None:
            self.request.cancelled = True
        if self.task is not None:
            self.task.cancel()


def protocol_class(listen: Listen, limits: RequestLimits, metrics: Metrics) -> type[HttpProtocol]:
    """The HTTP/1.1 protocol of this server."""

    class Protocol(HttpProtocol):
        addresses = ConnectionCount(listen.connections_per_address, listen.connections)
        head_seconds = limits.head_seconds
        answer_seconds = limits.answer_seconds

        def connected(self, transport: asyncio.Transport) -> Connection:
            tls = transport.get_extra_info("ssl_object")
            address = self.client[0] if self.client else ""
            return Connection(client_of(address, tls and tls.getpeercert(binary_form=True)))

        def refused(self, why: str) -> None:
            metrics.refused_early(why)

        def bad_request(self, message: str) -> bytes:
            return orjson.dumps({"error": message})

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._connection.complete = False

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._connection.complete = True

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._connection is not None:
                self._connection.gone()

    return Protocol


class _Refusal(Exception):
    """What no protocol has a code for: a status of HTTP, and why."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.error = RequestError(_CODES[status], message)


class Front:
    """The ASGI application.

    Args:
        apis: name and protocol by the first part of its paths: ``{"v1": ("tfs", …), "v2": ("v2", …)}``.
        ready: every model answers.
        limits: of a request.
        access: who may use what.
        metrics, access_log: where it is written down.
        tracing: None traces nothing.

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
    ) -> None:
        self._apis = apis
        self._ready = ready
        self._limits = limits
        self._access = access
        self._metrics = metrics
        self._log = access_log
        self._tracing = tracing
        self._held = 0
        self._most_held = max(limits.bytes, limits.bytes_held)
        self.draining = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        name, api = self._apis.get(path[1:3] if path[3:4] in ("", "/") else "", (None, None))
        if api is None or name is None:
            await self._send(send, self._own(scope["method"], path), scope["method"])
            return
        connection: Connection = scope[CONNECTION]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = connection.client
        token = headers.get(b"authorization")
        if token is not None:
            client = with_token(client, token.decode("latin-1"))
        request = HttpRequest(scope["method"], path, headers, b"", scope["query_string"], client)
        connection.request, connection.task = request, asyncio.current_task()
        began, trace = time.perf_counter(), None
        if self._tracing is not None:
            trace = self._tracing.of_http(request.method, path, headers)
            CURRENT.set(trace)
        status, left = 499, b"content-length" in headers or b"transfer-encoding" in headers
        held = 0
        response: HttpResponse | None = None
        try:
            try:
                # Where reading it costs little, a refusal need not end the connection.
                late = left and _is_small(headers)
                if not late:
                    self._authorise(request)
                if left:
                    request.body = await self._read(headers, receive, connection.complete)
                    left = False
                    if b"content-encoding" in headers:
                        request.body = self._unpack(headers, request.body)
                    held = len(request.body)
                    self._held += held
                    self._check_room()
                    # What the client takes to send it is not what the server takes to answer.
                    began = time.perf_counter()
                    if trace is not None:
                        trace.arrived()
                if late:
                    self._authorise(request)
                response = await api.handle(request)
                if trace is not None:
                    trace.handled()
            except _Refusal as refusal:
                response = replace(api.failure(refusal.error), status=refusal.status)
                self._metrics.refused_early(str(refusal.status))
            except RequestError as error:
                response = api.failure(error)
            except Exception as error:
                log.error("fault", **describe(error))
                response = api.failure(RequestError(Code.INTERNAL, "The server failed."))
            status = response.status
            await self._send(send, response, request.method, receive if left else None)
        except asyncio.CancelledError:
            pass  # the client has gone, or the server stops without waiting any longer
        finally:
            connection.request = connection.task = None
            self._held -= held
            self._note(name, request, response, status, time.perf_counter() - began, trace)

    def _authorise(self, request: HttpRequest) -> None:
        if request.path.startswith("/v2/repository/") and _ADMIN.fullmatch(request.path):
            self._access.check_admin(request.client)
            return
        match = _MODEL.match(request.path)
        if match is not None:
            self._access.check(request.client, match[1])

    async def _read(
        self, headers: dict[bytes, bytes], receive: Receive, complete: bool
    ) -> bytes | bytearray:
        limit = self._limits.bytes
        length = headers.get(b"content-length", b"0")
        if len(length) > 12 or int(length) > limit:
            raise _too_large(limit)
        if complete:  # a timer costs 8 µs
            return await self._whole(receive, limit)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._whole(receive, limit)
        except TimeoutError:
            raise _Refusal(408, "The request took too long to arrive.") from None

    def _check_room(self) -> None:
        if self._held > self._most_held:
            raise RequestError(Code.RESOURCE_EXHAUSTED, "The bodies of other requests fill the memory.")

    def _unpack(self, headers: dict[bytes, bytes], body: bytes | bytearray) -> bytes | bytearray:
        coding = headers[b"content-encoding"].lower()
        if coding == b"identity":
            return body
        found = _unpacked(body, coding, self._limits.bytes)
        del headers[b"content-encoding"]
        return found

    async def _whole(self, receive: Receive, limit: int) -> bytes | bytearray:
        message = await receive()
        body: bytes | bytearray = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            if len(body) > limit:
                raise _too_large(limit)
            return body
        body, held = bytearray(body), 0
        try:
            while message["type"] == "http.request":
                self._held += len(body) - held
                held = len(body)
                if held > limit:
                    raise _too_large(limit)
                self._check_room()
                if not message.get("more_body"):
                    return body
                message = await receive()
                body += message.get("body", b"")
        finally:
            self._held -= held
        raise asyncio.CancelledError  # it disconnected

    async def _send(
        self, send: Send, response: HttpResponse, method: str, unread: Receive | None = None
    ) -> None:
        body = response.body
        pieces: Sequence[bytes | memoryview]
        if isinstance(body, bytes):
            size, pieces = len(body), (body,)
        else:
            size = sum(map(len, body))
            pieces = (b"".join(body),) if size <= _JOINED else body
        headers = [*response.headers, (b"content-length", b"%d" % size)]
        if self.draining or unread is not None:
            headers.append(_CLOSE)
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
        request: HttpRequest,
        response: HttpResponse | None,
        status: int,
        seconds: float,
        trace: Trace | None,
    ) -> None:
        model = None if response is None else response.model
        if model is None:
            model = self._asked(request.path)
        code = 0 if status < 400 else _CODES.get(status, Code.UNKNOWN)
        self._metrics.request(model, api, "rest", code, seconds)
        name, version = model or (None, None)
        client = request.client
        self._log.request(
            api,
            f"{request.method} {request.path}",
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
        match = _MODEL.match(path)
        if match is None or not self._access.known(match[1]):
            return None
        return match[1], 0

    def _own(self, method: str, path: str) -> HttpResponse:
        if path not in ("/healthz", "/readyz", "/metrics"):
            return HttpResponse(404, orjson.dumps({"error": "There is nothing at this path."}))
        if method not in ("GET", "HEAD"):
            return HttpResponse(
                405,
                orjson.dumps({"error": f"This is read with GET, not {method}."}),
                ((b"content-type", b"application/json"), (b"allow", b"GET, HEAD")),
            )
        if path == "/metrics":
            return HttpResponse(
                200, self._metrics.text(), ((b"content-type", CONTENT_TYPE_LATEST.encode()),)
            )
        if path == "/healthz":
            return HttpResponse(200, b"ok\n", _TEXT)
        if self.draining:
            return HttpResponse(503, b"draining\n", _TEXT)
        return HttpResponse(200, b"ready\n", _TEXT) if self._ready() else _NOT_READY


_NOT_READY: Final = HttpResponse(503, b"not every model answers\n", _TEXT)


def _is_small(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" not in headers and len(headers[b"content-length"]) < 6


def _too_large(limit: int) -> _Refusal:
    return _Refusal(413, f"The body has more than {limit} bytes.")


def _unpacked(body: bytes | bytearray, coding: bytes, limit: int) -> bytes:
    if coding not in (b"gzip", b"deflate"):
        raise _Refusal(415, "A body is sent as it is, or packed with gzip or deflate.")
    unpacker = zlib.decompressobj(31 if coding == b"gzip" else 15)
    try:
        found = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"The body is not what {coding.decode()} makes."
        ) from None
    if len(found) > limit:
        raise _too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(Code.INVALID_ARGUMENT, f"The body is not one whole {coding.decode()}.")
    return found
