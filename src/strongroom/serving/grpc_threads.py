"""The threads of gRPC, and an end for calls that stall.

gRPC's own way takes a thread for each call before its message is there, and wakes it twice: ten switches of
threads and 100 µs for each call, and as many calls as there are threads, each without its message, kept all
others from being answered. Here a thread is taken when the message has come; and what is quick is answered
by the thread that has read it, which takes none.

This reaches behind gRPC's interface, to names that the versions of it that are here have. Where they are
not, calls are answered gRPC's own way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc
from grpc import _server
from grpc._cython import cygrpc

from strongroom.serving.call import Elsewhere
from strongroom.serving.workers import Workers
from strongroom.web.logs import describe, log

__all__ = ["AT_ONCE", "Threads"]

AT_ONCE: Final = "strongroom_at_once"
"""The attribute of functions that may be called by the thread that reads; they raise Elsewhere if they would
have to wait."""

_HURRIED: Final = 5.0
"""Seconds that a message may take where half of the threads, or of all calls, wait for one."""

_LARGE: Final = 64 << 10
"""Bytes from which messages are counted: of smaller ones there are never too many."""

_LOOK_EVERY: Final = 1.0
_LATE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_WORDS: Final = "The message took too long to arrive."
_FAILED: Final = b"The server failed."
_FULL: Final = b"The messages of other calls fill the memory."

_KNOWN: Final = all(
    hasattr(_server, name)
    for name in (
        *("_unary_response_in_pool", "_receive_message", "_RECEIVE_MESSAGE_TOKEN"),
        *("_is_rpc_state_active", "_abort", "_status", "_Context", "_CLOSED"),
    )
)


class _Pending:
    """What gRPC counts a call with until it is done."""

    __slots__ = ("_callback", "bytes")

    def __init__(self) -> None:
        self._callback: Callable[[Any], None] | None = None
        self.bytes = 0

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callback = callback

    def done(self) -> None:
        if self._callback is not None:
            self._callback(self)


class Threads:
    """For ``grpc.server``, in place of a ``ThreadPoolExecutor``.

    Args:
        most: threads.
        waiting: calls beyond those.
        seconds: in which the message of a call, or the first of a stream, arrives.
        held: bytes of large messages whose calls are not answered yet.
    """

    def __init__(self, most: int, waiting: int, seconds: float, held: int) -> None:
        self._workers = Workers(most, "grpc")
        self._most = most
        self._most_calls = most + waiting
        self._seconds = seconds
        self._held, self._most_held = 0, held
        self._lock = threading.Lock()
        # By thread or call; each adds and removes its own, in one step of the interpreter.
        self._waiting: dict[Any, tuple[float, Any]] = {}
        self._reader = 0
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="grpc-stalls", daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Answer a call; gRPC's thread that reads is here."""
        if _KNOWN and arguments and arguments[0] is _server._unary_response_in_pool:
            return self._when_arrived(function, *arguments[1:])
        for one in arguments:
            if type(one) is cygrpc.RequestCallEvent:
                answer = partial(self._answer, one.call, function, arguments, options)
                return self._workers.submit(answer)
        return self._workers.submit(partial(function, *arguments, **options))

    def at_once(self) -> bool:
        """Whether it is the thread that reads which asks: others wait for it."""
        return threading.get_ident() == self._reader

    def arrived(self) -> None:
        """The message of the call that this thread answers is there."""
        self._waiting.pop(threading.get_ident(), None)

    def shutdown(self, wait: bool = True) -> None:
        """End the threads when they have answered."""
        self._stopped.set()
        self._workers.close(wait)

    def _when_arrived(
        self,
        run: Callable[..., Any],
        event: Any,
        state: Any,
        behavior: Callable[..., Any],
        thunk: Callable[[], Any],
        reader: Any,
        writer: Any,
    ) -> _Pending:
        """Read the message, and answer then; ``thunk`` would wait for it."""
        self._reader = threading.get_ident()
        call, pending = event.call, _Pending()

        def sized(data: bytes) -> Any:
            if len(data) >= _LARGE:
                pending.bytes = len(data)
            return reader(data)

        receive = _server._receive_message(state, call, sized)

        def arrived(message_event: Any) -> Any:
            self._waiting.pop(pending, None)
            finished = receive(message_event)
            room = not pending.bytes or self._has_room(pending)
            with state.condition:
                request, state.request = state.request, None
                active = _server._is_rpc_state_active(state)
                if request is None and active and state.client is _server._CLOSED:
                    code = cygrpc.StatusCode.unimplemented
                    _server._abort(state, call, code, b"The call has no message.")
                elif not room and active:
                    request = None
                    _server._abort(state, call, cygrpc.StatusCode.resource_exhausted, _FULL)
            if request is None or not active:
                self._done(pending)
                return finished

            def answer() -> None:
                try:
                    response = run(behavior, request, _server._Context(event, state, reader))
                    data = writer(response)
                except Exception as error:
                    if not state.aborted:
                        log.error("fault", **describe(error))
                    with state.condition:
                        _server._abort(state, call, cygrpc.StatusCode.internal, _FAILED)
                else:
                    _server._status(event, state, data)

            if not hasattr(behavior, AT_ONCE) or not self._answered(answer, pending):
                self._workers.submit(partial(self._answer_in_thread, answer, pending))
            return finished

        self._waiting[pending] = time.monotonic(), call
        call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        return pending

    def _answer(
        self, call: Any, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> None:
        self._waiting[threading.get_ident()] = time.monotonic(), call
        try:
            function(*arguments, **options)
        finally:
            self.arrived()

    def _answered(self, answer: Callable[[], None], pending: _Pending) -> bool:
        """Whether a call could be answered without waiting."""
        try:
            answer()
        except Elsewhere:
            return False
        except BaseException as error:  # without the thread that reads, nobody would be answered
            log.error("fault", **describe(error))
        self._done(pending)
        return True

    def _answer_in_thread(self, answer: Callable[[], None], pending: _Pending) -> None:
        try:
            answer()
        finally:
            self._done(pending)

    def _has_room(self, pending: _Pending) -> bool:
        """Whether a message may stay; otherwise it does not count."""
        with self._lock:
            if self._held + pending.bytes <= self._most_held:
                self._held += pending.bytes
                return True
        pending.bytes = 0
        return False

    def _done(self, pending: _Pending) -> None:
        if pending.bytes:
            with self._lock:
                self._held -= pending.bytes
        pending.done()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            waiting = list(self._waiting.items())
            # Streams wait in threads; calls take the place of calls alone.
            streams = [one for key, one in waiting if type(key) is int]
            calls = [one for key, one in waiting if type(key) is not int]
            self._end(streams, self._most)
            self._end(calls, self._most_calls)

    def _end(self, waiting: list[tuple[float, Any]], most: int) -> None:
        """End those that have waited for too long, of so many that there can be."""
        limit = self._seconds
        if 2 * len(waiting) >= most:
            limit = min(limit, _HURRIED)
        now = time.monotonic()
        for since, call in waiting:
            if now - since > limit:
                call.cancel(_LATE, _WORDS)
