"""The gRPC port: a server with threads, health and reflection."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2,
)

from strongroom.errors import Unavailable
from strongroom.serving.access_log import AccessLog
from strongroom.serving.clients import Access
from strongroom.serving.grpc_calls import caller
from strongroom.serving.grpc_guard import Guard
from strongroom.serving.grpc_loop import serve
from strongroom.serving.grpc_threads import Threads
from strongroom.serving.messages import pool
from strongroom.serving.metrics import Metrics
from strongroom.serving.settings import Listen, RequestLimits
from strongroom.serving.tls import Certificates
from strongroom.serving.tracing import Tracing

__all__ = ["GrpcServer"]

_METADATA: Final = 32 << 10
_STREAMS: Final = 2048
"""Calls of one connection, those included whose answers are in memory because the client does not read them."""

_CONNECTION_AGE: Final = 3_600_000
"""Milliseconds after which a client connects, and shows its certificate, anew."""


class _Health(health.HealthServicer):  # type: ignore[misc]  # untyped, as above
    """Health of a model is for who may use it: for others there is no such model."""

    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  its name
        return super().Check(self._seen(request, context), context)

    def Watch(self, request: Any, context: Any, *more: Any) -> Any:  # noqa: N802  likewise
        return super().Watch(self._seen(request, context), context, *more)

    def _seen(self, request: Any, context: Any) -> Any:
        name = request.service
        if self._access.ruled(name) and not self._access.sees(caller(context), name):
            # No model has such a name.
            return health_pb2.HealthCheckRequest(service=f"/{name}")
        return request


class GrpcServer:
    """The server and its health.

    Args:
        handlers: of the protocols.
        listen, limits: see there.
        certificates: None speaks without TLS.
        access: who may use what.
        metrics, access_log: where it is written down.
        tracing: None traces nothing.

    Raises:
        Unavailable: somebody else listens there.

    Attributes:
        port: that it listens at.
    """

    def __init__(
        self,
        handlers: Sequence[Any],
        listen: Listen,
        limits: RequestLimits,
        certificates: Certificates | None,
        access: Access,
        metrics: Metrics,
        access_log: AccessLog,
        tracing: Tracing | None = None,
    ) -> None:
        self._health = _Health(access)
        self._said: dict[str, int] = {}
        threads = Threads(
            limits.grpc_threads,
            limits.grpc_waiting,
            limits.body_seconds,
            max(limits.bytes, limits.bytes_held),
        )
        tls = certificates is not None
        self._threads = threads
        self._server = grpc.server(
            threads,
            handlers=(Guard(handlers, threads, access, metrics, access_log, tracing, tls),),
            options=_options(listen, limits),
            maximum_concurrent_rpcs=limits.grpc_threads + limits.grpc_waiting,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._reflect([one.service_name() for one in handlers])
        self.health({})
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        address = f"{host}:{listen.grpc_port}"
        try:
            if certificates is None:
                self.port = self._server.add_insecure_port(address)
            else:
                credentials = certificates.grpc_credentials()
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise Unavailable(
                f"Cannot listen at {listen.host}, port {listen.grpc_port}, for gRPC.",
                hint="Another program may listen there, which ss -ltnp shows; --grpc-port takes another.",
            ) from None

    def _reflect(self, services: list[str]) -> None:
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        for module in (health_pb2, reflection_pb2):
            pool().AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        reflection.enable_server_reflection([*services, *names], self._server, pool=pool())

    def start(self) -> None:
        """Begin to answer."""
        serve(self._server, self._threads)

    def health(self, models: dict[str, bool], ready: bool = False) -> None:
        """Say which models answer, and whether all do."""
        states = health_pb2.HealthCheckResponse
        now = {"": ready, **models}
        found = dict.fromkeys(self._said, states.SERVICE_UNKNOWN)
        found |= {name: states.SERVING if one else states.NOT_SERVING for name, one in now.items()}
        # Who hears that all answer may ask for each: the whole is said last.
        for name, state in sorted(found.items(), reverse=True):
            if self._said.get(name) != state:  # who watches is told of changes
                self._health.set(name, state)
        self._said = found

    def drain(self) -> None:
        """Tell who asks for the health that nobody shall come any more."""
        self._health.enter_graceful_shutdown()

    def stop(self, seconds: float) -> threading.Event:
        """Accept nothing new, and let calls end for at most so long; the event is set afterwards."""
        stopped: threading.Event = self._server.stop(seconds)
        return stopped


def _options(listen: Listen, limits: RequestLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _METADATA),
        ("grpc.max_allowed_incoming_connections", listen.connections),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_age_ms", _CONNECTION_AGE),
        ("grpc.max_connection_age_grace_ms", 600_000),
        # A client that is away without a word is noticed after a minute and a half.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
    ]
