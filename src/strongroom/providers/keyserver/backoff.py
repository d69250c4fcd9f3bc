"""How long to wait before asking again: exponential, with full jitter.

A fleet that lost its server at one moment must not come back at one moment
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_RETRY_AFTER", "delay", "retry_after_seconds"]

_FIRST: Final = 0.25
_LONGEST: Final = 8.0
MAX_RETRY_AFTER: Final = 60.0
"""Seconds: a server that wants more is down for whoever waits for a key."""


def retry_after_seconds(header: str | None) -> float:
    """What ``Retry-After`` says in seconds, bounded; 0 for none, for a date, and for nonsense."""
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 9:
        return 0.0
    return min(float(header), MAX_RETRY_AFTER)


def delay(attempt: int, chance: float, retry_after: float = 0.0) -> float:
    """Seconds to wait after failure number ``attempt``, from 0 on.

    Args:
        chance: uniform in [0, 1): the jitter.
        retry_after: seconds that the server asked for; never less is waited.
    """
    return retry_after + chance * min(_LONGEST, _FIRST * 2.0 ** min(attempt, 16))
