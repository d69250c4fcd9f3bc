"""Traces for OpenTelemetry: what happened to a request and when, and nothing of what it said.

Spans are made when the request has been answered, from moments that were written down meanwhile: what is
not traced costs one look at a variable.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from importlib.metadata import version as release
from importlib.util import find_spec
from typing import Any, Final

from strongroom.errors import MissingExtra, UsageError
from strongroom.serving.batching import Work
from strongroom.serving.status import Code

__all__ = ["CURRENT", "Trace", "Tracing", "open_tracing"]

CURRENT: Final[ContextVar[Trace | None]] = ContextVar("trace", default=None)
"""The trace of the request that is answered here."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_HTTP: Final = "http/protobuf"
_URL: Final = re.compile(r"https?://[^/@?#\s]+(?:/[^@?#\s]*)?")
_PATH: Final = "/v1/traces"
_FLUSH_SECONDS: Final = 5.0
"""For the last spans at the end, which a collector that is away would hold up for 30."""

_ROUTE: Final = re.compile(
    r"/(?P<api>v[12])/(?P<repository>repository/)?models/[^/:]+"
    r"(?P<choice>/(?:versions|labels)/[^/:]+)?(?P<rest>.*)"
)
_OWN: Final = frozenset({"/v2", "/v2/models/stats", "/v2/repository/index"})
_RESTS: Final = frozenset(
    {
        *("", ":predict", ":classify", ":regress", "/metadata"),
        *("/infer", "/ready", "/config", "/stats", "/load", "/unload"),
    }
)
_FAULTS: Final = frozenset(
    {
        *(Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED),
        *(Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS),
    }
)
"""Codes that are the server's failure, in OpenTelemetry's conventions for gRPC."""


