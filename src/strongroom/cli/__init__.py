"""The command line: one module per verb; text and exit codes only."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``strongroom``: run the arguments of this process, exit with the right code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until there is something to clean up, Ctrl-C ends the process without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in (0, 1, 2):
        # A file that is opened while one of these is closed would take its place.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if any(importlib.util.find_spec(name) is None for name in ("typer", "rich")):
        print(
            'error: The command line needs packages that are not installed: pip install "strongroom[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    from strongroom.cli.process import prepare, run

    prepare()
    raise SystemExit(run(sys.argv[1:]))
