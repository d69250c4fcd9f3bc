"""The process around a verb: signals, core dumps, and what an exception turns into."""

from __future__ import annotations

import io
import math
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final

import typer

from strongroom.cli.terminal import print_error
from strongroom.crypto.secret import keep_out_of_core_dumps
from strongroom.errors import StrongroomError, Unavailable

__all__ = ["BUG", "PROGRAM", "prepare", "run"]

PROGRAM: Final = "strongroom"
BUG: Final = 70
_USAGE: Final = 2
_BROKEN_PIPE: Final = 128 + signal.SIGPIPE

# Newer releases of Typer bring a copy of Click; its public classes lead to that one or to Click's.
_ClickUsageError: Final[Any] = typer.BadParameter.__bases__[0]
_ClickException: Final[Any] = _ClickUsageError.__bases__[0]

_GRACE: Final = 2.0
"""Seconds after a signal in which further ones are taken for the same."""

_SECRET_LIKE: Final = re.compile(r"[A-Za-z0-9_-]{40,}=*|\S*-secret:\S*")


class _Interrupted(BaseException):
    """A signal asks the process to end; not an Exception, so that only cleanup sees it pass."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


class _Interrupt:
    """The handler of signals that end the process.

    Attributes:
        came: the last signal; servers look at it when they take the signals over, since an exception that
            a signal raises is lost where C code drops it: 2 of 50 while theirs was imported.
    """

    def __init__(self) -> None:
        self.came = 0
        self._last = -math.inf

    def __call__(self, number: int, frame: object) -> None:
        # One that follows at once must not cut the cleanup short. A later one counts: Python drops an
        # exception that a signal raises inside a finalizer.
        now = time.monotonic()
        if now - self._last > _GRACE:
            self._last, self.came = now, number
            raise _Interrupted(number)


_interrupt = _Interrupt()


def prepare() -> None:
    """Make this process fit to hold keys, to print any name, and to be interrupted at any moment."""
    keep_out_of_core_dumps()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
            signal.signal(number, _interrupt)


def _is_broken_pipe(error: BaseException | None) -> bool:
    """Whether ``error`` says that nobody reads our output any more, and not a broken connection."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    return error is not None and any(events & select.POLLERR for _, events in poll.poll(0))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _silence() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains of the pipe at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                os.dup2(null, stream.fileno())
    os.close(null)


def _usage_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    if type(error).__name__ == "NoArgsIsHelpError":  # it has printed the help
        return _USAGE
    message = str(error.format_message())
    # What is left over may be a passphrase that somebody put after --passphrase.
    if message.startswith("Got unexpected extra argument"):
        message = "There are more arguments than the command takes."
    # Pydantic's word for what a validator of Typer said.
    message = message.replace(": Value error, ", ": ")
    message = _SECRET_LIKE.sub("…", " ".join(message.split()))
    print_error(message if message.endswith((".", "?")) else message + ".", f"{path} --help")
    return _USAGE


def _bug(error: Exception) -> int:
    """One sentence without the text of the exception: that could quote a key or a plaintext."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}strongroom{os.sep}" in frame.filename]
    frame = (ours or frames)[-1]
    where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
    print_error(
        f"This is a bug in strongroom: {type(error).__name__} in {where}.",
        "Run it again with STRONGROOM_DEBUG=1 to see the traceback, and report it.",
    )
    return BUG


def _os_error(error: OSError) -> int:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    reason = os.strerror(error.errno).lower() if error.errno else "input or output failed"
    print_error(f"{where}{reason}.", None)
    return Unavailable.exit_code


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure is a sentence on standard error."""
    from strongroom.cli.app import app

    try:
        outcome = typer.main.get_command(app).main(
            args=list(arguments), prog_name=PROGRAM, standalone_mode=False
        )
        _flush()
        return outcome if isinstance(outcome, int) else 0
    except _Interrupted as error:
        return error.code
    except SystemExit as error:
        # Rich, whose pipe is gone, ends like this, with standard output sent nowhere.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return _broken_pipe()
    except _ClickException as error:
        return _usage_error(error)
    except Exception as error:
        if _is_broken_pipe(error):
            return _broken_pipe()
        if _interrupt.came and isinstance(error, ImportError):
            # numpy makes this of an exception that a signal raises while it is imported.
            return 128 + _interrupt.came
        if os.environ.get("STRONGROOM_DEBUG"):
            traceback.print_exception(error)
        return _failure(error)


def _broken_pipe() -> int:
    _silence()
    return _BROKEN_PIPE


def _failure(error: Exception) -> int:
    if isinstance(error, StrongroomError):
        print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, MemoryError):
        print_error("There is not enough memory for this.", None)
        return Unavailable.exit_code
    if isinstance(error, OSError):
        return _os_error(error)
    return _bug(error)
