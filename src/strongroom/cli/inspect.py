"""``strongroom inspect``."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from strongroom.cli.terminal import plain, print_json, report, shown, size_text
from strongroom.cli.verb import Json, Source, verb
from strongroom.errors import UsageError
from strongroom.format.encoding import b64url
from strongroom.model.inspection import Inspection, inspect_model

__all__ = ["describe_recipient", "register"]

_EXAMPLES = """
strongroom inspect resnet50.sealed
strongroom inspect resnet50.sealed --json | jq .meta.version
strongroom inspect https://models.example/model.pt.sealed
"""


def describe_recipient(entry: Mapping[str, Any]) -> str:
    """One recipient on a line: its algorithm, and what tells it from others."""
    parts = [str(entry["alg"])]
    parts += [
        f"{name}={_value(value)}"
        for name, value in entry.items()
        if name not in ("alg", "encrypted_key", "salt")
    ]
    return plain("  ".join(parts))


def _value(value: object) -> str:
    return value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def _facts(found: Inspection) -> list[tuple[str, str]]:
    header = found.header
    rows = [
        ("bundle", b64url(header.bundle)),
        ("segment", f"{header.segment} bytes"),
        ("on disk", f"{size_text(found.stored)} ({found.stored} bytes)"),
    ]
    label = "opens for"
    for entry in header.recipients:
        rows.append((label, describe_recipient(entry)))
        label = ""
    if not header.recipients:
        rows.append((label, "the recipients in the MANIFEST.sealed of its directory"))
    return rows


def _file_table(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    for info in found.files:
        state = Text("sealed", "green") if info.sealed else Text("clear", "yellow")
        grid.add_row(Text(plain(info.path)), Text(size_text(info.size)), state)
    return grid


def _print(source: str, found: Inspection) -> None:
    kind = "sealed directory" if found.directory else "sealed file"
    size = size_text(sum(info.size for info in found.files))
    count = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
    meta = [(plain(name), plain(_value(value))) for name, value in found.header.meta.items()]
    sections = {"header": _grid(_facts(found)), "meta": _grid(meta), "files": _file_table(found)}
    with report() as out:
        out.print(Text.assemble((shown(source), "bold"), f": {kind}, {count}, {size}"), soft_wrap=True)
        for title, table in sections.items():
            if table.row_count:
                out.print()
                out.print(Text(title, "bold"))
                out.print(Padding(table, (0, 0, 0, 2), expand=False))
        out.print()
        warning = Text("Not authenticated: anybody could have written this. ", "yellow")
        out.print(warning.append("With the key, strongroom verify tells.", "default"), soft_wrap=True)


def inspect(source: Source, json: Json = False) -> None:
    """Show what a sealed model says of itself. Needs no key.

    Without a key nothing of it can be authenticated: for that, see strongroom verify.
    """
    if source == "-":
        raise UsageError("inspect needs a file or directory, not standard input.")
    found = inspect_model(source)
    if json:
        print_json(found.to_json())
    else:
        _print(source, found)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "inspect", inspect, _EXAMPLES)
