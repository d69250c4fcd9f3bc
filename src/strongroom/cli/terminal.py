"""What a person sees: text made safe, sizes, notes, errors, JSON, progress."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from rich.console import Console
from rich.text import Text

from strongroom.errors import UsageError
from strongroom.model.location import is_url, public
from strongroom.model.payload import Progress

__all__ = [
    "binary_input",
    "binary_output",
    "console",
    "note",
    "plain",
    "print_error",
    "print_json",
    "progress_bar",
    "rate_text",
    "report",
    "shown",
    "size_text",
]

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB")
_REDRAW: Final = 0.05
"""Seconds between two updates of a bar: it is told of every segment, some thousands a second."""


def plain(text: str) -> str:
    """``text`` on one line, with everything that a terminal would act on written as an escape.

    Names and metadata come from files that are not authenticated: control characters could repaint
    the screen, bidirectional ones show another name than the one that is there.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def shown(location: str, standard: str = "-") -> str:
    """A path or URL for messages: on one line, and without the secrets that a URL may carry.

    ``standard`` is what ``-`` means.
    """
    if location == "-":
        return standard
    return plain(public(location) if is_url(location) else location)


def size_text(size: float) -> str:
    """Bytes for a person, in decimal units: ``98.3 MB``."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in _UNITS[:-1]:
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} {_UNITS[-1]}"


def rate_text(size: int, seconds: float) -> str:
    """Throughput for a person."""
    return f"{size_text(size / seconds)}/s" if seconds > 0 else "–"


def console(stream: IO[str]) -> Console:
    """A console that prints what it is given: no markup, no highlighting, no wrapping in pipes."""
    width = None if stream.isatty() else 10_000
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


@contextmanager
def report() -> Iterator[Console]:
    """A console whose text goes to standard output at the end, without the blanks that pad tables."""
    out = console(sys.stdout)
    with out.capture() as captured:
        yield out
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _line(stream: IO[str] | None, text: Text) -> None:
    if stream is not None:
        console(stream).print(text, soft_wrap=True)


def note(text: str, *, label: str = "") -> None:
    """A line on standard error, such as ``warning: …``; escaped by the caller where it quotes a file."""
    _line(sys.stderr, Text.assemble((label, "bold yellow"), text))


def print_error(message: str, hint: str | None) -> None:
    """The one sentence on standard error, and what to do about it."""
    _line(sys.stderr, Text.assemble(("error: ", "bold red"), plain(message)))
    if hint:
        _line(sys.stderr, Text.assemble(("hint: ", "bold cyan"), plain(hint)))


def print_json(value: Any) -> None:
    """One JSON document on standard output, in ASCII."""
    print(json.dumps(value, indent=2))


def binary_input() -> IO[bytes]:
    """Standard input for a model.

    Raises:
        UsageError: it is closed or a terminal.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "Standard input is a terminal or closed.", hint="Send a file through it: … < FILE"
        )
    return sys.stdin.buffer


def binary_output() -> IO[bytes]:
    """Standard output for a model or a key.

    Raises:
        UsageError: it is closed or a terminal.
    """
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError(
            "Standard output is a terminal or closed.",
            hint="Send it to a file or a program: … | PROGRAM",
        )
    return sys.stdout.buffer


class _Meter:
    """Adds up what is done, from several threads, and tells the bar of it now and then."""

    def __init__(self, update: Progress) -> None:
        self._update = update
        self._lock = threading.Lock()
        self._done = 0
        self._shown = 0.0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._shown < _REDRAW:
                return
            self._shown = now
            self._update(self._done)


@contextmanager
def progress_bar(label: str, total: int | None, *, wanted: bool = True) -> Iterator[Progress | None]:
    """A bar with throughput on standard error, gone when the work is; None where nobody would see it.

    Args:
        label: what is done, escaped by the caller.
        total: bytes, or None if nobody knows.
        wanted: False for ``--quiet`` and ``--no-progress``.
    """
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield _Meter(lambda done: bar.update(task, completed=done))
