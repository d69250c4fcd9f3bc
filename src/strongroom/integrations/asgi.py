"""The protocols of the model server over HTTP, for a server of somebody else that speaks ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from strongroom.serving.access_log import AccessLog
from strongroom.serving.clients import Access, client_of
from strongroom.serving.engine import Engine
from strongroom.serving.http import Connection, Front
from strongroom.serving.metrics import Metrics
from strongroom.serving.settings import RequestLimits
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.v2.rest import V2Rest
from strongroom.web.protocol import CONNECTION

__all__ = ["Application"]

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

_METRICS: Final = "/metrics"
_CLOSE_SECONDS: Final = 30.0


class Application:
    """An ASGI application.

    Rules for clients hold, those for bearer tokens that is: the certificate of a client ends at the other
    server. Nobody loads or unloads models. Metrics and access log are those of the other server.

    Args:
        engine: started by somebody else; closed with the lifespan of the application.
        max_request_bytes: of a body.
    """

    def __init__(self, engine: Engine, max_request_bytes: int = 64 << 20) -> None:
        self._engine = engine
        self._front = Front(
            {"v1": ("tfs", TfsRest(engine)), "v2": ("v2", V2Rest(engine))},
            engine.ready,
            RequestLimits(bytes=max_request_bytes),
            Access(lambda model: engine.config(model).clients),
            Metrics(),
            AccessLog(wanted=False),
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        peer = scope.get("client")
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        inner = {
            **scope,
            # Numbers of one process out of several, chosen by chance, are of no use.
            "path": path if path != _METRICS else "/",
            CONNECTION: Connection(client_of(peer[0] if peer else "", None)),
        }

        async def send_bytes(message: Message) -> None:
            # Between processes, messages are pickled, which views refuse.
            if isinstance(message.get("body"), memoryview):
                message["body"] = bytes(message["body"])
            await send(message)

        await self._front(inner, receive, send_bytes)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._front.draining = True
                await asyncio.to_thread(self._engine.close, _CLOSE_SECONDS)
                await send({"type": "lifespan.shutdown.complete"})
                return
