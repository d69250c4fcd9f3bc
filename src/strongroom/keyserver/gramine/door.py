"""The port for clients of Gramine: listening, what connections share, the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from strongroom.keyserver.gramine.connection import Connection, Place, Provisions
from strongroom.keyserver.gramine.contexts import ServerCertificate
from strongroom.keyserver.limits import RateLimit
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.settings import Limits, Tls
from strongroom.web.addresses import ConnectionCount

__all__ = ["Door"]


class Door:
    """One process's part of the door.

    Its connections are counted apart from those of the other port, with the same limits: neither takes
    room from the other.

    Args:
        tls: the certificate of the server.
        limits: of connections, rate and time.
        provisioning: decides.
        metrics: what is counted where.
        sockets: that listen.

    Raises:
        InvalidKey, NotFound, StorageError: the certificate cannot be used.
    """

    def __init__(
        self,
        tls: Tls,
        limits: Limits,
        provisioning: Provisions,
        metrics: Metrics,
        sockets: Sequence[socket.socket],
    ) -> None:
        self._certificate = ServerCertificate(tls)
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._place = Place(
            context=self._certificate.context,
            provisioning=provisioning,
            limits=limits,
            addresses=ConnectionCount(limits.connections_per_address, limits.connections),
            rate=RateLimit(limits.requests_per_second, limits.burst),
            refused=metrics.refused_early,
            tasks=set(),
            connections=set(),
        )

    def reload(self) -> None:
        """Read the certificate again; see :meth:`.ServerCertificate.reload`."""
        self._certificate.reload()

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._servers = [
            await loop.create_server(lambda: Connection(self._place), sock=one) for one in self._sockets
        ]

    async def close(self, seconds: float) -> None:
        """Take nobody in any more, and end.

        Args:
            seconds: for what is being decided to be answered.
        """
        for server in self._servers:
            server.close()
        for connection in list(self._place.connections):
            if connection.is_idle:
                connection.abort()
        if self._place.tasks:
            await asyncio.wait(self._place.tasks, timeout=seconds)
        for connection in list(self._place.connections):
            connection.abort()
        self._certificate.close()
