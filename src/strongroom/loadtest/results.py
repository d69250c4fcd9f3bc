"""What was measured."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from strongroom.loadtest.connection import Failed

__all__ = ["Outcome", "Recorder"]

_MAX_QUERIES: Final = 5_000_000
"""Of which every one is kept: 32 bytes each. Of a longer run the last ones."""
_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


class Recorder:
    """Takes down queries; costs some tenths of a microsecond each.

    Attributes:
        failures: how many, by code.
        first: failure of each code, with the words of the server.
    """

    def __init__(self, limit: int = _MAX_QUERIES) -> None:
        self._limit = limit
        self._begun, self._took = array("d"), array("d")
        self._task, self._index = array("q"), array("q")
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.first: dict[str, Failed] = {}
        self.delays = array("d")

    def add(self, task: int, index: int, begun: float, took: float) -> None:
        """One that was answered.

        Args:
            task: number of the connection.
            index: number of the query on it.
            begun: from when it counts, seconds of any clock.
            took: seconds.
        """
        at = self.answered % self._limit
        self.answered += 1
        if at == len(self._took):
            self._begun.append(begun)
            self._took.append(took)
            self._task.append(task)
            self._index.append(index)
        else:
            self._begun[at], self._took[at] = begun, took
            self._task[at], self._index[at] = task, index

    def fail(self, error: Failed) -> None:
        """One that was not answered."""
        self.failures[error.code] += 1
        self.first.setdefault(error.code, error)

    def queries(self) -> Iterator[tuple[int, int, float]]:
        """Connection, number on it, and seconds, of those that are kept, as they were answered."""
        split = self.answered % self._limit if self.answered > self._limit else 0
        order = [*range(split, len(self._took)), *range(split)]
        return ((self._task[at], self._index[at], self._took[at]) for at in order)

    def latencies(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds."""
        return np.array(self._took)

    def moments(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """From when each counts, on the clock of the run."""
        return np.array(self._begun)


@dataclass(frozen=True)
class Outcome:
    """A run.

    Attributes:
        begun: on the clock of the queries.
        seconds: from the first query to the last answer.
        cpu: seconds of processor time that this program took.
        unsent: queries of an open loop whose moment passed, and which were given up.
        interrupted: number of the signal that ended it early.
    """

    recorder: Recorder
    connections: int
    batch: int
    begun: float
    seconds: float
    cpu: float
    unsent: int = 0
    interrupted: int | None = None

    @property
    def failed(self) -> int:
        """Queries that were sent and not answered as asked."""
        return self.recorder.failures.total()

    def tps(self) -> float:
        """Examples answered a second."""
        return self.recorder.answered * self.batch / self.seconds if self.seconds > 0 else 0.0

    def statistics(self) -> dict[str, float]:
        """Of the latency, in ms; empty if nothing was answered. Percentiles are values that did occur."""
        took = self.recorder.latencies() * 1e3
        if not took.size:
            return {}
        values = np.quantile(took, list(_QUANTILES.values()), method="inverted_cdf")
        return {
            "mean": float(took.mean()),
            "min": float(took.min()),
            **{name: float(value) for name, value in zip(_QUANTILES, values, strict=True)},
            "max": float(took.max()),
        }

    def delay(self) -> float:
        """How late an open loop sent, ms, the 99th percentile; 0 in a closed one."""
        delays = np.array(self.recorder.delays)
        return float(np.quantile(delays, 0.99) * 1e3) if delays.size else 0.0
