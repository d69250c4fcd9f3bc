"""What code under test leaves behind in this process, of which it has only a part.

Servers of other tests run in threads beside it, look into directories and close what they have; garbage of
other tests is collected. A count of descriptors or threads before and after says nothing then.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_SECONDS = 60.0
"""What somebody else has open for a moment is gone by then, and what was left is not."""


def open_files() -> list[str]:
    """What each descriptor leads to; sockets, pipes and files of memory have names of their own."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing, for one
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def _gone(left: Callable[[], object]) -> None:
    end = time.monotonic() + _SECONDS
    while found := left():
        assert time.monotonic() < end, found
        time.sleep(0.01)


@contextmanager
def no_file_left_open() -> Iterator[None]:
    """Fails where descriptors that were opened inside are open afterwards."""
    gc.collect()
    before = Counter(open_files())
    yield
    _gone(lambda: Counter(open_files()) - before)


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Fails where threads that were started inside run afterwards."""
    before = set(threading.enumerate())
    yield
    _gone(lambda: set(threading.enumerate()) - before)
