"""A connection over HTTP/1.1, as thin as asyncio lets it be: the load must measure the server, not itself."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httptools

from strongroom.loadtest.connection import Ask, Failed
from strongroom.loadtest.target import Target

__all__ = ["RestConnection"]

_LARGE: Final = 1 << 16
"""Bytes from which a body is not copied behind its head: all connections send the same one."""


class _Exchange(asyncio.Protocol):
    """The transport's side; ``answer`` is a future of (status, body)."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.open = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(Failed("DISCONNECTED"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(Failed("DISCONNECTED", "The answer is not HTTP."))
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        body = b"".join(self._body)
        self._body.clear()
        if not self._parser.should_keep_alive():
            self.open = False
            self.transport.close()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((status, body))
        else:
            # An answer that nobody asked for would be taken for that to the next request.
            self.open = False
            self.transport.abort()

    def _fail(self, error: Failed) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class RestConnection:
    """A connection that is made when it is needed, and again when it was lost."""

    def __init__(
        self,
        target: Target,
        context: ssl.SSLContext | None,
        headers: Mapping[str, str],
        timeout: float,
    ) -> None:
        self._target, self._context, self._timeout = target, context, timeout
        host = target.address
        self._common = "".join(
            f"{name}: {value}\r\n" for name, value in {"host": host, **headers}.items()
        )
        self._exchange: _Exchange | None = None
        self._written: dict[int, tuple[Ask, Sequence[bytes]]] = {}

    async def _connect(self) -> _Exchange:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                _, self._exchange = await loop.create_connection(
                    _Exchange,
                    self._target.host,
                    self._target.port,
                    ssl=self._context,
                    server_hostname=self._target.host if self._context else None,
                )
        except ssl.SSLCertVerificationError as error:
            raise Failed(
                "UNREACHABLE", f"its certificate is not accepted: {error.verify_message}"
            ) from None
        except TimeoutError:
            raise Failed("UNREACHABLE", "no answer in time") from None
        except (OSError, ssl.SSLError) as error:
            raise Failed("UNREACHABLE", _reason(error)) from None
        return self._exchange

    def _parts(self, request: Ask) -> Sequence[bytes]:
        # The request is kept beside what is made of it, so that no other one gets its id.
        found = self._written.get(id(request))
        if found is None:
            method = "POST" if request.body else "GET"
            headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
            if request.body:
                headers += f"content-length: {len(request.body)}\r\n"
            head = f"{method} {self._target.path}{request.path} HTTP/1.1\r\n{self._common}{headers}\r\n"
            first = head.encode("latin-1")
            parts = (first + request.body,) if len(request.body) < _LARGE else (first, request.body)
            found = self._written[id(request)] = request, parts
        return found[1]

    async def ask(self, request: Ask) -> bytes:
        parts = self._parts(request)
        exchange = self._exchange
        if exchange is None or not exchange.open:
            exchange = await self._connect()
        loop = asyncio.get_running_loop()
        answer = exchange.answer = loop.create_future()
        late = loop.call_later(self._timeout, self._late, exchange)
        try:
            exchange.transport.writelines(parts)
            status: int
            body: bytes
            status, body = await answer
        finally:
            late.cancel()
        if status != 200:
            raise Failed(f"HTTP {status}", _words(body))
        return body

    def _late(self, exchange: _Exchange) -> None:
        if exchange.answer is not None and not exchange.answer.done():
            exchange.answer.set_exception(Failed("TIMEOUT"))
            exchange.open = False
            exchange.transport.abort()

    async def close(self) -> None:
        if self._exchange is not None and self._exchange.transport is not None:
            self._exchange.transport.abort()


def _reason(error: OSError) -> str:
    # What several addresses say comes as one text without a number.
    return (error.strerror or type(error).__name__).lower() if error.errno else "connection refused"


def _words(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])  # of both protocols
    except (ValueError, TypeError, KeyError):
        return body[:400].decode("utf-8", "replace")
