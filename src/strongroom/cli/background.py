"""A verb that goes on in the background, and a caller who learns whether it does."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import Final

import typer

from strongroom.cli.terminal import print_error

__all__ = ["Background"]

_READY: Final = b"."
_STREAMS: Final = (0, 1, 2)


class Background:
    """The process that goes on, made by the one that the caller waits for.

    It is made before keys are read and threads begin, and stays in the session of the caller until it is
    ready: it can ask for a passphrase, say what is wrong, and be interrupted.
    """

    def __init__(self) -> None:
        """Fork; the caller's process ends in here.

        Raises:
            typer.Exit: in the caller's process, with 0 when the other one is ready, and else with its code.
        """
        ours, self._theirs = socket.socketpair()
        child = os.fork()
        if child:
            self._theirs.close()
            with ours:
                raise typer.Exit(_outcome(child, ours))
        ours.close()

    def ready(self) -> None:
        """Leave the caller's session, directory and streams, and let the caller go on.

        Raises:
            BrokenPipeError: the caller was killed; nobody would know of this process.
        """
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for stream in _STREAMS:
            os.dup2(null, stream)
        os.close(null)
        with self._theirs:
            self._theirs.sendall(_READY)


def _outcome(child: int, control: socket.socket) -> int:
    try:
        if control.recv(1) == _READY:
            return 0
        status = os.waitpid(child, 0)[1]
    except BaseException:  # a signal: what the other one has begun is undone
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print_error(f"It was killed by {signal.Signals(-code).name} before it was ready.", None)
        return 128 - code
    return code
