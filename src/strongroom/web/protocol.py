"""HTTP/1.1 within limits.

uvicorn does not hand client certificates on, knows no limit for headers and trailers, no time for them
and none for clients that do not read; the protocol here adds them, and sends an answer in one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

import httptools
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from strongroom.format.encoding import dump_json
from strongroom.web.addresses import ConnectionCount, source_group

__all__ = ["CONNECTION", "MAX_HEAD", "DirectCycle", "HttpProtocol"]

CONNECTION: Final = "strongroom.connection"
"""In the scope of a request: what :meth:`HttpProtocol.connected` has said of its connection."""

MAX_HEAD: Final = 32 << 10
"""Bytes of a request line and headers: a token of Kubernetes has some 1.5 KB, others up to 8 KB."""

_JOINED: Final = 64 << 10
"""Bytes of a body beyond which a copy of them costs more than a write of the head."""

_MOST_AHEAD: Final = 256
"""Requests that a client may send before the first of them is answered."""

_CONTINUE: Final = b"HTTP/1.1 100 "

_GOODBYE: Final = 1.0
"""Seconds that a client has to answer the end of TLS when the server stops: who keeps a connection for
later does not read, and would be waited for half a minute."""


class _InOnePiece:
    """What an answer is written to: its head waits for what follows it.

    Each write is a record of TLS, a call of the system and a packet: together 60 µs.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head is not None:
            if len(data) > _JOINED:
                self._transport.write(self._head)
            else:
                data = self._head + data
            self._head = None
        elif not self._begun and not data.startswith(_CONTINUE):
            self._head, self._begun = data, True
            return
        self._transport.write(data)

    def end(self) -> None:
        """The answer is whole, perhaps without a body; the next write is a head."""
        if self._head is not None:
            self._transport.write(self._head)
        self._head, self._begun = None, False

    def close(self) -> None:
        self.end()
        self._transport.close()


