"""A connection over gRPC that sends and takes serialized messages: none is made or read while the clock runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from strongroom.loadtest.connection import Ask, Failed
from strongroom.loadtest.target import Security, Target

__all__ = ["GrpcConnection"]

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one server share a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class GrpcConnection:
    """One channel."""

    def __init__(
        self, target: Target, security: Security, headers: Mapping[str, str], timeout: float
    ) -> None:
        if target.secure:
            credentials = grpc.ssl_channel_credentials(security.ca, security.key, security.certificate)
            self._channel = grpc.aio.secure_channel(target.address, credentials, _OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, _OPTIONS)
        self._timeout = timeout
        self._metadata = tuple(headers.items()) or None
        self._methods: dict[str, Any] = {}

    async def ask(self, request: Ask) -> bytes:
        method = self._methods.get(request.path)
        if method is None:
            method = self._methods[request.path] = self._channel.unary_unary(request.path)
        try:
            answer: bytes = await method(request.body, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            code, said = error.code().name, error.details() or ""
            if code == "UNAVAILABLE" and _is_connecting(said):
                raise Failed("UNREACHABLE", said.rpartition("last error: ")[2]) from None
            raise Failed("TIMEOUT" if code == "DEADLINE_EXCEEDED" else code, said) from None
        return answer

    async def close(self) -> None:
        await self._channel.close()


def _is_connecting(said: str) -> bool:
    """Whether gRPC itself says so, which has no code of its own for it."""
    return said.startswith(
        ("failed to connect", "DNS resolution failed", "connections to all backends")
    )
