"""Ports of servers that must know theirs before they start: it stands in a profile, or nothing says which it got.

And whether somebody listens at a Unix socket.
"""

from __future__ import annotations

import atexit
import socket
from pathlib import Path

_HELD: list[socket.socket] = []


@atexit.register
def _let_go() -> None:
    for one in _HELD:
        one.close()


def held_port() -> int:
    """A port that nobody else is given while this process lives.

    A socket that does not listen holds it, at all addresses and with SO_REUSEADDR: servers set that too, and
    may listen there as often as they like. The system gives the port to no connection, and to nobody who asks
    for any.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    held = socket.socket(family)
    _HELD.append(held)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    held.bind(("", 0))
    return int(held.getsockname()[1])


_LISTENS = "00010000"


def listens(path: Path) -> bool:
    """Whether somebody listens at a Unix socket, by the kernel's list: to connect may use up the one place there."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(one[-1] == str(path) and one[3] == _LISTENS for one in sockets)
