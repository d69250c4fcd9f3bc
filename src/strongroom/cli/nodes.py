"""``strongroom nodes``: machines that get keys, and machines that get none."""

from __future__ import annotations

from typing import Annotated

import typer

from strongroom.cli.admin import Reason, Server, TokenFile, Yes, confirm, open_admin, print_rows
from strongroom.cli.terminal import note, plain, print_json
from strongroom.cli.verb import Group, Json, verb

__all__ = ["app"]

_COLUMNS = {
    "platform": "platform",
    "evicted": "evicted",
    "leases": "leases",
    "last seen": "last_seen",
    "reason": "reason",
}
_Platform = Annotated[
    str,
    typer.Argument(metavar="PLATFORM", show_default=False, help="A machine, as nodes list names it."),
]


class _Nodes(Group):
    examples = """
strongroom nodes list
strongroom nodes evict ppid:811dca2a26b952e85bb6448b097ba4fd --reason "stolen"
"""


app = typer.Typer(
    name="nodes",
    cls=_Nodes,
    no_args_is_help=True,
    help="Machines to which a key server has released keys.",
)


def list_nodes(server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """List the machines that got keys, and those that were evicted."""
    with open_admin(server, token_file) as caller:
        print_rows(caller.admin.nodes(), _COLUMNS, json, "nodes")


def evict(
    platform: _Platform,
    reason: Reason,
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Give a machine no key and no renewal from now on. It keeps what it has until its leases end."""
    confirm(f"{platform} stops when its leases end.", yes)
    with open_admin(server, token_file) as caller:
        known = {one.get("platform") for one in caller.admin.nodes()}
        caller.admin.evict(platform, reason)
    _done(platform, evicted=True, json=json)
    if platform not in known:
        note("no key was released to a machine of this name: is it spelled right?", label="warning: ")


def admit(
    platform: _Platform, server: Server = None, token_file: TokenFile = None, json: Json = False
) -> None:
    """Let an evicted machine ask for keys again."""
    with open_admin(server, token_file) as caller:
        caller.admin.admit(platform)
    _done(platform, evicted=False, json=json)


def _done(platform: str, *, evicted: bool, json: bool) -> None:
    if json:
        print_json({"platform": platform, "evicted": evicted})
    else:
        print(f"{plain(platform)} {'is evicted' if evicted else 'may ask again'}.")


verb(app, "list", list_nodes, "strongroom nodes list\nstrongroom nodes list --json")
verb(
    app, "evict", evict, "strongroom nodes evict ppid:811dca2a26b952e85bb6448b097ba4fd --reason stolen"
)
verb(app, "admit", admit, "strongroom nodes admit ppid:811dca2a26b952e85bb6448b097ba4fd")
