"""``strongroom attest collect``."""

from __future__ import annotations

import hashlib
import json as json_module
from typing import Annotated

import typer

from strongroom.cli.attest_files import parse_hex
from strongroom.cli.terminal import note, plain
from strongroom.cli.verb import Force, Output, Quiet, verb
from strongroom.errors import UsageError
from strongroom.model.output import open_file_output
from strongroom.release.binding import SHORT

__all__ = ["Challenge", "bound_bytes", "register"]

_EXAMPLES = """
strongroom attest collect --challenge "$(openssl rand -hex 32)" -o evidence.json
strongroom attest collect --from tsm --report-data 00112233 -o evidence.json
strongroom attest collect --from "exec:ssh node7 quote" --challenge today -o -
"""

Challenge = Annotated[
    str | None,
    typer.Option(
        "--challenge",
        metavar="TEXT",
        show_default=False,
        help="In place of report data: any text, whose SHA-512 it is bound to, or its SHA-256 where "
        "there is no room for more.",
    ),
]


def bound_bytes(report_data: str | None, challenge: str | None, kind: str) -> bytes | None:
    """What evidence of a kind must be bound to, by the two options; None if neither is given.

    Raises:
        UsageError: both are given, or the report data are no bytes.
    """
    if report_data is not None and challenge is not None:
        raise UsageError("--report-data and --challenge exclude each other.")
    if report_data is not None:
        return parse_hex(report_data, "--report-data")
    if challenge is None:
        return None
    return (hashlib.sha256 if kind in SHORT else hashlib.sha512)(challenge.encode()).digest()


def collect(
    output: Output,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SPEC",
            help="Where evidence comes from: tsm, gramine, nitro, tpm, azure, nvidia, "
            "exec:COMMAND, or auto.",
        ),
    ] = "auto",
    report_data: Annotated[
        str | None,
        typer.Option(
            "--report-data",
            metavar="HEX",
            show_default=False,
            help="What it shall be bound to: up to 64 bytes.",
        ),
    ] = None,
    challenge: Challenge = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Collect evidence of this machine, bound to report data, as JSON.

    Who wants to know gives the challenge, once and unpredictable: evidence that is bound to nothing
    proves nothing, since it may be old or of another machine.
    """
    from strongroom.attest.collect import open_collector

    collector = open_collector(source)
    # Some collectors must run a program to know their kind.
    kind = "" if challenge is None else collector.kind
    bound = bound_bytes(report_data, challenge, kind)
    if bound is None:
        raise UsageError(
            "Evidence must be bound to something.", hint="Give --challenge TEXT or --report-data HEX."
        )
    evidence = collector.collect(bound)
    out = open_file_output(output, overwrite=force, private=False)
    try:
        out.write(json_module.dumps(evidence.to_json(), indent=1).encode() + b"\n")
        out.commit()
    except BaseException:
        out.abort()
        raise
    if not quiet and output != "-":
        note(f"Wrote evidence of the kind {plain(evidence.kind)}, {len(evidence.data)} bytes.")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "collect", collect, _EXAMPLES)
