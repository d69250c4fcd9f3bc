"""Runs the server: sockets, processes, signals.

The sockets are bound once, before the processes that answer are forked; the parent opens neither the
database nor the root key. Whatever imports the metrics is imported in the child, since where they are
kept must be decided before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Final

from strongroom.crypto.secret import SecretBytes, keep_out_of_core_dumps
from strongroom.errors import StrongroomError, Unavailable
from strongroom.keyserver.settings import Config
from strongroom.web.logs import configure_logging, log
from strongroom.web.sockets import allow_many_descriptors, bind

__all__ = ["run"]

_FAILED_START: Final = 3.0
"""Seconds: a process that ends earlier has not started, and would not the next time."""

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def run(config: Config, passphrase: SecretBytes | None = None) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads the certificate again.

    Args:
        config: of the server.
        passphrase: that opens the root key, where it needs one.

    Raises:
        StrongroomError: it does not start; says why.
    """
    configure_logging()
    keep_out_of_core_dumps()
    allow_many_descriptors()
    sockets = bind(config.listen.host, config.listen.port)
    host, port = sockets[0].getsockname()[:2]
    log.info("listening", host=host, port=port, server_id=config.server_id, pid=os.getpid())
    gramine: list[socket.socket] = []
    if config.gramine is not None:
        where = config.gramine.host or config.listen.host
        gramine = bind(where, config.gramine.port, "gramine.host")
        host, port = gramine[0].getsockname()[:2]
        log.info("listening for Gramine", host=host, port=port)
    if config.test:
        log.warning("TEST ROOTS: evidence that anybody can forge is believed; never with real keys")

    def serve() -> None:
        from strongroom.keyserver.serving import serve as serve_here

        serve_here(config, passphrase, sockets, gramine)

    if config.listen.workers == 1:
        serve()
    else:
        _try_root_key(config, passphrase)
        _supervise(config.listen.workers, serve, [*sockets, *gramine])


def _try_root_key(config: Config, passphrase: SecretBytes | None) -> None:
    """Open the root key once, in a process of its own, before each worker does.

    HSMs and TPMs lock a secret that is wrong a few times; and what was opened in a parent is of no use
    to its children.

    Raises:
        Unavailable: it does not open; with the exit code of why.
    """

    def attempt() -> None:
        from strongroom.keyserver.opening import open_root_key

        open_root_key(config, passphrase)

    _, status = os.waitpid(_fork(attempt), 0)
    if status:
        error = Unavailable("The root key does not open.", hint="See the log.")
        # As of one process, so that a supervisor knows when starting again does not help.
        error.exit_code = os.waitstatus_to_exitcode(status)  # type: ignore[misc]
        raise error


def _fork(serve: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() == parent:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            serve()
        code = 0
    except BaseException as error:
        from strongroom.web.logs import describe

        log.error("worker failed", **describe(error))
        if isinstance(error, StrongroomError):
            code = error.exit_code
    finally:
        os._exit(code)


def _supervise(count: int, serve: Callable[[], None], sockets: Sequence[socket.socket]) -> None:
    """Keep ``count`` processes running; pass signals on; a process that dies is replaced.

    Raises:
        Unavailable: one does not start.
    """
    numbers = tempfile.mkdtemp(prefix="strongroom-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = numbers
    # Blocked and waited for: no handler, no race with one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    children: dict[int, float] = {}
    stopping, failed = False, False
    try:
        for _ in range(count):
            children[_fork(serve)] = time.monotonic()
        while children:
            number = signal.sigwait(_SIGNALS)
            if number != signal.SIGCHLD:
                stopping = stopping or number != signal.SIGHUP
                _tell(children, number)
                continue
            for pid, began in _ended(children):
                _forget(pid)
                if stopping:
                    continue
                log.error("worker ended", pid=pid)
                if time.monotonic() - began < _FAILED_START:
                    stopping = failed = True
                    _tell(children, signal.SIGTERM)
                else:
                    children[_fork(serve)] = time.monotonic()
    finally:
        _tell(children, signal.SIGKILL)
        for one in sockets:
            one.close()
        shutil.rmtree(numbers, ignore_errors=True)
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if failed:
        raise Unavailable("A worker of the key server does not start.", hint="See its log.")


def _tell(children: dict[int, float], number: int) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _ended(children: dict[int, float]) -> list[tuple[int, float]]:
    gone = [pid for pid in list(children) if os.waitpid(pid, os.WNOHANG)[0]]
    return [(pid, children.pop(pid)) for pid in gone]


def _forget(pid: int) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
