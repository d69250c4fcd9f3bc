"""From gRPC's calls to functions of a request: errors, deadlines, and who asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from strongroom.errors import StrongroomError
from strongroom.serving.call import Call, Client
from strongroom.serving.clients import client_of, with_token
from strongroom.serving.grpc_threads import AT_ONCE
from strongroom.serving.messages import method_types
from strongroom.serving.status import Code, RequestError, code_of

__all__ = ["Context", "caller", "service"]

_CALLER: Final = "strongroom_caller"
_client_of: Final = lru_cache(1024)(client_of)
"""A client has many calls on a connection."""

_CODES = {one.value[0]: one for one in grpc.StatusCode}


class Context:
    """What a call brings beside its message.

    Attributes:
        client: who asks.
        deadline: moment of ``time.monotonic()``, or None.
    """

    __slots__ = ("_context", "client", "deadline")

    def __init__(self, context: Any) -> None:
        self._context = context
        left = context.time_remaining()
        # Without a deadline gRPC says some ten billion years.
        self.deadline = None if left is None or left > 1e8 else time.monotonic() + left
        self.client = caller(context)

    def watch(self, call: Call) -> Call:
        """Give the call deadline and client, and note on it when the client has gone."""
        call.client, call.deadline, call.transport = self.client, self.deadline, "grpc"
        if hasattr(self._context, AT_ONCE):
            call.at_once = True
            return call

        def gone() -> None:
            call.cancelled = True

        self._context.add_callback(gone)
        return call


def service(
    name: str,
    methods: Mapping[str, Callable[[Any, Context], Any]],
    streams: Mapping[str, Callable[[Iterator[Any], Context], Iterator[Any]]] = {},
    codecs: Mapping[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {},
) -> Any:
    """A handler for ``grpc.Server.add_generic_rpc_handlers``.

    Args:
        name: full, as in the ``.proto`` file.
        methods: name → function of message and context that gives the answer; it raises errors of this
            project, which become the call's status.
        streams: likewise, for methods with messages one after another in both directions; each takes a
            thread of the server for as long as it is open.
        codecs: method → what reads its requests and writes its responses, instead of protobuf.
    """
    codecs = {
        method: (request.FromString, response.SerializeToString)
        for method, (request, response) in method_types(name).items()
    } | dict(codecs)
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            _guarded(function),
            request_deserializer=_reader(codecs[method][0]),
            response_serializer=codecs[method][1],
        )
        for method, function in methods.items()
    }
    for method, stream in streams.items():
        handlers[method] = grpc.stream_stream_rpc_method_handler(
            _guarded_stream(stream),
            request_deserializer=_reader(codecs[method][0]),
            response_serializer=codecs[method][1],
        )
    return grpc.method_handlers_generic_handler(name, handlers)


class _Unreadable:
    """In place of a message that cannot be read: about no model, as interceptors see it.

    A deserializer that raises makes the call INTERNAL, as if it were the server's fault.
    """

    name = model_name = ""
    tasks = ()
    model_spec = property(lambda self: self)

    @staticmethod
    def ByteSize() -> int:  # noqa: N802  as of messages
        return 0


def _reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Unreadable()

    return read


def _readable(message: Any) -> Any:
    if isinstance(message, _Unreadable):
        raise RequestError(Code.INVALID_ARGUMENT, "The message cannot be read.")
    return message


def _guarded(function: Callable[[Any, Context], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: Any) -> Any:
        try:
            return function(_readable(request), Context(context))
        except StrongroomError as error:
            code, said = code_of(error), error.message
        return context.abort(_CODES[int(code)], said)

    return answer


def _guarded_stream(
    function: Callable[[Iterator[Any], Context], Iterator[Any]],
) -> Callable[[Iterator[Any], Any], Iterator[Any]]:
    def answers(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        try:
            yield from function(map(_readable, requests), Context(context))
        except StrongroomError as error:
            context.abort(_CODES[int(code_of(error))], error.message)

    return answers


def caller(context: Any, tls: bool = True) -> Client:
    """Who asks, from the context of a call; found once for each: gRPC gives the address away slowly.

    Args:
        context: of gRPC.
        tls: there may be a certificate.
    """
    found: Client | None = getattr(context, _CALLER, None)
    if found is None:
        certificate = None
        if tls:
            certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        found = _client_of(context.peer(), certificate)
        for name, value in context.invocation_metadata():
            if name == "authorization" and isinstance(value, str):
                found = with_token(found, value)
        setattr(context, _CALLER, found)
    return found
