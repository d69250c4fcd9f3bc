"""What libraries write to standard error past Python becomes lines of the log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from strongroom.web.logs import log

__all__ = ["foreign_lines_logged"]

_STDERR: Final = 2


@contextmanager
def foreign_lines_logged(library: str) -> Iterator[None]:
    """Log what a library writes meanwhile: a line of its own for each, as JSON.

    Lines of the log itself, which other threads write, come unchanged, when this ends. One at a time.

    Args:
        library: whose lines they are.
    """
    written = None
    # Closed before the start, the number of standard error may be that of a socket by now. And where there
    # is no log, as in the servers of others, and in Gramine, which has no such files, lines stay as they are.
    if sys.stderr is not None and structlog.is_configured():
        with suppress(OSError):
            written = os.memfd_create("stderr")
    if written is None:
        yield
        return
    kept = os.dup(_STDERR)
    try:
        os.dup2(written, _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.lseek(written, 0, os.SEEK_SET)
            with open(written, "rb", closefd=False) as lines:
                for line in lines:
                    _write(line, library)
    finally:
        os.close(written)
        os.close(kept)


def _write(line: bytes, library: str) -> None:
    if not line.startswith(b"{"):
        log.info("said", library=library, line=line.decode("utf-8", "replace").rstrip())
        return
    with suppress(OSError):  # as for the log's own lines: nobody reads them, or the disk is full
        os.write(_STDERR, line)
