"""One connection of a client of Gramine: handshake, one request, one secret, good-bye.

    client → server   "SECRET_PROVISION_RA_TLS_REQUEST_V1" NUL
    server → client   "SECRET_PROVISION_RA_TLS_RESPONSE_V1:" NUL, size (32 bits, big-endian), secret

There is no message for a refusal: the connection is closed. Applications of Gramine may go on with a protocol
of their own where this one ends; here it ends.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied, StrongroomError
from strongroom.keyserver.errors_http import HttpError
from strongroom.keyserver.gramine.certificate import MAX_CERTIFICATE
from strongroom.keyserver.gramine.contexts import trusting
from strongroom.keyserver.gramine.hello import Hello, NotTls
from strongroom.keyserver.limits import RateLimit
from strongroom.keyserver.settings import Limits
from strongroom.web.addresses import ConnectionCount, source_group
from strongroom.web.logs import describe, log

__all__ = ["REQUEST", "RESPONSE", "Connection", "Place"]

REQUEST: Final = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
RESPONSE: Final = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"

_GOODBYE: Final = 1.0
"""Seconds for what was written last to leave, before the connection is cut."""


class Provisions(Protocol):
    """What of :class:`.Provisioning` is needed here."""

    def provision(
        self, certificate: bytes, name: str | None, source: str
    ) -> Coroutine[Any, Any, SecretBytes]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """What the connections of one process share.

    Attributes:
        context: makes the TLS context of one connection.
        provisioning: decides.
        limits: of time.
        addresses: what is open.
        rate: what each address may ask.
        refused: told of connections that end early.
        tasks: decisions under way.
        connections: that are open.
    """

    context: Callable[[], ssl.SSLContext]
    provisioning: Provisions
    limits: Limits
    addresses: ConnectionCount
    rate: RateLimit
    refused: Callable[[str], None]
    tasks: set[asyncio.Task[None]]
    connections: set[Connection]


class Connection(asyncio.Protocol):
    """See the module.

    Args:
        place: what it shares with others.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._source = ""
        self._counted: str | None = None
        self._began = time.perf_counter()
        self._hello = Hello()
        self._trusts = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._certificate: bytes | None = None
        self._request = b""
        self._answered = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing is being decided for it."""
        return len(self._request) < len(REQUEST) or self._answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is none by type
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._source = str(peer[0]) if peer else "local"
        group = source_group(self._source)
        if not self._place.addresses.enter(group):
            self._place.refused("connections")
            self.abort()
            return
        self._counted = group
        self._place.connections.add(self)
        try:
            self._place.rate.take(group, time.monotonic())
        except HttpError as error:
            self._place.refused(error.code)
            self.abort()
            return
        self._timer = self._loop.call_later(self._place.limits.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._place.connections.discard(self)
        self._stop_timer()
        if self._counted is not None:
            self._place.addresses.leave(self._counted)
            self._counted = None

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            self._receive(data)
        except NotTls:
            self._refuse("not-tls")
        except ssl.SSLZeroReturnError:
            self._end()
        except ssl.SSLError:
            self._refuse("handshake" if self._certificate is None else "tls")
        except Exception as error:
            # Strangers reach this: whatever it is, it ends one connection.
            log.error("fault", **describe(error))
            self.abort()

    def _receive(self, data: bytes) -> None:
        if self._certificate is None:
            data = self._hello.feed(data)
            if not data:
                return
            if self._tls is None:
                # Not before: it is memory, for each connection that says nothing.
                context = self._place.context()
                self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            leaf = self._hello.certificate
            if leaf is not None and not self._trusts:
                if len(leaf) > MAX_CERTIFICATE:
                    raise NotTls
                self._tls.context = trusting(leaf)
                self._trusts = True
        self._incoming.write(data)
        if self._certificate is None and not self._handshake():
            return
        self._read()

    def _handshake(self) -> bool:
        """Whether it is over."""
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._flush()
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None or self._tls.session_reused:
            raise ssl.SSLError("a client without a certificate of its own")
        self._certificate = certificate
        return True

    def _read(self) -> None:
        assert self._tls is not None
        assert self._transport is not None
        received = self._request
        try:
            while len(received) <= len(REQUEST):
                part = self._tls.read(len(REQUEST) + 1)
                if not part:  # the client has said good-bye
                    self._end()
                    return
                received += part
        except ssl.SSLWantReadError:
            pass
        if self._answered:  # the protocol of an application would begin here
            self._end()
            return
        if not REQUEST.startswith(received):
            self._refuse("request")
            return
        self._request = received
        if received == REQUEST:
            self._stop_timer()
            self._transport.pause_reading()
            task = self._loop.create_task(self._provision())
            self._place.tasks.add(task)
            task.add_done_callback(self._place.tasks.discard)

    async def _provision(self) -> None:
        """Decide, whether or not the client waits: a worker that is left alone would be killed."""
        assert self._certificate is not None
        try:
            with await self._place.provisioning.provision(
                self._certificate, self._hello.name, self._source
            ) as secret:
                self._answer(secret)
        except ReleaseDenied as error:
            self._refuse(error.code)
        except StrongroomError as error:
            log.error("provisioning failed", **describe(error))
            self._refuse("unavailable")
        except Exception as error:
            log.error("fault", **describe(error))
            self._refuse("fault")

    def _answer(self, secret: SecretBytes) -> None:
        self._log("released")
        self._answered = True
        if self._closed:
            return
        assert self._tls is not None
        assert self._transport is not None
        # Until the client says good-bye; who resets a connection may take the answer from it.
        self._timer = self._loop.call_later(self._place.limits.answer_seconds, self._too_slow)
        head = RESPONSE + len(secret).to_bytes(4, "big")
        with SecretBytes.zeros(len(head) + len(secret)) as message:
            message.buffer[: len(head)] = head
            message.buffer[len(head) :] = secret.buffer
            self._tls.write(message.buffer)
        self._flush()
        self._transport.resume_reading()

    def eof_received(self) -> None:
        self._closed = True

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self._closed:
            assert self._transport is not None
            self._transport.write(data)

    def _log(self, outcome: str) -> None:
        ms = round((time.perf_counter() - self._began) * 1000, 1)
        log.info("provisioning", source=self._source, outcome=outcome, ms=ms)

    def _refuse(self, why: str) -> None:
        self._log(why)
        if self._certificate is None or not self._request:
            self._place.refused(why)
        self._end()

    def _end(self) -> None:
        """Close in order: what TLS has to say, then the connection."""
        if self._closed:
            return
        assert self._transport is not None
        if self._certificate is not None and self._tls is not None:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
        self._flush()
        self._closed = True
        self._stop_timer()
        self._transport.close()
        self._loop.call_later(_GOODBYE, self._transport.abort)

    def abort(self) -> None:
        """Cut the connection."""
        self._closed = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def _too_slow(self) -> None:
        self._place.refused("too-slow" if not self._answered else "does-not-read")
        self._log("too-slow")
        self.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
