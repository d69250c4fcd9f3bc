"""The key cache as a process: from its configuration to the last wiped key."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from strongroom.crypto.secret import keep_out_of_core_dumps
from strongroom.errors import UsageError
from strongroom.keycache.clock import LeaseClock
from strongroom.keycache.config import Config
from strongroom.keycache.holder import KeyHolder
from strongroom.keycache.server import LocalServer
from strongroom.keycache.sockets import listen
from strongroom.providers.keyserver.client import ReleaseClient, open_attester
from strongroom.providers.keyserver.profile import Profile, find_profile, read_profile
from strongroom.providers.keyserver.transport import Transport
from strongroom.web.notify import notify

__all__ = ["run", "serve"]

_LOG: Final = logging.getLogger("strongroom.keycache")

_TIMEOUT: Final = 10.0
_ATTEMPTS: Final = 3
"""Fewer than others have: the cache itself asks again, and who waits can ask it again."""


def _profile(config: Config) -> Profile:
    if config.server is None or config.server.startswith("https:"):
        return find_profile(config.server)
    return read_profile(config.server)


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; then end the leases and wipe.

    Raises:
        StrongroomError: it cannot start as configured.
    """
    if config.socket is None or not os.path.isabs(config.socket):
        raise UsageError("The socket of a key cache is an absolute path.", hint="Give --socket PATH.")
    keep_out_of_core_dumps()
    profile = _profile(config)
    attester = open_attester(config.attester or profile.attester)

    def connect() -> ReleaseClient:
        transport = Transport(profile, timeout=_TIMEOUT, attempts=_ATTEMPTS)
        return ReleaseClient(profile, attester, transport=transport)

    connect().close()  # What is wrong with certificates is said now.

    async def until_signalled(listener: socket.socket) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, profile, connect, listener, stop)

    with listen(config.socket, config.gid) as listener:
        asyncio.run(until_signalled(listener))


async def serve(
    config: Config,
    profile: Profile,
    connect: Callable[[], ReleaseClient],
    listener: socket.socket,
    stop: asyncio.Event,
) -> None:
    """Serve until ``stop`` is set; then end the leases and wipe.

    Args:
        connect: makes a client of the key server.
        listener: listens, does not block.
    """
    holder = KeyHolder(connect, LeaseClock())
    about = {"server": profile.address, "server_id": profile.server_id}
    server = LocalServer(listener, holder, config.rules, about)
    keeping = asyncio.get_running_loop().create_task(holder.run())
    # Without it nothing would be renewed and nothing wiped.
    keeping.add_done_callback(lambda _: stop.set())
    server.start()
    _LOG.info("serving %s from %s", config.socket, profile.address)
    notify("READY=1")
    try:
        await stop.wait()
    finally:
        notify("STOPPING=1")
        server.stop()
        await holder.close()
        if not keeping.cancel():
            keeping.result()
