"""One process that answers: its parts, its event loop, and its end."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Final

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
from strongroom.web.server import DrainingServer

__all__ = ["serve"]

_HANDSHAKE_SECONDS: Final = 10.0
_SWITCH_SECONDS: Final = 0.0005
_KEEP_ALIVE_SECONDS: Final = 15
_LOOK_EVERY: Final = 50
"""Ticks of a tenth of a second between two looks at the files of the certificate."""


class _Server(DrainingServer):
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
        super().__init__(config, drain=here.config.listen.drain_seconds, look_every=_LOOK_EVERY)
        self._here = here
        self._pool = pool
        self._certificates = certificates
        self._sockets = sockets
        self._door = door

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._pool.start()
        self.servers = await self.listen(
            self.config,
            self._sockets,
            ssl=self._certificates.context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
        )
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

    def draining(self) -> None:
        self._here.draining = True

    def renew(self) -> None:
        asked, self.reload = self.reload, False
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