class _Flow(FlowControl):
    """Reads nothing more while requests wait for the answer to the one before them.

    uvicorn reads on with each answer, a thousand requests for one: a client that sends them without end
    took all memory.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Collection[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        # Whose answer is awaited is there whole: others came behind it.
        if not self._waiting:
            super().resume_reading()


_NOBODY: Final = asyncio.Event()
"""For uvicorn to tell of what came of a request that is there whole."""


class DirectCycle:
    """What is in the place of uvicorn's cycle while a request that is there whole is answered without it.

    Attributes:
        keep_alive: the connection stays after the answer.
        response_complete, disconnected, message_event: as uvicorn's.
    """

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.keep_alive, self.message_event = True, _NOBODY
        self.response_complete = self.disconnected = False


class HttpProtocol(HttpToolsProtocol):
    """One connection; a server makes a class of its own of this.

    Attributes:
        addresses: what is open, of all connections of the process.
        versions: of HTTP/1 that are spoken.
        head_seconds: from a connection, or the first byte of a further request, to the end of its head.
        answer_seconds: that a client may leave an answer unread.
        method, fields: of the request whose head was read last; names in lower case, of each the last.
    """

    addresses: ConnectionCount
    versions: Collection[str] = ("1.1",)
    head_seconds: float
    answer_seconds: float

    def connected(self, transport: asyncio.Transport) -> Any:
        """What all requests of a connection shall bring, once its handshake is over."""

    def refused(self, why: str) -> None:
        """Told of connections and requests that end here."""

    def bad_request(self, message: str) -> bytes:
        """The body, JSON, of an answer to what is no request."""
        return dump_json({"error": {"code": "bad-request", "message": message, "hint": None}})

    def __init__(
        self,
        config: UvicornConfig,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.method = b""
        self.fields: dict[bytes, bytes] = {}
        self._connection: Any = None
        self._counted: str | None = None
        self._head_size = 0
        self._in_head = True
        self._framing = 0
        self._declined: bytes | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answers: _InOnePiece

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._answers = _InOnePiece(transport)
        source = source_group(self.client[0]) if self.client else "local"
        if not self.addresses.enter(source):
            self.refused("connections")
            transport.abort()
            return
        self._counted = source
        self._connection = self.connected(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        if self._counted is not None:
            self.addresses.leave(self._counted)
            self._counted = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None:  # aborted in connection_made
            return
        if self._in_head:
            self._head_size += len(data)
        else:
            self._framing += len(data)
        self._feed(data)
        if self._in_head and self._head_size and self._head_timer is None:
            self._expect_head()
        size, what = (self._head_size, "head") if self._in_head else (self._framing, "framing")
        if size > MAX_HEAD and not self.transport.is_closing():
            self._refuse_head(f"The {what} of the request is too large.")

    def _feed(self, data: bytes) -> None:
        """As uvicorn does it, but for the body of a request that offers another protocol.

        The parser takes that for the other protocol, and uvicorn for the next request: a body could hold
        one that no proxy has seen. Java's client offers HTTP/2 with its first request.
        """
        self._unset_keepalive_if_required()
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    head, self._declined = self._declined or b"", None
                    data = head + data[offer.args[0] :]
                    # One that has read "connection: close" reads nothing more.
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        except httptools.HttpParserError:
            self.send_400_response("")

    def _decline(self) -> bytes:
        """The head that was read last, without the offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b""
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self._connection  # type: ignore[typeddict-unknown-key]

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # Trailers would be kept without bound: 100 MB of short ones took 2 GB.
            raise ValueError
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        # What is left are the sizes and extensions of chunks, and a trailer that does not end.
        self._framing = max(0, self._framing - len(body))
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._framing = 0
        self._stop_timer()
        self.method, self.fields = self.parser.get_method(), dict(self.headers)
        if self._is_large() or self._ambiguous() or not self._is_spoken():
            raise ValueError  # the parser turns it into the answer below
        if self.parser.should_upgrade():
            self._in_head = True
            self._declined = self._decline()
            return
        if len(self.pipeline) >= _MOST_AHEAD:
            raise ValueError
        self.begin()

    def begin(self) -> None:
        """Have the application answer the request whose head has come."""
        super().on_headers_complete()
        self.cycle.transport = self._answers  # type: ignore[assignment]

    def is_idle(self) -> bool:
        """Whether nothing is being answered, and something can be."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def on_message_complete(self) -> None:
        if self._declined is not None:
            return
        super().on_message_complete()
        self.expect_next()

    def expect_next(self) -> None:
        """A request is there whole: what follows is the head of another one."""
        self._in_head = True
        self._head_size = 0

    def on_response_complete(self) -> None:
        self._answers.end()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.answer_seconds, self._does_not_read)

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.loop.call_later(_GOODBYE, self.transport.abort)

    def _does_not_read(self) -> None:
        self.refused("does-not-read")
        # An orderly close would wait for the client to read what is left.
        self.transport.abort()

    def _is_large(self) -> bool:
        if 0 < self._head_size <= MAX_HEAD:  # of what came, the head is a part
            return False
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD

    def _is_spoken(self) -> bool:
        version: str = self.parser.get_http_version()
        if version == "1.1":
            return self.method != b"CONNECT"
        # HTTP/1.0 has no chunks: where there are some, a proxy may have read another request.
        return version in self.versions and all(
            name != b"transfer-encoding" for name, _ in self.headers
        )

    def _ambiguous(self) -> bool:
        """Two readings of one request: what proxies are fooled with."""
        if len(self.fields) == len(self.headers):
            return False
        names = [name for name, _ in self.headers]
        return names.count(b"host") > 1 or names.count(b"authorization") > 1

    def send_400_response(self, msg: str) -> None:
        self._refuse_head("This is not a request of HTTP/1.1.")

    def _refuse_head(self, message: str) -> None:
        body = self.bad_request(message)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.refused("bad-request")
        self._stop_timer()
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self.refused("too-slow")
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
