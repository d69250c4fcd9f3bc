"""Numbers for Prometheus; labels come from small fixed sets, never from what a caller sent.

With several workers each writes its numbers into the directory that ``PROMETHEUS_MULTIPROC_DIR``
names, which must be set before this module is imported; ``/metrics`` adds them up.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

from strongroom.attest.registry import KINDS

__all__ = ["MULTIPROCESS", "Metrics"]

MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS: Final = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.125,
    0.25,
    0.5,
    1,
    2,
    5,
    10,
)
_KINDS: Final = frozenset({*KINDS, "mtls", "oidc", "kubernetes", "none"})


disable_created_metrics()  # type: ignore[no-untyped-call]  # as many numbers again, which nobody reads


def _kind(kind: str) -> str:
    return kind if kind in _KINDS else "other"


class Metrics:
    """The numbers of one process of the server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._make(
            Counter,
            "requests",
            "Requests by path template, method and status.",
            "path",
            "method",
            "status",
        )
        self._request_seconds = self._make(
            Histogram, "request_seconds", "Time from request to answer.", "path", buckets=_SECONDS
        )
        self._early = self._make(
            Counter,
            "refused_early",
            "Requests and connections refused before anything was looked up.",
            "why",
        )
        self._releases = self._make(
            Counter,
            "releases",
            "Keys asked for, by outcome (released, or the code of the refusal) and kind of evidence.",
            "outcome",
            "kind",
        )
        self._verify_seconds = self._make(
            Histogram,
            "verify_seconds",
            "Time to verify a request's evidence.",
            "kind",
            buckets=_SECONDS,
        )
        self._commit_seconds = self._make(
            Histogram, "commit_seconds", "Time until a release was durable.", buckets=_SECONDS
        )
        self._committing = self._make(
            Gauge, "commits_waiting", "Releases that wait to be durable.", multiprocess_mode="livesum"
        )
        self._leases = self._make(
            Gauge, "leases", "Leases that have not ended, in the database.", multiprocess_mode="livemax"
        )
        # Found once: to look for a label takes as long as to count.
        self._of: dict[tuple[str, str, int | None], tuple[Counter, Histogram]] = {}
        self._outcome: dict[tuple[str, str], Counter] = {}
        self._verified: dict[str, Histogram] = {}
        if not os.environ.get(MULTIPROCESS):
            ProcessCollector(registry=self._registry)

    def _make(
        self, kind: Callable[..., Any], name: str, text: str, *labels: str, **options: Any
    ) -> Any:
        return kind(f"strongroom_{name}", text, labels, registry=self._registry, **options)

    def request(self, path: str, method: str, status: int | None, seconds: float) -> None:
        """Count one request.

        Args:
            path: the template of its path.
            method: of HTTP.
            status: of the answer; None where there was none.
            seconds: until the answer was sent.
        """
        found = self._of.get((path, method, status))
        if found is None:
            label = "none" if status is None else str(status)
            found = self._requests.labels(path, method, label), self._request_seconds.labels(path)
            self._of[path, method, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def refused_early(self, why: str) -> None:
        """Count one request, or connection, that was refused for its rate, size or slowness."""
        self._early.labels(why).inc()

    def outcome(self, code: str, kind: str, count: int = 1) -> None:
        """Count keys that were asked for: ``released``, or the code of the refusal."""
        found = self._outcome.get((code, kind))
        if found is None:
            found = self._outcome[code, kind] = self._releases.labels(code, _kind(kind))
        found.inc(count)

    def verified(self, kind: str, seconds: float) -> None:
        """Note the time that verifying one request's evidence took."""
        found = self._verified.get(kind)
        if found is None:
            found = self._verified[kind] = self._verify_seconds.labels(_kind(kind))
        found.observe(seconds)

    def commit_waits(self) -> None:
        """A release was handed to the database."""
        self._committing.inc()

    def committed(self, seconds: float) -> None:
        """It was answered, ``seconds`` later."""
        self._committing.dec()
        self._commit_seconds.observe(seconds)

    def leases(self, count: int) -> None:
        """Note how many leases there are."""
        self._leases.set(count)

    def text(self) -> tuple[bytes, str]:
        """The numbers of all workers of this server, and their content type."""
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
