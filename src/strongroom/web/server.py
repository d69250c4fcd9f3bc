"""uvicorn's server with an orderly end and renewed certificates."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from strongroom.web.notify import notify

__all__ = ["DrainingServer"]


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains before it stops and looks for renewed certificates.

    After SIGTERM it answers for some seconds more, and says that nobody shall come; a second signal, or
    SIGINT, ends it without that, and one more without the requests under way. SIGHUP asks for the files
    of certificates to be read.

    Args:
        config: of uvicorn.
        drain: seconds between SIGTERM and the end.
        look_every: ticks of a tenth of a second between two calls of :meth:`renew`.

    Attributes:
        reload: a signal asked for the files to be read, changed or not.
    """

    def __init__(self, config: uvicorn.Config, *, drain: float, look_every: int) -> None:
        super().__init__(config)
        self.reload = False
        self._drain = drain
        self._drain_until: float | None = None
        self._look_every = look_every

    def draining(self) -> None:
        """Tell whoever asks that nobody shall come any more."""
        raise NotImplementedError

    def renew(self) -> None:
        """Read the certificates if :attr:`reload` says so, or if they have changed."""
        raise NotImplementedError

    async def listen(
        self, config: uvicorn.Config, sockets: Sequence[socket.socket], **tls: Any
    ) -> list[asyncio.Server]:
        """Begin to answer at sockets.

        Args:
            config: what answers there.
            sockets: that are bound.
            tls: arguments of ``create_server`` for TLS.
        """
        loop = asyncio.get_running_loop()

        def protocol() -> Any:
            # uvicorn types it as any asyncio.Protocol.
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config,
                server_state=self.server_state,
                app_state={},
                _loop=loop,
            )

        return [await loop.create_server(protocol, sock=one, **tls) for one in sockets]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")  # where it ends without draining
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None and time.monotonic() >= self._drain_until:
            self.should_exit = True
        if self.reload or counter % self._look_every == 0:
            self.renew()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGHUP:
            self.reload = True
        elif sig == signal.SIGTERM and self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain
            notify("STOPPING=1")
            self.draining()
        elif self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again: an orderly end is no death by a signal."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {one: signal.signal(one, self.handle_exit) for one in handled}
        # What that handler raised, code that was being imported may have dropped.
        if any(getattr(handler, "came", 0) for handler in before.values()):
            self.should_exit = True
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
