"""Evidence in files: as JSON with its endorsements, or as the bytes that the hardware gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.attest.registry import KINDS
from strongroom.cli.terminal import binary_input, shown
from strongroom.errors import MalformedEvidence, MissingEndorsement, UsageError, os_errors
from strongroom.format.encoding import parse_json

__all__ = ["Kind", "advised", "parse_hex", "read_evidence", "read_limited"]

Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        show_default=False,
        help="What it is evidence of, for a file that does not say: " + ", ".join(KINDS) + ".",
    ),
]

_MAX_FILE: Final = 2 * (MAX_EVIDENCE + MAX_ENDORSEMENTS)
_MEMBERS: Final = {"kind", "data", "endorsements"}


def read_limited(path: str, limit: int) -> bytes:
    """The content of a file, ``-`` for standard input.

    Raises:
        UsageError: it has more than ``limit`` bytes.
        NotFound, StorageError: it cannot be read.
    """
    with os_errors(shown(path, "standard input")):
        if path == "-":
            data = binary_input().read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(limit + 1)
    if len(data) > limit:
        raise UsageError(f"{shown(path, 'standard input')} has more than {limit} bytes.")
    return data


def read_evidence(path: str, kind: str | None, endorsements: Sequence[str] = ()) -> Evidence:
    """Evidence of a file; endorsements of files take the place of what it brings along.

    Args:
        path: an object with kind and data in JSON, or raw bytes.
        kind: of raw bytes; must agree with what JSON says.
        endorsements: files.

    Raises:
        UsageError: nobody says of what kind it is, or two say different things.
        MalformedEvidence: it is something else.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(
            f"Evidence of the kind {kind} is not known.", hint="Known: " + ", ".join(KINDS)
        )
    data = read_limited(path, _MAX_FILE)
    try:
        members = parse_json(data)
    except ValueError:
        members = {}
    # The data of some kinds are an object in JSON themselves.
    if {"kind", "data"} <= set(members) <= _MEMBERS:
        evidence = Evidence.from_json(members)
        if kind not in (None, evidence.kind):
            raise UsageError(
                f"The file says that it is evidence of the kind {evidence.kind}, not {kind}."
            )
    elif kind is None:
        raise UsageError(
            "The file does not say what it is evidence of.",
            hint="Say it with --kind, as in --kind tdx.",
        )
    else:
        evidence = Evidence(kind, data)
    given = tuple(read_limited(one, MAX_ENDORSEMENTS) for one in endorsements)
    if not evidence.data:
        raise MalformedEvidence("The evidence is empty.")
    return Evidence(evidence.kind, evidence.data, given or evidence.endorsements)


@contextmanager
def advised(kind: str | None) -> Iterator[None]:
    """Errors of verifiers, which know of no command line, with hints that do.

    Args:
        kind: that was given for raw bytes, which may be of another one.
    """
    try:
        yield
    except MissingEndorsement as error:
        if "source of endorsements" in (error.hint or ""):
            error.hint = "Give it with --endorsements, a file or a directory of them."
        raise
    except MalformedEvidence as error:
        if kind is not None and error.hint is None:
            error.hint = f"Is it evidence of the kind {kind}? There are: {', '.join(KINDS)}."
        raise


def parse_hex(text: str, option: str) -> bytes:
    """Bytes that an option gives in hexadecimal.

    Raises:
        UsageError: they are none, or more than report data can be.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if not 0 < len(data) <= 64:
        raise UsageError(f"{option} takes 1 to 64 bytes in hexadecimal.")
    return data
