"""One process that answers: its parts, its event loop, and its end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from strongroom.attest.sources import endorsement_source
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import StrongroomError
from strongroom.keyserver.app import make_app
from strongroom.keyserver.direct_routes import DirectRoutes
from strongroom.keyserver.enrolment import Enrolments
from strongroom.keyserver.gramine.door import Door
from strongroom.keyserver.gramine.provisioning import Provisioning
from strongroom.keyserver.guard import Guard
from strongroom.keyserver.identities import Identities
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.opening import now, open_store
from strongroom.keyserver.release import ReleaseService
from strongroom.keyserver.services import Services
from strongroom.keyserver.settings import Config
from strongroom.keyserver.tls import protocol_class
from strongroom.keyserver.tls_contexts import Certificates
from strongroom.keyserver.trust import key_set_specs, roots_of
from strongroom.keyserver.verification import VerificationPool
from strongroom.web.logs import describe, log
from strongroom.web.notify import notify

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["serve"]

_HANDSHAKE_SECONDS: Final = 10.0
_SWITCH_SECONDS: Final = 0.0005
_KEEP_ALIVE_SECONDS: Final = 15
_LOOK_EVERY: Final = 50
"""Ticks of a tenth of a second between two looks at the files of the certificate."""


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops and reads renewed certificates."""

    def __init__(
        self,
        config: uvicorn.Config,
        here: Services,
        pool: VerificationPool,
        certificates: Certificates,
        sockets: Sequence[socket.socket],
        door: Door | None,
    ) -> None:
        super().__init__(config)
        self._here = here
        self._pool = pool
        self._certificates = certificates
        self._sockets = sockets
        self._door = door
        self._drain_until: float | None = None
        self._reload = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._pool.start()
        loop = asyncio.get_running_loop()

        def protocol() -> Any:
            # uvicorn types it as any asyncio.Protocol.
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state={},
                _loop=loop,
            )

        self.servers = [
            await loop.create_server(
                protocol,
                sock=one,
                ssl=self._certificates.context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            )
            for one in self._sockets
        ]
        if self._door is not None:
            await self._door.start()
        # What is there now stays: to look through all of it holds everybody up, 60 ms each time.
        gc.collect()
        gc.freeze()
        self.started = True
        log.info("ready")
        notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds = self._here.config.listen.stop_seconds
        ends = [] if self._door is None else [self._door.close(seconds)]
        await asyncio.gather(super().shutdown(sockets), *ends)
        self._pool.close()

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None and time.monotonic() >= self._drain_until:
            self.should_exit = True
        if self._reload or counter % _LOOK_EVERY == 0:
            self._renew()
        return await super().on_tick(counter)

    def _renew(self) -> None:
        asked, self._reload = self._reload, False
        clients = self._certificates.clients
        try:
            if asked or self._certificates.changed():
                self._certificates.reload()
                if self._door is not None:
                    self._door.reload()
                log.info("certificate read")
        except StrongroomError as error:
            log.error("certificate not read; the one before stays", **describe(error))
        if self._certificates.clients != clients:
            # Whoever came with a certificate comes again, and is looked at again.
            for one in list(self.server_state.connections):
                if getattr(one, "_connection", None) is not None:
                    one.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGHUP:
            self._reload = True
        elif sig == signal.SIGTERM and self._drain_until is None:
            notify("STOPPING=1")
            self._here.draining = True
            self._drain_until = time.monotonic() + self._here.config.listen.drain_seconds
        elif self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again: an orderly end is no death by a signal."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {one: signal.signal(one, self.handle_exit) for one in handled}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def serve(
    config: Config,
    passphrase: SecretBytes | None,
    sockets: Sequence[socket.socket],
    gramine: Sequence[socket.socket] = (),
) -> None:
    """Answer at ``sockets`` until a signal says stop.

    Args:
        config: of the server.
        passphrase: that opens the root key, where it needs one.
        sockets: for HTTPS.
        gramine: for clients of Gramine.

    Raises:
        StrongroomError: it does not start; says why.
    """
    # The thread that answers gives the interpreter away at every read, and waits for the thread that
    # commits to give it back: with the default of 5 ms, several times in a request.
    sys.setswitchinterval(_SWITCH_SECONDS)
    certificates = Certificates(config.tls, now)
    metrics = Metrics()
    roots = roots_of(config.attestation)
    pool = VerificationPool(
        roots,
        [*key_set_specs(config.attestation.issuers), *config.attestation.endorsements],
        workers=config.verification.workers,
        timeout=config.verification.timeout_seconds,
        memory=config.verification.memory_mb,
    )
    source = endorsement_source(config.attestation.endorsements)
    identities = Identities.from_config(config, source)
    store = open_store(config, passphrase)
    release = ReleaseService(
        store,
        server_id=config.server_id,
        pool=pool,
        clock=now,
        allow_test_roots=config.test,
        metrics=metrics,
    )
    enrolments = Enrolments(store.secret("challenge"), config.server_id, roots)
    here = Services(config, store, release, metrics, identities, enrolments, now)
    settings = uvicorn.Config(
        Guard(DirectRoutes(make_app(here)), config.limits, metrics),
        loop="uvloop",
        http=protocol_class(config.limits, metrics),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # anybody can write them
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(config.listen.stop_seconds),
    )
    with closing(store):
        door = None
        if gramine:
            provisioning = Provisioning(
                store,
                pool=pool,
                challenge=release.challenge,
                clock=now,
                allow_test_roots=config.test,
                metrics=metrics,
            )
            door = Door(config.tls, config.limits, provisioning, metrics, gramine)
        _Server(settings, here, pool, certificates, sockets, door).run()
