"""Runs a model server: what has to be so before anything of it is imported."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

from strongroom.crypto.secret import keep_out_of_core_dumps
from strongroom.errors import ServerUnavailable, UsageError
from strongroom.serving.memory import keep_for_requests
from strongroom.serving.repository import Load
from strongroom.serving.settings import Settings, Tls
from strongroom.serving.tls import Certificates, only_tls_1_3
from strongroom.web.logs import configure_logging, describe, log
from strongroom.web.sockets import allow_many_descriptors, bind

__all__ = ["run"]


_LAST_PAUSE: Final = 60.0
_THIS_MACHINE: Final = ("127.0.0.1", "::1", "localhost")


def run(settings: Settings, load: Load) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the certificate again, which happens by itself too.

    Args:
        settings: of the server.
        load: makes a version answer, see :class:`.repository.Repository`.

    Raises:
        StrongroomError: it does not start; says why.
    """
    configure_logging()
    # It has a line for whatever a client sends that is no request.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    keep_out_of_core_dumps()
    allow_many_descriptors()
    keep_for_requests()
    certificates = None if settings.tls is None else _certificates(settings.tls)
    if certificates is not None:
        only_tls_1_3()
    # Its own log is no JSON, and says nothing that this one does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # TensorFlow's says, without JSON, which instructions it uses; warnings and errors are left.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    _check_rules(settings, certificates)
    listen = settings.listen
    sockets = _bind(listen.host, listen.rest_port, "--host")
    management: list[socket.socket] = []
    try:
        if listen.management_port is not None:
            host = listen.management_host
            management = (
                _bind(listen.host, listen.management_port, "--host")
                if host is None
                else _bind(host, listen.management_port, "--management-host")
            )
        from strongroom.serving.server import serve

        serve(settings, load, certificates, sockets, management)
    finally:
        for one in (*sockets, *management):
            one.close()


def _bind(host: str, port: int, option: str) -> list[socket.socket]:
    sockets = bind(host, port, option)
    if host == "::":
        # gRPC takes this for all addresses of either kind.
        sockets += bind("0.0.0.0", sockets[0].getsockname()[1], option)  # noqa: S104  as asked
    return sockets


def _check_rules(settings: Settings, certificates: Certificates | None) -> None:
    """Rules that nobody can fit, and tokens that whoever is between can read."""
    asks = certificates is not None and certificates.asks_clients
    rules = {f"the model {one.name}": one.clients for one in settings.models}
    rules["--admin"] = settings.admins or ()
    for what, found in rules.items():
        if not asks and any(one.token_sha256 is None for one in found):
            raise UsageError(
                f"The rules of {what} name certificates of clients, and clients show none.",
                hint="Give --client-ca, with --tls-cert and --tls-key; or rules with token_sha256.",
            )
        if found and certificates is None and settings.listen.host not in _THIS_MACHINE:
            log.warning("tokens without TLS", rules=what, hint="Whoever is between can read them.")


def _certificates(tls: Tls) -> Certificates:
    """What both ports need; as long as the key server is away, there is nothing to listen with."""
    pause = 1.0
    while True:
        try:
            return Certificates(tls)
        except ServerUnavailable as error:
            log.warning("certificate not read; tried again", seconds=pause, **describe(error))
        time.sleep(pause)
        pause = min(_LAST_PAUSE, 2 * pause)
