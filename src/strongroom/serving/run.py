"""Runs a model server: what has to be so before anything of it is imported."""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from strongroom.crypto.secret import keep_out_of_core_dumps
from strongroom.errors import ServerUnavailable
from strongroom.serving.repository import Load
from strongroom.serving.settings import Settings, Tls
from strongroom.serving.tls import Certificates, only_tls_1_3
from strongroom.web.logs import configure_logging, describe, log
from strongroom.web.sockets import allow_many_descriptors, bind

__all__ = ["run"]


_LAST_PAUSE: Final = 60.0


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
    certificates = None if settings.tls is None else _certificates(settings.tls)
    if certificates is not None:
        only_tls_1_3()
    # Its own log is no JSON, and says nothing that this one does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sockets = bind(settings.listen.host, settings.listen.rest_port, "--host")
    if settings.listen.host == "::":
        # gRPC takes this for all addresses of either kind.
        sockets += bind("0.0.0.0", sockets[0].getsockname()[1], "--host")  # noqa: S104  as asked
    try:
        from strongroom.serving.server import serve

        serve(settings, load, certificates, sockets)
    finally:
        for one in sockets:
            one.close()


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
