"""The threads of a mount: as few as keep up with the kernel, and more as soon as some of them wait."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["GONE", "Workers"]

_MOST_THREADS: Final = 128
"""A file whose place does not answer holds some of them, each up to the time limit of its requests."""

_IDLE_THREADS: Final = 4
"""So many at most wait for requests."""

_SLOW: Final = 0.005
"""Seconds. To decrypt a block and to hand it over takes 0.001; who takes longer waits for a disk or the network."""

GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
"""What reads and writes of the device give when there is no connection any more."""


class Workers:
    """Threads that read requests and handle them, until the connection ends.

    The kernel wakes a thread for each request that it has, so that four that wait share what one does
    alone, and hand the interpreter's lock about: 1 GiB takes 0.58 s of CPU by one thread, 0.68 s by
    four. Of those that were quick only ``enough`` wait for the next request. A request that nobody takes
    for a moment gets a thread of its own.

    Args:
        device: descriptor to read requests from.
        size: bytes of the longest request.
        handle: is called with each, and raises nothing.
        enough: threads, where none of them has to wait.

    Attributes:
        ended: a descriptor that can be read when the connection has ended; who joins closes it.
    """

    def __init__(self, device: int, size: int, handle: Callable[[bytes], None], enough: int) -> None:
        self.ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._device = device
        self._size = size
        self._handle = handle
        self._enough = max(1, min(enough, _IDLE_THREADS))
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._taken = 0

    def start(self) -> None:
        """Begin to read."""
        self._start(self._work)
        self._start(self._watch)

    def join(self, seconds: float) -> bool:
        """Wait for the threads, which end with the connection; whether they have."""
        end = time.monotonic() + seconds
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return True
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False

    def _start(self, target: Callable[[], None]) -> None:
        def run() -> None:
            try:
                target()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="strongroom-mount", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more are given; those that there are go on
            with self._lock:
                self._threads.discard(thread)

    def _work(self) -> None:
        with self._lock:
            self._idle += 1
        while True:
            try:
                raw = os.read(self._device, self._size)
            except OSError as error:
                if error.errno in GONE:
                    os.eventfd_write(self.ended, 1)
                    return
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:  # given up meanwhile
                    continue
                raise
            with self._lock:
                self._idle -= 1
                self._taken += 1
            start = time.monotonic()
            self._handle(raw)
            slow = time.monotonic() - start > _SLOW
            with self._lock:
                if self._idle >= (_IDLE_THREADS if slow else self._enough):
                    return
                self._idle += 1

    def _watch(self) -> None:
        """Start another thread when all have been busy for a while, and somebody waits."""
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        while all(events == select.POLLIN for _, events in poll.poll()):
            taken = self._taken
            time.sleep(_SLOW)
            with self._lock:
                stuck = self._idle == 0 and self._taken == taken
                stuck = stuck and len(self._threads) < _MOST_THREADS
            if stuck and poll.poll(0):
                self._start(self._work)
