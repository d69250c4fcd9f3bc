"""What one address, one connection and one request may use of the server.

The limits are kept in the memory of one process: they protect that process. With several workers or
replicas an address gets as many times as much, which is what the protection needs, and no more.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from strongroom.keyserver.errors_http import HttpError

__all__ = [
    "MAX_ADDRESSES",
    "MAX_HEAD",
    "ConnectionCount",
    "LimitedBody",
    "RateLimit",
    "source_group",
    "too_large",
]

MAX_ADDRESSES: Final = 20_000
"""Addresses whose budgets are remembered, at 200 bytes each; the one unseen longest is forgotten."""

MAX_HEAD: Final = 32 << 10
"""Bytes of a request line and headers: a token of Kubernetes has some 1.5 KB, others up to 8 KB."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@functools.lru_cache(4096)
def source_group(host: str) -> str:
    """Whom an address counts for: itself, or its /64 network for IPv6, which one machine has whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


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


class ConnectionCount:
    """How many connections are open.

    Args:
        per_address: that one address may hold.
        total: of all of them.
    """

    def __init__(self, per_address: int, total: int) -> None:
        self._per_address = per_address
        self._left = total
        self._open: dict[str, int] = {}

    def enter(self, source: str) -> bool:
        """Count one more; False if that is one too many, which then is not counted."""
        count = self._open.get(source, 0)
        if count >= self._per_address or not self._left:
            return False
        self._open[source] = count + 1
        self._left -= 1
        return True

    def leave(self, source: str) -> None:
        """Count one less."""
        self._left += 1
        count = self._open[source] - 1
        if count:
            self._open[source] = count
        else:
            del self._open[source]


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
