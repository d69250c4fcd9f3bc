"""One process that serves: its parts, its event loop, and its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import uvicorn

from strongroom.errors import StrongroomError
from strongroom.serving.access_log import AccessLog
from strongroom.serving.clients import Access
from strongroom.serving.connections import protocol_class
from strongroom.serving.engine import Engine
from strongroom.serving.grpc_server import GrpcServer
from strongroom.serving.http import Front
from strongroom.serving.metrics import Metrics
from strongroom.serving.repository import Load
from strongroom.serving.settings import Settings
from strongroom.serving.states import State, VersionStatus
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tfs import service as tfs_service
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.tls import Certificates
from strongroom.serving.tracing import open_tracing
from strongroom.serving.v2 import service as v2_service
from strongroom.serving.v2.rest import V2Rest
from strongroom.serving.workers import Workers
from strongroom.web.logs import describe, log
from strongroom.web.notify import notify
from strongroom.web.server import DrainingServer

__all__ = ["serve"]

_HANDSHAKE_SECONDS: Final = 10.0
_SWITCH_SECONDS: Final = 0.0005
_COLLECT_AFTER: Final = 10_000
"""New objects after which the garbage collector looks at them. Those of 64 requests that wait for a batch are
more than the usual 700, and no garbage: to look took a twelfth of the CPU."""

_LOOK_EVERY: Final = 20
"""Ticks of a tenth of a second between two looks at the files of the certificate."""


class _Health:
    """Who is told of changes: log, numbers, and the health of the gRPC port."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.engine: Engine | None = None
        self.grpc: GrpcServer | None = None

    def told(self, model: str, status: VersionStatus) -> None:
        say = log.warning if status.code else log.info
        more: dict[str, str] = {}
        if status.code:
            more = {"code": Code(status.code).name, "message": status.message, **status.why}
        self._metrics.told(model, status)
        self.refresh()
        # Last: who has read it finds the numbers and the health so.
        say("model", model=model, version=status.version, state=status.state.name, **more)

    def refresh(self) -> None:
        engine, server = self.engine, self.grpc
        if engine is None or server is None:
            return
        models = {}
        for name in engine.names():
            try:
                states = engine.status(name)
            except RequestError:
                continue  # gone meanwhile
            models[name] = any(one.state is State.AVAILABLE for one in states)
        server.health(models, engine.ready())


class _Server(DrainingServer):
    """uvicorn's server, beside gRPC's, which drains before it stops and reads renewed certificates."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        front: Front,
        grpc: GrpcServer,
        certificates: Certificates | None,
        access_log: AccessLog,
        sockets: Sequence[socket.socket],
        management: tuple[uvicorn.Config, Front, Sequence[socket.socket]] | None,
    ) -> None:
        super().__init__(config, drain=settings.listen.drain, look_every=_LOOK_EVERY)
        self._management = management
        self._settings = settings
        self._front = front
        self._grpc = grpc
        self._certificates = certificates
        self._access_log = access_log
        self._sockets = sockets
        self._reader = Workers(1, "certificates")
        self._renewal: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        tls = self._certificates
        secured: dict[str, Any] = (
            {} if tls is None else {"ssl": tls.context, "ssl_handshake_timeout": _HANDSHAKE_SECONDS}
        )
        self.servers = await self.listen(self.config, self._sockets, **secured)
        ports = {"rest_port": self._sockets[0].getsockname()[1], "grpc_port": self._grpc.port}
        if self._management is not None:
            config, _, listeners = self._management
            config.load()
            self.servers += await self.listen(config, listeners)
            ports["management_port"] = listeners[0].getsockname()[1]
        self._grpc.start()
        self.started = True
        log.info("listening", host=self._settings.listen.host, **ports, tls=tls is not None)
        notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.draining()
        stopped = self._grpc.stop(self._settings.listen.stop)
        await super().shutdown(sockets)
        await asyncio.to_thread(stopped.wait)
        self._access_log.flush()

    async def on_tick(self, counter: int) -> bool:
        self._access_log.flush()
        return await super().on_tick(counter)

    def draining(self) -> None:
        self._front.draining = True
        if self._management is not None:
            self._management[1].draining = True
        self._grpc.drain()

    def renew(self) -> None:
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        try:
            await self._read_certificates()
        finally:
            self._renewal = None

    async def _read_certificates(self) -> None:
        asked, self.reload = self.reload, False
        tls = self._certificates
        if tls is None:
            return
        clients = tls.clients
        try:
            if asked or tls.changed():
                # It may ask a key server, for which the end of this one does not wait.
                await asyncio.wrap_future(self._reader.submit(tls.reload))
                log.info("certificate read")
        except StrongroomError as error:
            log.error("certificate not read; the one before stays", **describe(error))
        if tls.clients != clients:
            # Whoever came with a certificate comes again, and is looked at again.
            for one in list(self.server_state.connections):
                one.shutdown()


def _loop() -> str:
    """Of uvicorn: uvloop, where there are event descriptors; Gramine has them in no enclave by default."""
    try:
        os.close(os.eventfd(0))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return "asyncio"
        raise
    return "uvloop"


def serve(
    settings: Settings,
    load: Load,
    certificates: Certificates | None,
    sockets: Sequence[socket.socket],
    management: Sequence[socket.socket] = (),
) -> None:
    """Answer at ``sockets``, the port of gRPC and that of management until a signal says stop.

    Raises:
        StrongroomError: it does not start; says why.
    """
    # The thread that answers HTTP gives the interpreter away in every run of a model, and waits for
    # those of gRPC to give it back: with the default of 5 ms, several times in a request.
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    listen, limits = settings.listen, settings.limits
    metrics, access_log = Metrics(), AccessLog(wanted=settings.access_log)
    health = _Health(metrics)
    engine = Engine(settings.models, load, poll=settings.poll, told=health.told)
    access = Access(lambda model: engine.config(model).clients, settings.admins)
    tracing = open_tracing(settings.otlp_endpoint)
    administered = settings.admins is None or bool(settings.admins)
    grpc = GrpcServer(
        [
            *tfs_service.handlers(engine, reload=administered),
            *v2_service.handlers(engine, control=administered, sees=access.sees),
        ],
        listen,
        limits,
        certificates,
        access,
        metrics,
        access_log,
        tracing,
    )
    health.engine, health.grpc = engine, grpc
    metrics.watch(engine)
    front = Front(
        {
            "v1": ("tfs", TfsRest(engine)),
            "v2": ("v2", V2Rest(engine, control=administered, sees=access.sees)),
        },
        engine.ready,
        limits,
        access,
        metrics,
        access_log,
        tracing,
        # They name models.
        lambda: not management and not any(map(access.ruled, engine.names())),
    )

    def config(front: Front) -> uvicorn.Config:
        return uvicorn.Config(
            front,
            loop=_loop(),
            http=protocol_class(front, listen, limits, metrics),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # anybody can write them
            server_header=False,
            timeout_keep_alive=listen.keep_alive,
            timeout_graceful_shutdown=max(1, int(listen.stop)),
        )

    managing = None
    if management:
        other = Front({}, engine.ready, limits, access, metrics, access_log)
        managing = config(other), other, management
    # From its start on the engine tells of one change after the other: said beside those, an older
    # state could be the last one.
    health.refresh()
    engine.start()
    try:
        _Server(config(front), settings, front, grpc, certificates, access_log, sockets, managing).run()
    finally:
        grpc.stop(0)
        engine.close(listen.stop)
        access_log.flush()
        if tracing is not None:
            tracing.close()
        log.info("stopped")
