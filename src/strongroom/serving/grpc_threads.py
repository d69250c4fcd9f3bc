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
"""Seconds that a message may take where half of the threads wait for one."""

_LOOK_EVERY: Final = 1.0
_LATE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_WORDS: Final = "The message took too long to arrive."

_KNOWN: Final = all(
    hasattr(_server, name)
    for name in (
        *("_unary_response_in_pool", "_receive_message", "_RECEIVE_MESSAGE_TOKEN"),
        *("_is_rpc_state_active", "_abort", "_CLOSED"),
    )
)


class _Pending:
    """What gRPC counts a call with until it is done."""

    __slots__ = ("_callback",)

    def __init__(self) -> None:
        self._callback: Callable[[Any], None] | None = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callback = callback

    def done(self) -> None:
        if self._callback is not None:
            self._callback(self)


class Threads:
    """For ``grpc.server``, in place of a ``ThreadPoolExecutor``.

    Args:
        most: threads.
        seconds: in which the message of a call, or the first of a stream, arrives.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._workers = Workers(most, "grpc")
        self._most = most
        self._seconds = seconds
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
        receive = _server._receive_message(state, call, reader)

        def arrived(message_event: Any) -> Any:
            self._waiting.pop(pending, None)
            finished = receive(message_event)
            with state.condition:
                request, state.request = state.request, None
                active = _server._is_rpc_state_active(state)
                if request is None and active and state.client is _server._CLOSED:
                    code = cygrpc.StatusCode.unimplemented
                    _server._abort(state, call, code, b"The call has no message.")
            if request is None or not active:
                pending.done()
                return finished

            def answer() -> None:
                respond = _server._unary_response_in_pool
                run(respond, event, state, behavior, lambda: request, reader, writer)

            if not hasattr(behavior, AT_ONCE) or not _answered(answer, pending):
                self._workers.submit(partial(_answer_in_thread, answer, pending))
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

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            waiting = list(self._waiting.values())
            limit = self._seconds
            if 2 * len(waiting) >= self._most:
                limit = min(limit, _HURRIED)
            now = time.monotonic()
            for since, call in waiting:
                if now - since > limit:
                    call.cancel(_LATE, _WORDS)


def _answered(answer: Callable[[], None], pending: _Pending) -> bool:
    """Whether a call could be answered without waiting."""
    try:
        answer()
    except Elsewhere:
        return False
    except BaseException as error:  # without the thread that reads, nobody would be answered
        log.error("fault", **describe(error))
    pending.done()
    return True


def _answer_in_thread(answer: Callable[[], None], pending: _Pending) -> None:
    try:
        answer()
    finally:
        pending.done()
