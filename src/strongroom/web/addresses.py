"""Whom a connection counts for, and how many there are."""

from __future__ import annotations

import functools
import ipaddress

__all__ = ["ConnectionCount", "source_group"]


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
