"""Where servers listen."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from typing import Final

from strongroom.errors import Unavailable, UsageError

__all__ = ["allow_many_descriptors", "bind"]

_BACKLOG: Final = 2048


def bind(host: str, port: int, what: str = "listen.host") -> list[socket.socket]:
    """Sockets for all addresses of the host.

    Args:
        host: name or address.
        port: 0 takes one that is free.
        what: the name of the option that ``host`` was given by.

    Raises:
        UsageError: the name has no address.
        Unavailable: somebody else listens there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise UsageError(f"{what} {host} is no address of this machine.") from None
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        one = socket.socket(family, kind, protocol)
        sockets.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # Port 0 is chosen once, for all addresses of the name.
            one.bind((address[0], port, *address[2:]))
            one.listen(_BACKLOG)
        except OSError as error:
            for each in sockets:
                each.close()
            reason = os.strerror(error.errno or 0).lower()
            taken = error.errno == errno.EADDRINUSE
            raise Unavailable(
                f"Cannot listen at {host}, port {port}: {reason}.",
                hint="ss -ltnp shows who listens there; take another port." if taken else None,
            ) from error
        port = one.getsockname()[1]
    return sockets


def allow_many_descriptors() -> None:
    """A descriptor for each connection: the soft limit of most systems is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
