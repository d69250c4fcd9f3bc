"""Answers that are written together: those of requests that came together.

To write is a quarter of what a small request costs, and half of that is to leave what the processor has at
hand for the system, and to wake the client. Where sixteen connections ask at a time, 15 µs of 66 were that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

__all__ = ["Outbox"]

_GAP: Final = 0.00003
"""Seconds after an answer in which a request that begins came together with that one. To hold an answer takes
another turn of the event loop, which costs more than a write where there is only one."""

_HELD: Final = 0.0005
"""Seconds after which nothing is held any longer, with whatever else there is to answer."""


class Outbox:
    """What one event loop writes at the end of its turn, or half a millisecond later.

    Whoever writes to a connection, or closes it, without this calls :meth:`flush` before.
    """

    def __init__(self) -> None:
        self._held: list[tuple[asyncio.Transport, bytes]] = []
        self._until = self._last = 0.0

    def follows(self) -> bool:
        """Whether what begins now came together with what was answered last."""
        return bool(self._held) or time.perf_counter() - self._last < _GAP

    def write(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, data: bytes) -> None:
        """Write soon."""
        held, now = self._held, time.perf_counter()
        if not held:
            self._until = now + _HELD
            loop.call_soon(self.flush)
        held.append((transport, data))
        if now >= self._until:
            self.flush()

    def flush(self) -> None:
        """Write what there is, now."""
        held, self._held = self._held, []
        for transport, data in held:
            if not transport.is_closing():  # its client has gone
                transport.write(data)

    def wrote(self) -> None:
        """An answer was written without this."""
        self._last = time.perf_counter()
