"""How fast a model opens here: read, decrypt, load; with the memory that each step takes."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import NotFound, os_errors
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.model.location import local
from strongroom.model.memory import allocate
from strongroom.model.parallel import for_each
from strongroom.model.reader import SealedModel, locate
from strongroom.model.storage import Source

__all__ = ["Measurement", "drop_from_cache", "load_all", "measure", "read_all", "stored_files"]

_PIECE: Final = 1 << 20
_SAMPLE: Final = 0.002
"""Seconds between two looks at the resident memory; the kernel's own peak cannot be reset by a
process that is kept out of core dumps."""


@dataclass(frozen=True)
class Measurement:
    """One step, several times.

    Attributes:
        step: its name.
        size: bytes that it gives.
        seconds: of each run.
        peak: resident bytes above those before the run, the largest of all runs.
    """

    step: str
    size: int
    seconds: Sequence[float]
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Bytes per second of the median run."""
        return self.size / self.median if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "size": self.size,
            "seconds": [round(value, 6) for value in self.seconds],
            "median": round(self.median, 6),
            "bytes_per_second": round(self.rate),
            "peak_memory": self.peak,
        }


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The largest resident size of this process while the block runs."""

    def __enter__(self) -> _Peak:
        self._before = self._highest = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE):
            self._highest = max(self._highest, _resident())

    def __exit__(self, *exc_info: object) -> None:
        self._highest = max(self._highest, _resident())
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._highest - self._before


def measure(
    step: str, runs: int, work: Callable[[], tuple[object, int]], before: Callable[[], None]
) -> Measurement:
    """Time ``work``, which returns what it made and how many bytes that is; ``before`` is not timed."""
    seconds, peak, size = [], 0, 0
    for _ in range(runs):
        before()
        with _Peak() as memory:
            start = time.perf_counter()
            made, size = work()
            seconds.append(time.perf_counter() - start)
        peak = max(peak, memory.bytes)
        del made
    return Measurement(step, size, seconds, peak)


def stored_files(location: str) -> list[Callable[[], Source]]:
    """How to open each file of a sealed model as it lies there, the manifest too."""
    source, tree = locate(location)
    if tree is None:
        return [lambda: source]
    source.close()
    names = sorted(tree.sizes() or {MANIFEST + SEALED_SUFFIX: 0})

    def opener(name: str) -> Callable[[], Source]:
        return lambda: tree.source(name)

    return [opener(name) for name in names]


def read_all(location: str) -> tuple[object, int]:
    """Read every stored byte into fresh memory, by the threads that decryption would use."""
    made, size = [], 0
    for open_file in stored_files(location):
        source = open_file()
        try:
            memory = allocate(source.size)
            _read(source, memory)
        finally:
            source.close()
        made.append(memory)
        size += source.size
    return made, size


def _read(source: Source, memory: memoryview) -> None:
    request = max(_PIECE, source.request)

    def work(number: int) -> None:
        begin = number * request
        source.read_into(begin, memory[begin : begin + request])

    for_each(-(-source.size // request), work, source.threads)


def load_all(open_model: Callable[[], SealedModel]) -> tuple[object, int]:
    """Open the model and decrypt every file into fresh memory."""
    with open_model() as model:
        return [model.load(path) for path in model.files], model.size


def drop_from_cache(location: str) -> None:
    """Drop the files below a local path from the page cache.

    Raises:
        NotFound: nothing is there.
    """
    location = os.fspath(local(location))
    if not os.path.exists(location):
        raise NotFound(f"{location}: no such file or directory.")
    paths = [location]
    if os.path.isdir(location):
        paths = [os.path.join(root, name) for root, _, names in os.walk(location) for name in names]
    for path in paths:
        with os_errors(path), open(path, "rb") as file:
            os.fsync(file.fileno())  # dirty pages stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
