"""What one address, one connection and one request may use of the server.

The limits are kept in the memory of one process: they protect that process. With several workers or
replicas an address gets as many times as much, which is what the protection needs, and no more.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from strongroom.keyserver.errors_http import HttpError

__all__ = ["MAX_ADDRESSES", "LimitedBody", "RateLimit", "too_large"]

MAX_ADDRESSES: Final = 20_000
"""Addresses whose budgets are remembered, at 200 bytes each; the one unseen longest is forgotten."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class RateLimit:
    """A token bucket for each source address.

    Args:
        rate: requests a second that an address may make for ever.
        burst: requests that it may make at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str, now: float) -> None:
        """Count one request at ``now`` (seconds of a monotonic clock).

        Raises:
            HttpError: 429, with the seconds to wait.
        """
        tokens, then = self._buckets.pop(source, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if not allowed:
            raise HttpError(
                429,
                "too-many-requests",
                "This address asks too often.",
                hint="Wait as long as Retry-After says, and add some jitter.",
                retry_after=max(1, math.ceil((1 - tokens) / self._rate)),
            )


class LimitedBody:
    """``receive`` of an ASGI request whose body has at most ``limit`` bytes and ends within ``seconds``.

    The time runs from when the body is first asked for, over all of it.

    Attributes:
        complete: all of the body has been taken, or there is none.
    """

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, limit: int, seconds: float
    ) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 12 or int(declared) > limit:
            raise too_large(limit)
        self.complete = declared == b"0" and b"transfer-encoding" not in headers
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._seen = 0
        self._deadline: float | None = None

    async def __call__(self) -> MutableMapping[str, Any]:
        if self.complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HttpError(408, "too-slow", "The request took too long to arrive.") from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._seen > self._limit:
                raise too_large(self._limit)
        return message


def too_large(limit: int) -> HttpError:
    """413: the body has more than ``limit`` bytes."""
    return HttpError(413, "too-large", f"The body has more than {limit} bytes.")
