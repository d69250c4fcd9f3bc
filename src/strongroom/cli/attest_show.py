"""``strongroom attest show``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from strongroom.cli.attest_describe import describe
from strongroom.cli.attest_files import Kind, advised, read_evidence
from strongroom.cli.terminal import plain, print_json, report, shown
from strongroom.cli.verb import Json, verb

__all__ = ["flat", "register", "value_rows"]

_EXAMPLES = """
strongroom attest show evidence.json
strongroom attest show --kind tdx quote.bin
strongroom attest show evidence.json --json | jq .says.mr_td
"""


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """The members of a tree as rows: ``tcb.reported.snp``, ``devices[0].driver``."""
    if isinstance(value, Mapping) and value:
        return [
            row
            for name, member in value.items()
            for row in flat(member, f"{path}.{name}" if path else str(name))
        ]
    if isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
        return [row for index, one in enumerate(value) for row in flat(one, f"{path}[{index}]")]
    return [(path, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping | list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def value_rows(rows: list[tuple[str, str]]) -> Table:
    """Rows of names and values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text("  " + plain(name)), Text(plain(value)))
    return grid


def show(
    file: Annotated[
        str, typer.Argument(metavar="FILE", show_default=False, help="Evidence, JSON or raw.")
    ],
    kind: Kind = None,
    json: Json = False,
) -> None:
    """Show what evidence says of itself. Nothing of it is verified.

    Anybody can have written it: for a verdict, see strongroom attest verify.
    """
    evidence = read_evidence(file, kind)
    with advised(kind):
        says = describe(evidence)
    if json:
        print_json(
            {
                "verified": False,
                "kind": evidence.kind,
                "size": len(evidence.data),
                "endorsements": [len(one) for one in evidence.endorsements],
                "says": says,
            }
        )
        return
    count = len(evidence.endorsements)
    along = f", {count} endorsement{'s' if count != 1 else ''} with it" if count else ""
    with report() as out:
        out.print(Text("NOT VERIFIED: anybody can have written this.", "bold yellow"))
        title = f": evidence of the kind {evidence.kind}, {len(evidence.data)} bytes{along}"
        out.print(Text.assemble((shown(file), "bold"), title), soft_wrap=True)
        out.print(value_rows(flat(says)))
        out.print(Text("NOT VERIFIED: see strongroom attest verify.", "bold yellow"))


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "show", show, _EXAMPLES)
