"""Connections of the key server, and what they bring: the client's certificate, where there is one."""

from __future__ import annotations

import asyncio

from strongroom.keyserver.connections import DirectProtocol
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.settings import Limits
from strongroom.keyserver.tls_contexts import (
    CLIENT_CERTIFICATE,
    ClientCertificate,
    client_certificate,
)
from strongroom.web.addresses import ConnectionCount
from strongroom.web.protocol import HttpProtocol

__all__ = ["CLIENT_CERTIFICATE", "protocol_class"]


def protocol_class(limits: Limits, metrics: Metrics) -> type[HttpProtocol]:
    """The HTTP/1.1 protocol of one process, within ``limits``."""

    class Protocol(DirectProtocol):
        addresses = ConnectionCount(limits.connections_per_address, limits.connections)
        head_seconds = limits.head_seconds
        answer_seconds = limits.answer_seconds

        def connected(self, transport: asyncio.Transport) -> ClientCertificate | None:
            return client_certificate(transport.get_extra_info("ssl_object"))

        def refused(self, why: str) -> None:
            metrics.refused_early(why)

    return Protocol
