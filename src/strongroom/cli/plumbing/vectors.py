"""``strongroom plumbing vectors``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.terminal import note, plain
from strongroom.cli.verb import Quiet, verb
from strongroom.errors import os_errors

__all__ = ["register"]

_EXAMPLES = """
strongroom plumbing vectors vectors/
"""


def vectors(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="Where they go.")
    ],
    quiet: Quiet = False,
) -> None:
    """Write the test vectors of the format: sealed files with one fault each, and whole ones.

    They are the same bytes every time. Their names are printed, one a line.
    """
    from strongroom.testing.vectors import write_vectors

    with os_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        names = write_vectors(directory)
    if not quiet:
        for name in names:
            print(plain(name))
        note(f"Wrote {len(names)} test vectors to {plain(str(directory))}.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    verb(app, "vectors", vectors, _EXAMPLES)
