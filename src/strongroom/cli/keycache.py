"""``strongroom keycache``: the keys of a node, for its processes."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from strongroom.cli.terminal import note, plain, print_json, report
from strongroom.cli.verb import Group, Json, Quiet, verb

__all__ = ["app"]


class _KeyCache(Group):
    examples = """
strongroom keycache run --socket /run/strongroom/keys.sock --attester tsm
strongroom keycache status --socket /run/strongroom/keys.sock
STRONGROOM_KEYSERVER=unix:///run/strongroom/keys.sock strongroom verify resnet50.sealed
"""


app = typer.Typer(
    name="keycache",
    cls=_KeyCache,
    no_args_is_help=True,
    help="Hold the keys of a node, and give them to its processes.",
)

_RUN_EXAMPLES = """
strongroom keycache run --socket /run/strongroom/keys.sock --attester tsm
strongroom keycache run --socket /run/strongroom/keys.sock --server keyserver.json --allow-uid triton
strongroom keycache run --config /etc/strongroom/keycache.toml
"""
_STATUS_EXAMPLES = """
strongroom keycache status --socket /run/strongroom/keys.sock
strongroom keycache status --socket /run/strongroom/keys.sock --json | jq .leases
"""


def _names(*options: str, metavar: str, help: str) -> Any:
    return typer.Option(*options, metavar=metavar, show_default=False, help=help)


def run(
    socket: Annotated[
        str | None, _names("--socket", metavar="PATH", help="Where local processes ask.")
    ] = None,
    server: Annotated[
        str | None,
        _names(
            "--server",
            metavar="PROFILE|URL",
            help="The key server: its profile, or its URL where the profile is in its place.",
        ),
    ] = None,
    attester: Annotated[
        str | None,
        _names(
            "--attester",
            metavar="SPEC",
            help="What makes evidence: tsm, gramine, nitro, tpm, azure, auto; with ,nvidia the GPUs too.",
        ),
    ] = None,
    group: Annotated[
        str | None, _names("--group", metavar="GROUP", help="The group that may connect.")
    ] = None,
    allow_uid: Annotated[
        list[str] | None,
        _names("--allow-uid", metavar="USER", help="A user who may have keys. Can be repeated."),
    ] = None,
    allow_gid: Annotated[
        list[str] | None,
        _names("--allow-gid", metavar="GROUP", help="A group that may have keys. Can be repeated."),
    ] = None,
    allow_exe: Annotated[
        list[str] | None,
        _names(
            "--allow-exe",
            metavar="PROGRAM",
            help="Only these programs of those users. Can be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None, _names("--config", "-c", metavar="FILE", help="TOML; options go before it.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve the keys of this node over a Unix socket, until it is told to end.

    It proves what this machine is when the first key is asked for, holds keys in locked memory for as long
    as they are leased, renews them, and wipes them at the end of the lease. Root and its own user may have
    keys, and who else is named.
    """
    from strongroom.keycache.config import Config, group_id, read_config, user_id
    from strongroom.keycache.run import run as serve

    found = Config() if config is None else read_config(config)
    allow = replace(
        found.allow,
        uids=found.allow.uids | {user_id(one) for one in allow_uid or ()},
        gids=found.allow.gids | {group_id(one) for one in allow_gid or ()},
        exes=found.allow.exes | {os.path.realpath(one) for one in allow_exe or ()},
    )
    place = socket or found.socket
    found = replace(
        found,
        server=server or found.server,
        socket=place and os.path.abspath(place),
        attester=attester or found.attester,
        gid=found.gid if group is None else group_id(group),
        allow=allow,
    )
    _log(logging.WARNING if quiet else logging.INFO)
    serve(found)


def _log(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("strongroom.keycache")
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def status(
    socket: Annotated[str, _names("--socket", metavar="PATH", help="Of the cache.")],
    json: Json = False,
) -> None:
    """Show what a key cache holds. No key is shown."""
    from strongroom.providers.unix_socket import KeyCache

    said = KeyCache(f"unix://{os.path.abspath(socket)}").status()
    if json:
        print_json(said)
        return
    leases = said.get("leases")
    leases = leases if isinstance(leases, list) else []
    note(
        f"{plain(str(said.get('server')))}: {len(leases)} {'key' if len(leases) == 1 else 'keys'}; "
        + ", ".join(
            f"{said.get(name)} {name}"
            for name in ("requests", "releases", "renewals", "refusals", "failures")
        )
        + "."
    )
    if leases:
        table = Table("key", "until", "renewed at", "served", box=None, header_style="bold")
        for one in leases:
            key = f"{one.get('name')}@{one.get('version')}"
            row = (key, one.get("not_after"), one.get("renew_at"), one.get("served"))
            table.add_row(*(Text(plain(str(value))) for value in row))
        with report() as out:
            out.print(table)


verb(app, "run", run, _RUN_EXAMPLES)
verb(app, "status", status, _STATUS_EXAMPLES)
