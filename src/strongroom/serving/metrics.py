"""Numbers for Prometheus. Labels are names of this server's models, never what a caller made up."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from strongroom.serving.counts import SECONDS, Counts
from strongroom.serving.servable import Statistics
from strongroom.serving.states import State, VersionStatus
from strongroom.serving.status import Code, RequestError

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "Watched"]

_ENDED: Final = 16
"""Versions of a model that have ended and still have numbers: who looks sees them once more, and a model
that is renewed every hour does not fill the memory."""

_Asked = tuple[tuple[str, int] | None, str, str]
"""Model and version, protocol, transport."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # as many numbers again, which nobody reads


class Watched(Protocol):
    """What of the engine is looked at."""

    def names(self) -> list[str]: ...
    def status(self, model: str) -> list[VersionStatus]: ...
    def statistics(self, model: str) -> list[tuple[int, Statistics]]: ...


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = _Requests()
        self._registry.register(self._requests)
        self._early = self._make(
            Counter, "refused_early", "Connections and requests that came to no protocol.", "why"
        )
        self._loads = self._make(
            Counter, "loads", "Versions of models that were loaded, and that were not.", "model", "code"
        )
        self._ended: dict[str, OrderedDict[int, None]] = {}
        ProcessCollector(registry=self._registry)

    def _make(self, kind: Callable[..., Any], name: str, text: str, *labels: str, **more: Any) -> Any:
        return kind(f"strongroom_serving_{name}", text, labels, registry=self._registry, **more)

    def watch(self, engine: Watched) -> None:
        """Say of an engine's models what it counts itself."""
        self._registry.register(_Models(engine))

    def request(
        self, model: tuple[str, int] | None, api: str, transport: str, code: int, seconds: float
    ) -> None:
        """Count one request.

        Args:
            model: name and version; version 0 where none answered; None: no model of this server.
            api: ``tfs`` or ``v2``.
            transport: ``rest`` or ``grpc``.
            code: 0 or a :class:`.status.Code`.
            seconds: that it took.
        """
        self._requests.add((model, api, transport), code, seconds)

    def refused_early(self, why: str) -> None:
        """Count what was refused for its rate, size, form or slowness."""
        self._early.labels(why).inc()

    def told(self, model: str, status: VersionStatus) -> None:
        """Count what became of a version."""
        if status.state is State.AVAILABLE:
            self._loads.labels(model, "OK").inc()
        elif status.code:
            self._loads.labels(model, Code(status.code).name).inc()
        self._forget(model, status)

    def _forget(self, model: str, status: VersionStatus) -> None:
        """Keep the numbers of few versions that have ended."""
        ended = self._ended.setdefault(model, OrderedDict())
        ended.pop(status.version, None)
        if status.state is State.END:
            ended[status.version] = None
        while len(ended) > _ENDED:
            version, _ = ended.popitem(last=False)
            self._requests.forget((model, version))

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)


class _Requests(Collector):
    """Requests, by what they asked and how it ended; prometheus_client takes 3 µs to count one, this 1."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[_Asked, tuple[Counts, dict[int, int]]] = {}

    def add(self, asked: _Asked, code: int, seconds: float) -> None:
        with self._lock:
            found = self._of.get(asked)
            if found is None:
                found = self._of[asked] = Counts(SECONDS), {}
            counts, codes = found
            counts.add(seconds)
            codes[code] = codes.get(code, 0) + 1

    def forget(self, model: tuple[str, int]) -> None:
        with self._lock:
            self._of = {asked: one for asked, one in self._of.items() if asked[0] != model}

    def collect(self) -> Iterable[Metric]:
        labels = ("model", "version", "api", "transport")
        requests = CounterMetricFamily(
            "strongroom_serving_requests",
            "Requests by model, protocol and outcome (a code of gRPC; OK).",
            labels=(*labels, "code"),
        )
        seconds = HistogramMetricFamily(
            "strongroom_serving_request_seconds",
            "Time from a request that is there whole to its answer.",
            labels=labels,
        )
        with self._lock:
            found = [(asked, one.copy(), codes.copy()) for asked, (one, codes) in self._of.items()]
        for (model, api, transport), counts, codes in found:
            name, version = model or ("", 0)
            of = [name, str(version or ""), api, transport]
            seconds.add_metric(of, counts.buckets(), counts.total)
            for code, number in codes.items():
                requests.add_metric([*of, Code(code).name if code else "OK"], number)
        return requests, seconds


class _Models(Collector):
    """What the loaded versions count themselves."""

    def __init__(self, engine: Watched) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        found = {
            name: kind(f"strongroom_serving_{name}", text, labels=("model", "version"))
            for name, (kind, text) in _FAMILIES.items()
        }
        for model in self._engine.names():
            try:
                for status in self._engine.status(model):
                    found["version_state"].add_metric([model, str(status.version)], status.state)
                for version, one in self._engine.statistics(model):
                    of = [model, str(version)]
                    for name, counts in (
                        ("batch_size", one.batches),
                        ("run_seconds", one.running),
                        ("queue_seconds", one.queued),
                    ):
                        found[name].add_metric(of, counts.buckets(), counts.total)
                    found["queue_length"].add_metric(of, one.waiting)
                    if one.cache is not None:
                        for name in ("hits", "misses", "evicted", "entries", "bytes"):
                            found[f"cache_{name}"].add_metric(of, getattr(one.cache, name))
            except RequestError:
                continue  # gone meanwhile
        return found.values()


_FAMILIES: Final[Mapping[str, tuple[Any, str]]] = {
    "batch_size": (
        HistogramMetricFamily,
        "Examples in a run of the model; fewer runs than requests where they were put together.",
    ),
    "run_seconds": (HistogramMetricFamily, "Time of a run of the model."),
    "queue_seconds": (HistogramMetricFamily, "Time that a request waited for its run."),
    "queue_length": (GaugeMetricFamily, "Requests that wait for the model."),
    "cache_hits": (
        CounterMetricFamily,
        "Requests that were answered from the cache, or by what another was waiting for.",
    ),
    "cache_misses": (CounterMetricFamily, "Requests for which the model of a cache was asked."),
    "cache_evicted": (CounterMetricFamily, "Answers that made room for others."),
    "cache_entries": (GaugeMetricFamily, "Answers in the cache."),
    "cache_bytes": (GaugeMetricFamily, "Bytes that they take."),
    "version_state": (
        GaugeMetricFamily,
        "State of a version, in TensorFlow Serving's numbers; 30 is available.",
    ),
}
