"""Where the log of a verb goes that runs on."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
from logging.handlers import SysLogHandler, WatchedFileHandler
from typing import Final

from strongroom.errors import UsageError, os_errors

__all__ = ["log_file", "log_to", "standard_error", "system_log"]

_DATED: Final = "%(asctime)s %(levelname)s %(message)s"
_SYSTEM_LOG: Final = "/dev/log"


def standard_error(*, dated: bool) -> logging.Handler:
    """A line for what happens, with its time where that is not told otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    if dated:
        handler.setFormatter(logging.Formatter(_DATED))
    return handler


def log_file(path: str) -> logging.Handler:
    """Append to a file; it is opened again when somebody has moved it away, as logrotate does.

    Raises:
        StrongroomError: it cannot be written.
    """
    with os_errors(path):
        handler = WatchedFileHandler(path)
    handler.setFormatter(logging.Formatter(_DATED))
    return handler


def system_log(name: str, address: str = _SYSTEM_LOG) -> logging.Handler:
    """The journal, or another syslog.

    Args:
        name: of the program, as lines begin.

    Raises:
        UsageError: there is none.
    """
    try:
        there = stat.S_ISSOCK(os.stat(address).st_mode)
    except OSError:
        there = False
    if not there:
        raise UsageError(
            f"There is no system log here ({address}).", hint="Say where the log goes: --log-file FILE"
        )
    handler = SysLogHandler(address, SysLogHandler.LOG_DAEMON, socket.SOCK_DGRAM)
    handler.ident = f"{name}[{os.getpid()}]: "
    handler.append_nul = False
    return handler


def log_to(logger: logging.Logger, handler: logging.Handler, level: int = logging.WARNING) -> None:
    """Send what ``logger`` is told, from ``level`` on, to ``handler`` alone."""
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
