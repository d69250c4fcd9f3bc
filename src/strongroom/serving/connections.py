"""Connections over HTTP: requests that are there whole are answered where they are read.

uvicorn makes a task and five more objects of each request, and writes its answer in two messages; together
30 µs. Most requests come in one piece. What they wait for, if anything, calls back to where they were read;
requests that come otherwise are handed to uvicorn as ever.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import orjson

from strongroom.serving.clients import client_of
from strongroom.serving.exchange import HttpResponse
from strongroom.serving.http import CLOSE, JOINED, Begun, Connection, Front, Head
from strongroom.serving.metrics import Metrics
from strongroom.serving.outbox import Outbox
from strongroom.serving.settings import Listen, RequestLimits
from strongroom.web.addresses import ConnectionCount
from strongroom.web.protocol import DirectCycle, HttpProtocol

__all__ = ["protocol_class"]

_PLAIN: Final = re.compile(rb"/[A-Za-z0-9_.:/-]{1,200}")
"""What is the same as a URL and as a path."""

_IN_A_ROW: Final = 16
"""Requests of one connection that others wait for; a client may send hundreds in one piece."""

_KEPT: Final = 4 << 10
"""Bytes of a head that a connection remembers."""

_SHORT: Final = 16 << 10
"""Bytes of a request that takes so little time that answers to others may wait for it."""

_METHODS: Final = {b"GET": "GET", b"POST": "POST"}


def protocol_class(
    front: Front, listen: Listen, limits: RequestLimits, metrics: Metrics
) -> type[HttpProtocol]:
    """The HTTP/1.1 protocol of a server.

    Args:
        front: answers.
        listen, limits: see there.
        metrics: told of connections that are refused.
    """
    members = {
        "addresses": ConnectionCount(listen.connections_per_address, listen.connections),
        "head_seconds": limits.head_seconds,
        "answer_seconds": limits.answer_seconds,
        "max_bytes": limits.bytes,
        "front": front,
        "metrics": metrics,
        "outbox": Outbox(),
    }
    return type("Protocol", (_Protocol,), members)


class _Cycle(DirectCycle):
    """A request that waits for something, in the place of uvicorn's cycle and of its task.

    Args:
        begun: the request.
        waits_for: what it has asked the event loop for.
        done: told the response; None where it was cancelled.
    """

    __slots__ = ("_begun", "_cancelled", "_done", "_waits_for")

    def __init__(
        self,
        begun: Begun,
        waits_for: asyncio.Future[Any],
        done: Callable[[_Cycle, HttpResponse | None], None],
    ) -> None:
        super().__init__()
        self._begun = begun
        self._done = done
        self._cancelled = False
        self._wait(waits_for)

    def cancel(self, msg: str | None = None) -> None:
        """Nobody waits for the answer; as of a task."""
        self._cancelled = True
        if self._waits_for is not None:
            self._waits_for.cancel()

    def _wait(self, waits_for: asyncio.Future[Any]) -> None:
        # As a task says that it has understood what a coroutine awaits.
        waits_for._asyncio_future_blocking = False
        waits_for.add_done_callback(self._go_on)
        self._waits_for: asyncio.Future[Any] | None = waits_for

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        work, response = self._begun.work, None
        try:
            gone = self._cancelled
            waits_for = work.throw(asyncio.CancelledError()) if gone else work.send(None)
        except StopIteration as end:
            response = end.value
        except asyncio.CancelledError:
            pass
        else:
            self._wait(waits_for)
            return
        # The connection has this until its next request, and nothing of what is over.
        done = self._done
        del self._begun, self._done
        self._waits_for, self.response_complete = None, True
        done(self, response)


class _Protocol(HttpProtocol):
    # nginx speaks 1.0 to what is behind it, unless it is told otherwise.
    versions = ("1.0", "1.1")
    front: Front
    metrics: Metrics
    outbox: Outbox
    max_bytes: int

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # Pieces of the body of a request that may be there whole in a moment.
        self._pieces: list[bytes] | None = None
        self._answered: float | None = None
        self._row = 0
        # Messages that began in what came last, and the size of the body that was answered at once.
        self._messages = self._size = 0
        # The head that was read last, what it means, and the size of its request.
        self._known: tuple[bytes, Head, int] | None = None
        self._head: Head | None = None
        self._date: tuple[Any, bytes] = (None, b"")

    def connected(self, transport: asyncio.Transport) -> Connection:
        tls = transport.get_extra_info("ssl_object")
        address = self.client[0] if self.client else ""
        return Connection(client_of(address, tls and tls.getpeercert(binary_form=True)))

    def refused(self, why: str) -> None:
        self.metrics.refused_early(why)

    def bad_request(self, message: str) -> bytes:
        return orjson.dumps({"error": message})

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._connection is not None:
            self._connection.gone()

    def eof_received(self) -> None:
        self.outbox.flush()
        super().eof_received()

    def shutdown(self) -> None:
        self.outbox.flush()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        # A timer that is stopped and started again with each request costs 2 µs: it looks at the time.
        if self._answer_again(data):
            if self.timeout_keep_alive_task is None and self._waits_for_next():
                self._wait_idle(self.timeout_keep_alive)
            return
        timer, self.timeout_keep_alive_task, self._answered = self.timeout_keep_alive_task, None, None
        self._read(data)
        if self._waits_for_next():
            if timer is None:
                self._wait_idle(self.timeout_keep_alive)
            else:
                self.timeout_keep_alive_task = timer
        elif timer is not None:
            if self._is_waiting():
                self.timeout_keep_alive_task = timer
            else:
                timer.cancel()

    def _read(self, data: bytes) -> None:
        self.outbox.flush()
        self._known, self._messages, self._size, self._row = None, 0, -1, 0
        super().data_received(data)
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            self._hand_over(pieces)
        elif self._size >= 0 and self._messages == 1:
            end = data.find(b"\r\n\r\n") + 4
            if self._head is not None and end <= _KEPT and end + self._size == len(data):
                self._known = data[:end], self._head, len(data)

    def _answer_again(self, data: bytes) -> bool:
        """Answer a request with the head of the one before it, byte for byte.

        Clients send the same one all day, and to read it takes 9 µs. The parser is where it was when that
        head came, at the start of a message, and would find what it has found then.
        """
        if self._known is None:
            return False
        text, head, size = self._known
        if size > _SHORT:
            self.outbox.flush()
        return (
            len(data) == size
            and data.startswith(text)
            and self.is_idle()
            and not self.flow.write_paused
            and self._answer(head, data[len(text) :], together=self.outbox.follows())
        )

    def _waits_for_next(self) -> bool:
        return self._answered is not None and not self._head_size and self.is_idle()

    def _is_waiting(self) -> bool:
        cycle: object = self.cycle
        return isinstance(cycle, _Cycle) and not cycle.response_complete

    def timeout_keep_alive_handler(self) -> None:
        if self._is_waiting():
            self.timeout_keep_alive_task = None  # the answer starts it again
            return
        self.outbox.flush()
        if self._answered is not None:
            left = self._answered + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._wait_idle(left)
                return
        super().timeout_keep_alive_handler()

    def _wait_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # What the parser finds.

    def on_message_begin(self) -> None:
        # The scope is made by who needs it.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._connection.complete = False
        self._messages += 1

    def begin(self) -> None:
        self._row += 1
        if (
            _PLAIN.fullmatch(self.url)
            and self._row <= _IN_A_ROW
            and not self.expect_100_continue
            and self.is_idle()
            and not self.flow.write_paused
            and self.parser.should_keep_alive()
            and self.parser.get_http_version() == "1.1"
        ):
            self._pieces = []
        else:
            self._hand_over([])

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            raise ValueError
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._answer(self._read_head(), body):
                self._size = len(body)
                self.expect_next()
                return
            self._hand_over(pieces)
        super().on_message_complete()
        self._connection.complete = True

    def _hand_over(self, pieces: list[bytes]) -> None:
        """Have uvicorn answer the request whose head was read last."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().begin()
        for piece in pieces:
            super().on_body(piece)

    def _read_head(self) -> Head | None:
        method = _METHODS.get(self.method)
        self._head = None
        if method is not None:
            self._head = self.front.head(self._connection, method, self.url.decode(), self.fields)
        return self._head

    def _answer(self, head: Head | None, body: bytes, together: bool = False) -> bool:
        """Answer a request that is there whole, if the front does; together with others, where it may be."""
        if head is None or len(body) > self.max_bytes:
            return False
        begun = self.front.begin(head, body)
        if begun is None:
            return False
        if isinstance(begun, HttpResponse):
            self._write(begun, together)
            return True
        try:
            waits_for = begun.work.send(None)
        except StopIteration as end:
            self._write(end.value, together)
        else:
            self._wait(begun, waits_for)
        return True

    def _wait(self, begun: Begun, waits_for: asyncio.Future[Any]) -> None:
        cycle = _Cycle(begun, waits_for, self._finish)
        # Not of uvicorn's types, with all that it uses of them: what it asks of the cycle, and the tasks that
        # it cancels when it stops and has waited long enough.
        self.cycle, self._answered = cycle, None  # type: ignore[assignment]  # as said above
        self.tasks.add(cycle)  # type: ignore[arg-type]
        self._connection.request, self._connection.task = begun.request, cycle
        self._connection.complete = True

    def _finish(self, cycle: _Cycle, response: HttpResponse | None) -> None:
        self.tasks.discard(cycle)
        self._connection.request = self._connection.task = None
        if response is None:
            self.transport.close()
        if response is None or self.transport.is_closing():
            return
        ends = self.front.draining or not cycle.keep_alive
        if ends:
            response = replace(response, headers=(*response.headers, CLOSE))
        self._write(response, together=not ends and self.outbox.follows())
        if ends:
            self.transport.close()
        elif self.pipeline or self._head_size or self.timeout_keep_alive_task is None:
            self.on_response_complete()

    def _write(self, response: HttpResponse, together: bool = False) -> None:
        body = response.body
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        head = b"%b%bcontent-length: %d\r\n\r\n" % (
            _head(response.status, response.headers),
            self._default_headers(),
            size,
        )
        pieces = (body,) if isinstance(body, bytes) else body
        if size <= JOINED and together:
            self.outbox.write(self.loop, self.transport, b"".join((head, *pieces)))
        else:
            self.outbox.flush()
            for piece in (b"".join((head, *pieces)),) if size <= JOINED else (head, *pieces):
                self.transport.write(piece)
            self.outbox.wrote()
        self._answered = self.loop.time()

    def _default_headers(self) -> bytes:
        """Those of uvicorn: the date, which it makes anew each second."""
        headers, text = self._date
        if headers is not self.server_state.default_headers:
            headers = self.server_state.default_headers
            text = b"".join(b"%b: %b\r\n" % one for one in headers)
            self._date = headers, text
        return text


@lru_cache(256)
def _head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The status line and headers."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = b"".join(b"%b: %b\r\n" % one for one in headers)
    return b"HTTP/1.1 %d %b\r\n%b" % (status, phrase.encode(), lines)
