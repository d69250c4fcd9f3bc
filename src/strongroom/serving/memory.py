"""Memory of requests stays for the next ones, and that of models goes back to the system."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from typing import Any, Final

__all__ = ["keep_for_requests", "trim"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

_LARGEST: Final = 32 << 20
"""Bytes from which on each block is the system's: the most that glibc takes for it."""

_CHOICES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_for_requests() -> None:
    """Have glibc keep what one request leaves for the next; where there is another library, do nothing.

    Otherwise it gives the system back what is free at the end of its memory, of tensors of 600 KB each
    time: there were 440 page faults in each request for the three copies that gRPC makes, 1 ms of 2.4.
    These are the bounds to which glibc comes by itself, once a block of 32 MiB has been freed. Whoever has
    set others in the environment keeps them.
    """
    if any(one in os.environ for one in _CHOICES):
        return
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def trim() -> None:
    """Have glibc give back what it keeps; where there is another library, do nothing.

    It keeps what large models leave behind, in an arena for each thread that has loaded one: after
    swaps of a model of 24 MB the server held 134 MB, and with this 28 to 52 MB.
    """
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _glibc(name: str) -> Any:
    with suppress(AttributeError, OSError):
        return getattr(ctypes.CDLL(None), name)
    return None
