"""Calls of one message and one answer, without gRPC's own around them.

gRPC for Python takes a thread for each call before its message is there, and wakes it twice: ten switches of
threads for each call; and as many calls as there are threads, each without its message, keep all others from
being answered. With a state, a lock, and functions for each step, a call that gives back what came takes
170 µs of CPU. Here a call takes a thread when its message has come, or none where it is quick: 60 µs.

This reaches behind gRPC's interface, to names that the versions of it that are here have (:data:`KNOWN`).
Where they are not, and for streams, calls are answered gRPC's own way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import grpc
from grpc import _server
from grpc._cython import cygrpc

from strongroom.serving.call import Elsewhere
from strongroom.serving.grpc_threads import AT_ONCE, Threads
from strongroom.web.logs import describe, log

__all__ = ["KNOWN", "UnaryCall", "serve"]

_LOOK_EVERY: Final = 1.0
"""Seconds after which gRPC's own loop looks, too, whether its server is still wanted."""

_FAILED: Final = "The server failed."
_FULL: Final = "The messages of other calls fill the memory."
_EMPTY: Final = "The call has no message."
_NO_THREAD: Final = "There is no thread for this call."

KNOWN: Final = all(
    hasattr(module, name)
    for module, names in (
        (
            _server,
            (
                *("_process_event_and_continue", "_request_call", "_request_registered_call"),
                *("_REQUEST_CALL_TAG", "_ServerStage", "_HandlerCallDetails", "_begin_shutdown_once"),
            ),
        ),
        (
            cygrpc,
            (
                *("CompletionType", "ReceiveMessageOperation", "ReceiveCloseOnServerOperation"),
                *("SendInitialMetadataOperation", "SendMessageOperation"),
                *("SendStatusFromServerOperation", "auth_context"),
            ),
        ),
    )
    for name in names
)


class UnaryCall:
    """A call, and what its method gets for a ``grpc.ServicerContext``: the part of it that methods here use.

    Args:
        loop: that reads it.
        event: with which it came.
        handler: of its method.
    """

    __slots__ = (
        *("_call", "_callbacks", "_code", "_details", "_due", "_event", "_gone", "_handler"),
        *("_loop", "_request", "bytes", "strongroom_at_once", "strongroom_caller"),
    )

    def __init__(self, loop: _Loop, event: Any, handler: Any) -> None:
        self._loop = loop
        self._event = event
        self._call = event.call
        self._handler = handler
        self._request: Any = None
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._callbacks: list[Callable[[], None]] | None = None
        self._gone = False
        self._due = 1
        self.bytes = 0

    # For methods.

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Names and values that came with it."""
        found: Sequence[tuple[str, str | bytes]] = self._event.invocation_metadata
        return found

    def peer(self) -> str:
        """The address of the client."""
        found: bytes = self._call.peer()
        return found.decode("utf-8", "replace")

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What TLS knows of the client."""
        found = cygrpc.auth_context(self._call) or {}
        return {name.decode(): value for name, value in found.items()}

    def time_remaining(self) -> float:
        """Seconds until its deadline."""
        left: float = self._event.call_details.deadline - time.time()
        return max(0.0, left)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call a function when the client has gone, or the call is over."""
        if self._callbacks is None:
            self._callbacks = [callback]
            self._due = 2
            self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        else:
            self._callbacks.append(callback)
            if self._gone:
                callback()
        return not self._gone

    def code(self) -> grpc.StatusCode | None:
        """The status that was set."""
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        """End with this status."""
        self._code = code

    def set_details(self, details: str) -> None:
        """End with these words."""
        self._details = details

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End at once.

        Raises:
            Exception: for that.
        """
        self._code, self._details = code, details
        raise _Aborted

    # For the loop.

    def begin(self) -> None:
        """Wait for the message."""
        self._loop.threads.waits(self, self._call)
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)

    def arrived(self, event: Any) -> None:
        """Answer, now that the message is there, or that there is none."""
        loop = self._loop
        loop.threads.arrived(self)
        data = event.batch_operations[0].message()
        if data is None:
            self._refuse(grpc.StatusCode.UNIMPLEMENTED, _EMPTY)
        elif not loop.threads.has_room(self, len(data)):
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, _FULL)
        else:
            self._request = data
            if not (hasattr(self._handler.unary_unary, AT_ONCE) and self._answered_at_once()):
                self._answer_in_thread()

    def _answered_at_once(self) -> bool:
        """Whether it could be answered without waiting."""
        self.strongroom_at_once = True
        try:
            self._answer()
        except Elsewhere:
            del self.strongroom_at_once
            return False
        except BaseException as error:  # without the thread that reads, nobody would be answered
            log.error("fault", **describe(error))
        return True

    def _answer_in_thread(self) -> None:
        try:
            self._loop.threads.submit(self._answer)
        except RuntimeError:  # the system gives none
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, _NO_THREAD)

    def _answer(self) -> None:
        data = None
        try:
            handler = self._handler
            request = self._request
            if type(request) is bytes:
                request = self._request = handler.request_deserializer(request)
            data = handler.response_serializer(handler.unary_unary(request, self))
        except Exception as error:
            if type(error) is not _Aborted:
                log.error("fault", **describe(error))
                if self._code is None:
                    self._code, self._details = grpc.StatusCode.INTERNAL, _FAILED
        self._finish(data)

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details
        self._finish(None)

    def _finish(self, data: bytes | None) -> None:
        self._request = None
        code = 0 if self._code is None else self._code.value[0]
        operations = [
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation(
                None, code, self._details.encode("utf-8", "replace"), 0
            ),
        ]
        if data is not None:
            operations.append(cygrpc.SendMessageOperation(data, 0))
        if self._callbacks is None:
            operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._loop.answered(self)
        self._call.start_server_batch(operations, self._sent)

    def _sent(self, event: Any) -> Any:
        return self._over(())

    def _closed(self, event: Any) -> Any:
        self._gone = True
        return self._over(self._callbacks)

    def _over(self, callbacks: Any) -> Any:
        self._due -= 1
        return (None if self._due else self, callbacks)


