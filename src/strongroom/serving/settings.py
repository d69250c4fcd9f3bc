"""What a server is told beside its models. Plain values, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from strongroom.errors import UsageError
from strongroom.serving.config import ClientRule, ModelConfig

__all__ = ["Listen", "RequestLimits", "Settings", "Tls"]

_URI: Final = re.compile(r"(?:https?|unix|env|file):")


@dataclass(frozen=True, slots=True)
class Tls:
    """Where certificate and key are; each file may be sealed.

    Attributes:
        certificate: PEM, with those above it.
        key: PEM, without a passphrase.
        client_ca: PEM of those who sign for clients; with it, nobody connects without a certificate.
        config: TensorFlow Serving's ``ssl.cfg``, in place of the three.
        open_with: source of the key of a sealed file; None is what the environment says. Where it does
            not open one, the key server that the file names is asked.
    """

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    config: str | None = None
    open_with: str | None = None

    def __post_init__(self) -> None:
        if self.config is not None:
            if self.certificate or self.key or self.client_ca:
                raise UsageError(
                    "An ssl.cfg has certificate, key and CA in it; no other is given with it."
                )
        elif not self.certificate or not self.key:
            raise UsageError(
                "TLS takes a certificate and its key.", hint="Give --tls-cert and --tls-key."
            )
        if self.key is not None and _URI.match(self.key):
            raise UsageError(
                "The key of TLS is a file, and no URL: key servers hold what opens files.",
                hint="Seal it for the key server, and give the sealed file: "
                "strongroom seal server.key -o server.key.sealed -r https://keys.example/server-tls",
            )


@dataclass(frozen=True, slots=True)
class Listen:
    """Where, and what becomes of connections.

    Attributes:
        host: name or address.
        rest_port, grpc_port: 0 takes any that is free.
        management_port: of HTTP without TLS, for health and numbers; None has no such port.
        management_host: where that one is; None is ``host``.
        connections: over HTTP, of all clients.
        connections_per_address: of one address, or IPv6 network of 64 bits.
        keep_alive: seconds for which an idle connection over HTTP stays.
        drain: seconds, from SIGTERM on, in which load balancers may turn away; requests are answered.
        stop: seconds that requests have after that.
    """

    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    management_port: int | None = None
    management_host: str | None = None
    connections: int = 10_000
    connections_per_address: int = 10_000
    keep_alive: int = 75
    drain: float = 5.0
    stop: float = 30.0

    def __post_init__(self) -> None:
        ports = [self.rest_port, self.grpc_port]
        if self.management_port is not None:
            ports.append(self.management_port)
        elif self.management_host is not None:
            raise UsageError("--management-host takes a --management-port.")
        if not all(0 <= port <= 65535 for port in ports):
            raise UsageError("A port is a number from 0 to 65535.")
        chosen = [port for port in ports if port]
        if len(set(chosen)) < len(chosen):
            raise UsageError("REST, gRPC and management take a port each.")
        if not 0 <= self.drain <= 3600 or not 0 <= self.stop <= 3600:
            raise UsageError("Draining and stopping take 0 to 3600 seconds each.")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may use of the server, whatever its model.

    Attributes:
        bytes: of a body or message, as sent and as unpacked.
        bytes_held: of all bodies whose requests are not answered yet; as much again of large messages over gRPC.
        json_bytes: that the values of a body of JSON may take while they are read.
        head_seconds: in which the head of a request arrives.
        body_seconds: in which its body arrives.
        answer_seconds: that a client may leave an answer unread.
        grpc_threads: calls that run at the same time.
        grpc_waiting: calls beyond those; one more is refused.
    """

    bytes: int = 64 << 20
    bytes_held: int = 1 << 30
    json_bytes: int = 1 << 30
    head_seconds: float = 15.0
    body_seconds: float = 120.0
    answer_seconds: float = 60.0
    grpc_threads: int = 64
    grpc_waiting: int = 1024

    def __post_init__(self) -> None:
        if not 1024 <= self.bytes < 1 << 31:
            raise UsageError("A request may have 1024 to 2147483647 bytes.")


@dataclass(frozen=True, slots=True)
class Settings:
    """A server.

    Attributes:
        models: to serve.
        listen, limits: see there.
        tls: None speaks without it.
        admins: who may load and unload models and reconfigure; empty: nobody, None: everybody.
        poll: seconds between two looks at the directories of versions; 0 looks once.
        access_log: a line for each request.
        otlp_endpoint: where traces go, see :func:`.tracing.open_tracing`; None is what the environment says.
    """

    models: Sequence[ModelConfig]
    listen: Listen = field(default_factory=Listen)
    limits: RequestLimits = field(default_factory=RequestLimits)
    tls: Tls | None = None
    admins: tuple[ClientRule, ...] | None = ()
    poll: float = 1.0
    access_log: bool = True
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.poll <= 86400:
            raise UsageError("Looking for new versions takes 0 to 86400 seconds.")
