"""``strongroom tokens``: who may administer a key server."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import typer

from strongroom.cli.admin import Server, TokenFile, Yes, confirm, open_admin, print_rows
from strongroom.cli.terminal import note, plain, print_json
from strongroom.cli.verb import Group, Json, verb
from strongroom.errors import AlreadyExists, NotFound
from strongroom.model.output import open_file_output
from strongroom.release.messages import parse_time

__all__ = ["app"]

_COLUMNS = {"id": "id", "name": "name", "role": "role", "created": "created", "expires": "expires"}


class Role(StrEnum):
    """What the owner of a token may do: each role what the ones before it may, and more."""

    auditor = "auditor"
    operator = "operator"
    owner = "owner"


class _Tokens(Group):
    examples = """
strongroom tokens add ci --role operator --expires 2026-12-31T00:00:00Z -o ci.token
strongroom tokens list
"""


app = typer.Typer(
    name="tokens",
    cls=_Tokens,
    no_args_is_help=True,
    help="Tokens of those who administer a key server.",
)


def add(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, help="Whose it is; stands in the audit."),
    ],
    role: Annotated[
        Role,
        typer.Option(
            "--role",
            metavar="ROLE",
            show_default=False,
            help="auditor reads; operator handles keys and nodes; owner does everything.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            show_default=False,
            help="Where the token goes, readable by you alone; - is stdout.",
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="TIME",
            show_default=False,
            help="When it ends, such as 2026-12-31T00:00:00Z; never, if not given.",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Make a token. The server tells it once; it goes to a file, and is not printed."""
    end = None if expires is None else parse_time(expires, "--expires")
    # Before the server makes a token that nobody could keep.
    try:
        file = open_file_output(output, overwrite=False, private=True)
    except AlreadyExists as error:
        error.hint = "Give another file: a token replaces none."
        raise
    try:
        with open_admin(server, token_file) as caller:
            made = caller.admin.add_token(name, role.value, end)
        file.write(str(made["token"]).encode() + b"\n")
        file.commit()
    except BaseException:
        file.abort()
        raise
    if json and output != "-":
        print_json({"id": made["id"], "name": name, "role": role.value, "file": output})
    elif output != "-":
        print(plain(str(made["id"])))
        note(f"Wrote the token of {plain(name)} to {plain(output)}.")


def list_tokens(server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """List the tokens that are good: whose they are, not what they are."""
    with open_admin(server, token_file) as caller:
        print_rows(caller.admin.tokens(), _COLUMNS, json, "tokens")


def drop(
    id: Annotated[
        str, typer.Argument(metavar="ID", show_default=False, help="Of a token, as list shows it.")
    ],
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Make a token good for nothing, at once."""
    if not re.fullmatch("[0-9a-f]{16}", id):
        raise NotFound(f"There is no token {id}.", hint="See the ids in strongroom tokens list.")
    confirm(f"Whoever uses the token {id} is shut out.", yes)
    with open_admin(server, token_file) as caller:
        caller.admin.drop_token(id)
    if json:
        print_json({"id": id, "dropped": True})
    else:
        print(f"The token {plain(id)} is good for nothing now.")


verb(app, "add", add, "strongroom tokens add ci --role operator -o ci.token")
verb(app, "list", list_tokens, "strongroom tokens list")
verb(app, "drop", drop, "strongroom tokens drop 7f3a0c41d2e84b76")