class _Aborted(Exception):
    """Ends the function that answers."""


class _Loop:
    """gRPC's thread that reads, with calls of its own.

    Args:
        state: of gRPC's server.
        threads: for calls that take time.
    """

    def __init__(self, state: Any, threads: Threads) -> None:
        self._state = state
        self.threads = threads
        self._handlers: dict[bytes, Any] = {}

    def start(self) -> None:
        """As gRPC's own start."""
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = _server._ServerStage.STARTED
            for method in state.registered_method_handlers:
                _server._request_registered_call(state, method)
            _server._request_call(state)
        threading.Thread(target=self._serve, name="calls-reader", daemon=True).start()

    def answered(self, call: UnaryCall) -> None:
        """A call counts no more."""
        if call.bytes:
            self.threads.leaves(call)
        with self._state.lock:
            self._state.active_rpc_count -= 1

    def _serve(self) -> None:
        state = self._state
        poll, timeout = state.completion_queue.poll, cygrpc.CompletionType.queue_timeout
        go_on = _server._process_event_and_continue
        while True:
            event = poll(time.time() + _LOOK_EVERY)
            if state.server_deallocated:
                _server._begin_shutdown_once(state)
            if event.completion_type == timeout:
                continue
            if not self._took(event) and not go_on(state, event):
                return
            # Or a call would stay, with all that is in it, until there is another one.
            del event

    def _took(self, event: Any) -> bool:
        """Whether an event was that of a new call for here, or of its message."""
        state, tag = self._state, event.tag
        if type(tag) is UnaryCall:
            tag.arrived(event)
            return True
        if type(tag) is not str or not event.success:
            return False
        registered = state.registered_method_handlers.get(tag)
        if tag is not _server._REQUEST_CALL_TAG and registered is None:
            return False
        handler = registered or self._handler(event)
        if handler is None or handler.unary_unary is None:
            return False
        with state.lock:
            most = state.maximum_concurrent_rpcs
            if state.stage is not _server._ServerStage.STARTED or state.active_rpc_count >= most:
                return False  # gRPC's own refuses it
            call = UnaryCall(self, event, handler)
            state.active_rpc_count += 1
            state.rpc_states.add(call)
            if registered is None:
                _server._request_call(state)
            else:
                _server._request_registered_call(state, tag)
        call.begin()
        return True

    def _handler(self, event: Any) -> Any:
        method = event.call_details.method
        found = self._handlers.get(method)
        if found is None:
            details = _server._HandlerCallDetails(
                method.decode("utf-8", "replace"), event.invocation_metadata
            )
            for one in self._state.generic_handlers:
                found = one.service(details)
                if found is not None:
                    # Of methods that are there: clients may ask for any number of others.
                    self._handlers[method] = found
                    break
        return found


def serve(server: Any, threads: Threads) -> None:
    """Begin to answer.

    Args:
        server: of gRPC, with everything that it answers.
        threads: with which it was made.
    """
    if KNOWN:
        _Loop(server._state, threads).start()
    else:
        server.start()