class Trace:
    """One request that is traced.

    Attributes:
        id: of the trace, in hexadecimal.
    """

    def __init__(self, tracer: Any, span: Any, began: float, offset: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = offset
        self._arrived = began
        self._left: float | None = None
        self._handled: float | None = None
        self._parts: list[tuple[str, float, float, dict[str, Any]]] = []
        self.id = f"{span.get_span_context().trace_id:032x}"

    def arrived(self) -> None:
        """The body is there."""
        now = time.monotonic()
        self._parts.append(("receive", self._arrived, now, {}))
        self._arrived = now

    def inferred(self, began: float, ended: float, work: Work | None) -> None:
        """A call of a model ended, well or not.

        Args:
            began, ended: moments when it came to the model, and of its answer.
            work: as far as it came; None: it did not fit the model.
        """
        if self._left is None:
            self._parts.append(("decode", self._arrived, began, {}))
        self._left = ended
        if work is None:
            return  # it does not fit the model
        size = {"strongroom.batch.size": work.together or work.size}
        if work.taken:
            self._parts.append(("queue", began, work.taken, {}))
            self._parts.append(("batch", work.taken, ended, size))
        else:
            self._parts.append(("queue", began, work.started or ended, {}))
        if work.started:
            self._parts.append(("run", work.started, work.ended or ended, size))

    def from_cache(self) -> None:
        """A call is answered without the model."""
        self._span.set_attribute("strongroom.cache.hit", True)

    def handled(self) -> None:
        """The answer is written, and not sent."""
        self._handled = time.monotonic()

    def finish(
        self, model: tuple[str, int] | None, api: str, code: int, status: int | None = None
    ) -> None:
        """Give everything away; the trace is used no more.

        Args:
            model: name and version; None: no model of this server.
            api: ``tfs`` or ``v2``.
            code: 0 or a :class:`.status.Code`.
            status: of HTTP; None: it was a call of gRPC.
        """
        from opentelemetry.trace import StatusCode, set_span_in_context

        now = time.monotonic()
        span, outcome = self._span, "OK" if not code else Code(code).name
        if self._left is not None:
            self._parts.append(("encode", self._left, self._handled or now, {}))
        inside = set_span_in_context(span)
        within = inside
        for name, began, ended, attributes in self._parts:
            one = self._tracer.start_span(
                name,
                context=within if name == "run" else inside,
                attributes=attributes,
                start_time=self._at(began),
            )
            one.end(self._at(ended))
            within = set_span_in_context(one) if name == "batch" else inside
        if model is not None:
            span.set_attribute("strongroom.model.name", model[0])
            if model[1]:
                span.set_attribute("strongroom.model.version", model[1])
        span.set_attribute("strongroom.api", api)
        span.set_attribute("strongroom.code", outcome)
        if status is None:
            span.set_attribute("rpc.grpc.status_code", code)
        else:
            span.set_attribute("http.response.status_code", status)
        if code in _FAULTS if status is None else status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(self._at(now))

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._offset


class Tracing:
    """Where traces begin, and where they are sent from.

    Args:
        provider: of OpenTelemetry's SDK.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.propagate import extract, get_global_textmap

        self._provider = provider
        self._tracer = provider.get_tracer("strongroom", release("strongroom"))
        self._extract = extract
        # Baggage is for those who call others.
        self._fields = frozenset(get_global_textmap().fields) - {"baggage"}

    def of_http(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Trace | None:
        """A request begins; None: it is not traced.

        Args:
            method, path: of it; of the path only what is the protocol's is said.
            headers: names in lower case.
        """
        if path.startswith("/v2/health/"):
            return None  # somebody asks every few seconds
        carrier = {
            name: value.decode("latin-1")
            for name in self._fields
            if (value := headers.get(name.encode())) is not None
        }
        route = _route(path)
        attributes = {"http.request.method": method, "http.route": route}
        return self._begin(f"{method} {route}", carrier, attributes)

    def of_grpc(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Trace | None:
        """A call begins, or a message of a stream; None: it is not traced.

        Args:
            method: with its service.
            metadata: of the call.
        """
        carrier = {
            name: value for name, value in metadata if name in self._fields and isinstance(value, str)
        }
        service, _, name = method[1:].partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        return self._begin(method[1:], carrier, attributes)

    def _begin(self, name: str, carrier: Mapping[str, str], attributes: dict[str, Any]) -> Trace | None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        began = time.monotonic()
        offset = time.time_ns() - int(began * 1e9)
        span = self._tracer.start_span(
            name,
            context=self._extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=int(began * 1e9) + offset,
        )
        return Trace(self._tracer, span, began, offset) if span.is_recording() else None

    def close(self) -> None:
        """Send what is there, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def _route(path: str) -> str:
    """What of a path is the protocol's: names that callers make up are not for others to sort by."""
    match = _ROUTE.fullmatch(path)
    if match is None:
        return path if path in _OWN else f"/{path[1:3]}"
    choice = match["choice"] or ""
    if choice:
        choice = "/versions/{version}" if choice.startswith("/v") else "/labels/{label}"
    rest = match["rest"] if match["rest"] in _RESTS else ""
    return f"/{match['api']}/{match['repository'] or ''}models/{{model}}{choice}{rest}"


def open_tracing(endpoint: str | None, environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Traces to a collector, over OTLP; None where nobody wants them.

    Args:
        endpoint: URL of the collector; None is what the environment says, in OpenTelemetry's variables.

    Raises:
        UsageError: it is no such URL, or the environment asks for what is not spoken here.
        MissingExtra: the packages are not there.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if endpoint is None and (exporter == "none" or not any(map(environ.get, _ENDPOINTS))):
        return None
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), _HTTP)
    if exporter not in ("", "none", "otlp") or protocol != _HTTP:
        raise UsageError(
            "Traces are sent over OTLP with HTTP and nothing else.",
            hint=f"Set OTEL_TRACES_EXPORTER=otlp and {_PROTOCOLS[1]}={_HTTP}; the port is 4318 mostly.",
        )
    if endpoint is not None and not _URL.fullmatch(endpoint):
        raise UsageError(
            "The endpoint of OTLP is no URL of a collector.", hint="Such as http://localhost:4318"
        )
    if not all(map(_is_there, _PACKAGES)):
        raise MissingExtra("Tracing", "otel")
    return Tracing(_provider(endpoint, environ))


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it lies in
        return False


def _provider(endpoint: str | None, environ: Mapping[str, str]) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):  # type: ignore[misc,unused-ignore]
        """Of a generator of their own: a model that seeds the common one would make all traces one."""

        def __init__(self) -> None:
            self._random = random.SystemRandom()

        def generate_span_id(self) -> int:
            return self._random.randrange(1, 1 << 64)

        def generate_trace_id(self) -> int:
            return self._random.randrange(1, 1 << 128)

    if endpoint is not None and not endpoint.endswith(_PATH):
        endpoint = endpoint.rstrip("/") + _PATH
    resource = Resource.create({"service.version": release("strongroom")})
    if not environ.get("OTEL_SERVICE_NAME") and "service.name" not in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        resource = resource.merge(Resource({"service.name": "strongroom"}))
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    try:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    except ValueError as error:
        raise UsageError(f"OpenTelemetry does not take its variables: {error}") from None
    return provider
