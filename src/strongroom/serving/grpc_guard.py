"""What surrounds each call of gRPC: who may call what, numbers, the log and traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc

from strongroom.serving.access_log import AccessLog
from strongroom.serving.call import Elsewhere
from strongroom.serving.clients import Access
from strongroom.serving.grpc_calls import caller
from strongroom.serving.grpc_threads import AT_ONCE, Threads
from strongroom.serving.messages import method_types
from strongroom.serving.metrics import Metrics
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tracing import CURRENT, Trace, Tracing
from strongroom.web.logs import describe, log

__all__ = ["Guard"]

_CODES: Final = {one.value[0]: one for one in grpc.StatusCode}
_APIS: Final = {"inference": "v2", "tensorflow": "tfs"}
_ADMIN: Final = frozenset({"RepositoryModelLoad", "RepositoryModelUnload", "HandleReloadConfigRequest"})
_QUICK: Final = frozenset({"ModelInfer", "Predict"})
"""Methods that are answered by the thread that reads, where the model takes no time."""

_ELSEWHERE_SECONDS: Final = 1.0
"""For which a model that had to be waited for is not asked in vain with as many bytes."""

_UNKNOWN: Final = Code.UNKNOWN.value


class Guard(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc is untyped
    """What surrounds each call of a protocol; health and reflection are for everybody."""

    def __init__(
        self,
        handlers: Sequence[Any],
        threads: Threads,
        access: Access,
        metrics: Metrics,
        log: AccessLog,
        tracing: Tracing | None,
        tls: bool,
    ) -> None:
        self._inner = handlers
        self.tls = tls
        self.threads = threads
        self.access = access
        self.metrics = metrics
        self.log = log
        self.tracing = tracing
        self._handlers: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        """How a call is answered; None: not by a protocol."""
        found = self._handlers.get(details.method)
        if found is None:
            for one in self._inner:
                inner = one.service(details)
                if inner is not None:
                    found = self._handlers[details.method] = self._guarded(details.method, inner)
        return found

    def _guarded(self, method: str, handler: Any) -> Any:
        service, _, name = method[1:].partition("/")
        request, response = method_types(service)[name]
        call = _Guarded(
            self,
            method,
            _APIS.get(service.partition(".")[0], "other"),
            _models_of(request),
            _version_of(response),
            self.access.check_admin if name in _ADMIN else None,
        )
        if handler.unary_unary is not None:
            answer = call.unary(handler.unary_unary)
            if name in _QUICK and self.tracing is None:
                setattr(answer, AT_ONCE, True)
            return handler._replace(unary_unary=answer)
        return handler._replace(stream_stream=call.stream(handler.stream_stream))


class _Guarded:
    """One method of a protocol."""

    def __init__(
        self,
        guard: Guard,
        method: str,
        api: str,
        models_of: Callable[[Any], list[str]],
        version_of: Callable[[Any], int],
        admin: Callable[[Any], None] | None,
    ) -> None:
        self._access, self._metrics, self._log = guard.access, guard.metrics, guard.log
        self._threads, self._tracing, self._tls = guard.threads, guard.tracing, guard.tls
        self._waits: dict[str, tuple[float, int]] = {}
        self._method = method
        self._api = api
        self._models_of = models_of
        self._version_of = version_of
        self._admin = admin

    def unary(self, inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            quick = hasattr(context, AT_ONCE)
            models = self._models_of(request)
            if quick:
                self._may_answer(request, models, began)
            code, version = _UNKNOWN, 0
            trace = None if self._tracing is None else self._traced(context)
            caller(context, self._tls)
            try:
                if not quick:
                    self._check(models, context)
                response = inner(request, context)
                code, version = 0, self._version_of(response)
            except Elsewhere:
                self._waits[models[0]] = began + _ELSEWHERE_SECONDS, request.ByteSize()
                raise
            except Exception as error:
                code = _code_of(error, context)
                self._note(request, models, context, code, version, began, trace)
                if context.code() is None:
                    # gRPC would tell the client the words of what nobody foresaw.
                    context.abort(grpc.StatusCode.INTERNAL, "The server failed.")
                raise
            self._note(request, models, context, code, version, began, trace)
            return response

        return answer

    def stream(
        self, inner: Callable[[Iterator[Any], Any], Iterator[Any]]
    ) -> Callable[[Iterator[Any], Any], Iterator[Any]]:
        """One line for all of a stream; each of its messages is checked, and has a trace."""

        def answers(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            began = time.perf_counter()
            code, last, trace = Code.CANCELLED.value, None, None

            def checked() -> Iterator[Any]:
                nonlocal last, trace
                for last in requests:
                    self._threads.arrived()
                    if self._tracing is not None:
                        trace = self._traced(context)
                    self._check(self._models_of(last), context)
                    yield last
                    # Asked for the next one: this one is answered.
                    if trace is not None:
                        trace.finish(self._model(self._models_of(last), 0), self._api, 0)
                        trace = None

            try:
                yield from inner(checked(), context)
                code = 0
            except grpc.RpcError:
                raise  # the client has gone
            except Exception as error:
                code = _code_of(error, context)
                if context.code() is None:
                    # gRPC would tell the client the words of what nobody foresaw.
                    context.abort(grpc.StatusCode.INTERNAL, "The server failed.")
                raise
            finally:
                models = [] if last is None else self._models_of(last)
                self._note(last, models, context, code, 0, began, trace)

        return answers

    def _may_answer(self, request: Any, models: list[str], now: float) -> None:
        """Have a call answered elsewhere that would be, in all likelihood, in a moment.

        Where rules say how often a client may ask, each call is to be counted once.
        """
        (model,) = models
        waited = self._waits.get(model)
        if waited is not None and waited[0] > now and request.ByteSize() >= waited[1]:
            raise Elsewhere
        if self._access.ruled(model):
            raise Elsewhere

    def _traced(self, context: Any) -> Trace | None:
        assert self._tracing is not None
        trace = self._tracing.of_grpc(self._method, context.invocation_metadata())
        CURRENT.set(trace)
        return trace

    def _check(self, models: list[str], context: Any) -> None:
        try:
            if self._admin is not None:
                self._admin(caller(context))
                return
            for model in models:
                if self._access.ruled(model):
                    self._access.check(caller(context), model)
        except RequestError as error:
            context.abort(_CODES[int(error.code)], error.message)

    def _model(self, names: list[str], version: int) -> tuple[str, int] | None:
        # Who has a version has a model.
        return (names[0], version) if names and (version or self._access.known(names[0])) else None

    def _note(
        self,
        request: Any,
        models: list[str],
        context: Any,
        code: int,
        version: int,
        began: float,
        trace: Trace | None,
    ) -> None:
        seconds = time.perf_counter() - began
        model = self._model(models, version)
        self._metrics.request(model, self._api, "grpc", code, seconds)
        name, number = model or (None, 0)
        client = caller(context, self._tls)
        self._log.request(
            self._api,
            self._method,
            "OK" if not code else Code(code).name,
            seconds,
            client.address,
            client.subject,
            name,
            number or None,
            0 if request is None else request.ByteSize(),
            None if trace is None else trace.id,
        )
        if trace is not None:
            CURRENT.set(None)
            trace.finish(model, self._api, code)


def _code_of(error: Exception, context: Any) -> int:
    """The code of a call that ended with an exception: its own, where it was aborted."""
    status = context.code()
    if status is None:
        log.error("fault", **describe(error))
        status = grpc.StatusCode.INTERNAL
    code: int = status.value[0]
    return code


def _models_of(kind: Any) -> Callable[[Any], list[str]]:
    """How a message says which models it is about."""
    fields = kind.DESCRIPTOR.fields_by_name
    if "model_spec" in fields:
        return lambda message: [message.model_spec.name]
    if "tasks" in fields:
        return lambda message: [one.model_spec.name for one in message.tasks]
    for name in ("model_name", "name"):
        if name in fields:
            return lambda message: [getattr(message, name)]
    return lambda message: []


def _version_of(kind: Any) -> Callable[[Any], int]:
    """How an answer says which version it is of; 0: it does not."""
    fields = kind.DESCRIPTOR.fields_by_name
    if "model_spec" in fields:
        return lambda message: int(message.model_spec.version.value)
    if "model_version" in fields and "outputs" in fields:
        return lambda message: int(message.model_version or 0)
    return lambda message: 0
