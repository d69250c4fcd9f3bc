"""Local processes ask here: a Unix socket, one small message for each key.

A key that is held is answered at once, in the callback that reads the question, from locked memory to
the socket; only what must be fetched costs a task.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from functools import lru_cache
from typing import Any, Final

from strongroom.crypto.derive import BUNDLE_SIZE
from strongroom.errors import StrongroomError, UsageError
from strongroom.format.encoding import parse_json, unb64url_text
from strongroom.keycache.holder import Held, KeyHolder
from strongroom.keycache.rules import Peer, Rules, peer_of
from strongroom.providers.unix_socket import MAX_REQUEST, error_message, frame
from strongroom.release.binding import WantedKey
from strongroom.release.messages import time_text
from strongroom.release.names import KeyName, check_name, check_version

__all__ = ["LocalServer"]

_LOG: Final = logging.getLogger("strongroom.keycache")

MAX_CONNECTIONS: Final = 512
MAX_PER_USER: Final = 256
"""Connections: one user, however many processes of his wait, leaves room for others."""

IDLE_SECONDS: Final = 10.0
"""For a whole request to arrive, and between two."""

_ACCEPTED_AT_ONCE: Final = 64


@lru_cache(maxsize=1024)
def parse_request(data: bytes) -> WantedKey | None:
    """The key that is asked for; None for the status. The same few are asked for again and again.

    Raises:
        UsageError: it is no request.
    """
    try:
        members = parse_json(data)
        operation = members.pop("op", None)
        if members.pop("v", None) != 1:
            raise ValueError("is not of version 1")
        if operation == "status" and not members:
            return None
        if operation != "key" or set(members) != {"name", "version", "bundle"}:
            raise ValueError("asks for nothing that is known")
        version = None if members["version"] == "current" else check_version(members["version"])
        bundle = unb64url_text(members["bundle"])
        if len(bundle) != BUNDLE_SIZE:
            raise ValueError("has a bundle that is none")
    except ValueError as error:
        raise UsageError(f"The request {error}.") from None
    return WantedKey(KeyName(check_name(members["name"]), version), bundle)


class LocalServer:
    """Answers the processes of this machine.

    Args:
        listener: listens, does not block.
        holder: has the keys.
        rules: who may have which.
        about: what the status says besides.
    """

    def __init__(
        self, listener: socket.socket, holder: KeyHolder, rules: Rules, about: dict[str, Any]
    ) -> None:
        self._listener = listener
        self._holder = holder
        self._rules = rules
        self._about = about
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._users: collections.Counter[int] = collections.Counter()
        self.requests = 0

    def start(self) -> None:
        """Accept connections from now on."""
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept none any more, and close those that are open."""
        self._loop.remove_reader(self._listener)
        for one in list(self._open):
            one.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors left: others will be closed in time
                _LOG.error("connections cannot be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(0.1, self.start)
                return
            try:
                peer = peer_of(connection)
            except OSError:
                connection.close()
                continue
            if len(self._open) >= MAX_CONNECTIONS or self._users[peer.uid] >= MAX_PER_USER:
                connection.close()
                continue
            connection.setblocking(False)
            self._users[peer.uid] += 1
            self._open.add(_Connection(self, connection, peer))

    def left(self, connection: _Connection) -> None:
        """A connection was closed."""
        self._open.discard(connection)
        self._users[connection.peer.uid] -= 1
        if not self._users[connection.peer.uid]:
            del self._users[connection.peer.uid]

    def at_once(self, peer: Peer, request: bytes) -> Held | WantedKey | dict[str, Any]:
        """The key that is held, or the one to fetch, or the status.

        Raises:
            UsageError, NotAuthorised: it is no request, or not for this peer.
        """
        self.requests += 1
        wanted = parse_request(request)
        if wanted is None:
            self._rules.check_status(peer)
            return self._status()
        self._rules.check(peer, wanted.key.name)
        return self._holder.held(wanted) or wanted

    async def fetched(self, wanted: WantedKey) -> Held:
        """The key, once it is here.

        Raises:
            StrongroomError: as for :meth:`KeyHolder.get`.
        """
        return await self._holder.get(wanted)

    def _status(self) -> dict[str, Any]:
        held = self._holder.status()
        return {
            "v": 1,
            **self._about,
            "requests": self.requests,
            "connections": len(self._open),
            **held,
        }


class _Connection:
    """One peer. It asks one thing at a time; while a key is fetched for it, nothing more is read."""

    def __init__(self, server: LocalServer, connection: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._wait()

    def _wait(self) -> None:
        self._loop.add_reader(self._socket, self._readable)
        self._timer = self._loop.call_later(IDLE_SECONDS, self.close)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket)
        self._timer.cancel()

    def close(self) -> None:
        """Close, also amid a request."""
        if self._closed:
            return
        self._closed = True
        self._pause()
        if self._task is not None:
            self._task.cancel()
        self._socket.close()
        self._server.left(self)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(4 + MAX_REQUEST - len(self._buffer))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._buffer += data
        self._answer()

    def _answer(self) -> None:
        """Answer what has arrived whole; leave the rest for later."""
        while not self._closed and len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_REQUEST:
                self._refuse(UsageError("The request is too long."))
                self.close()
                return
            if len(self._buffer) < 4 + size:
                return
            request = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            self._timer.cancel()
            self._timer = self._loop.call_later(IDLE_SECONDS, self.close)
            try:
                found = self._server.at_once(self.peer, request)
            except StrongroomError as error:
                self._refuse(error)
                continue
            if isinstance(found, Held):
                self._give(found)
            else:
                self._pause()
                self._task = self._loop.create_task(self._slowly(found))
                return

    async def _slowly(self, found: WantedKey | dict[str, Any]) -> None:
        if isinstance(found, dict):
            # The one answer that may not fit into the socket at once.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._loop.sock_sendall(self._socket, frame(found))
        else:
            try:
                held = await self._server.fetched(found)
            except StrongroomError as error:
                self._refuse(error)
            except Exception as error:  # a fault of ours is no reason to keep somebody waiting
                _LOG.error("a request failed: %s", type(error).__name__)
                self.close()
            else:
                self._give(held)
        self._task = None
        if not self._closed:
            self._wait()
            self._answer()

    def _give(self, held: Held) -> None:
        header = {
            "v": 1,
            "version": held.version,
            "not_after": time_text(held.lease.not_after),
            "key": len(held.dek),
        }
        held.served += 1
        self._send(frame(header), held.dek.buffer)

    def _refuse(self, error: StrongroomError) -> None:
        self._send(frame(error_message(error)))

    def _send(self, *parts: bytes | memoryview) -> None:
        """All at once or not at all: a peer that does not read is left."""
        if self._closed:
            return
        try:
            sent = self._socket.sendmsg(parts)
        except OSError:
            sent = -1
        if sent != sum(map(len, parts)):
            self.close()
