"""Connections on which the requests of a release are answered without the messages of ASGI.

uvicorn makes seven objects of each request, reads its body and writes its answer in messages, and looks at
each header of that for what no header of ours has; with the guard's part in it some 60 µs of 100. Most
requests come whole, in one record of TLS. Those that do not, that offer something else or show who asks,
go the long way, which gives the same answers.
"""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from strongroom.keyserver.direct_routes import PATHS, Answer
from strongroom.keyserver.guard import Guard
from strongroom.web.protocol import DirectCycle, HttpProtocol

__all__ = ["DirectProtocol"]

_PATHS: Final = {path.encode(): path for path in PATHS}
_AT_ONCE: Final = b"/v1/challenge"
"""Its answer waits for nothing, and needs no task."""

_LONG_WAY: Final = frozenset({b"authorization", b"transfer-encoding", b"expect"})


class DirectProtocol(HttpProtocol):
    """One connection; where the application is no guard with direct routes, like any other."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        app: object = self.app
        self._guard = app if isinstance(app, Guard) and app.direct is not None else None
        # Of the body of a request that may be there whole in a moment.
        self._pieces: list[bytes] | None = None
        self._first = True

    def data_received(self, data: bytes) -> None:
        # Of requests that are sent without waiting for answers, the others wait like any.
        self._first = True
        super().data_received(data)
        pieces, self._pieces = self._pieces, None
        if pieces is not None and not self.transport.is_closing():
            # The rest is on its way.
            super().begin()
            for piece in pieces:
                super().on_body(piece)

    def begin(self) -> None:
        first, self._first = self._first, False
        if first and self._guard is not None and self._is_direct():
            self._pieces = []
        else:
            super().begin()

    def _is_direct(self) -> bool:
        return (
            self.url in _PATHS
            and self.method == b"POST"
            and self._connection is None
            and len(self.fields) == len(self.headers)
            and _LONG_WAY.isdisjoint(self.fields)
            and self.parser.should_keep_alive()
            and self.is_idle()
            and not self.pipeline
            and not self.flow.write_paused
        )

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            super().on_message_complete()
            return
        self.expect_next()
        self._answer(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _answer(self, body: bytes) -> None:
        assert self._guard is not None
        cycle = DirectCycle()
        # Not of uvicorn's type, with all that it asks of one.
        self.cycle = cycle  # type: ignore[assignment]
        kind = self.fields.get(b"content-type", b"").decode("latin-1")
        source = self.client[0] if self.client else "local"
        work = self._guard.answer(_PATHS[self.url], body, kind, source)
        if self.url == _AT_ONCE:
            try:
                work.send(None)
            except StopIteration as end:
                self._write(cycle, end.value)
                return
            raise AssertionError("it waits for something")
        task = self.loop.create_task(self._wait(cycle, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _wait(self, cycle: DirectCycle, work: Any) -> None:
        try:
            self._write(cycle, await work)
        except BaseException:
            self.transport.close()
            raise

    def _write(self, cycle: DirectCycle, answer: Answer) -> None:
        if cycle.disconnected or self.transport.is_closing():
            return
        status, headers, body = answer
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += name, b": ", value, b"\r\n"
        parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        parts.append(body)
        self.transport.write(b"".join(parts))
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
