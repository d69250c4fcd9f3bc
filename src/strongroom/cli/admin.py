"""What the verbs for owners share: which server, who asks, and whether it is really meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from strongroom.cli.terminal import note, plain, print_json, report
from strongroom.cli.verb import flag
from strongroom.errors import InvalidKey, UsageError
from strongroom.providers.admin import AdminClient
from strongroom.providers.keyserver.profile import Profile, find_profile, read_profile

__all__ = [
    "Caller",
    "KeyNameArgument",
    "Reason",
    "Server",
    "TokenFile",
    "Yes",
    "confirm",
    "load_profile",
    "open_admin",
    "print_rows",
]

_TOKEN: Final = "STRONGROOM_TOKEN"
_MAX_TOKEN: Final = 16 << 10

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="PROFILE",
        show_default=False,
        help="Profile of the key server; if not given, the one that STRONGROOM_KEYSERVER names, or in "
        "~/.config/strongroom/keyserver.json.",
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        show_default=False,
        help="File with the token that says who asks; STRONGROOM_TOKEN, if not given.",
    ),
]
Yes = Annotated[bool, flag("-y", "--yes", help="Do not ask whether it is meant.")]
Reason = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; for the audit records."),
]
KeyNameArgument = Annotated[
    str, typer.Argument(metavar="NAME[@V]", show_default=False, help="A key, such as resnet50@3.")
]


@dataclass(frozen=True, slots=True)
class Caller:
    """An owner's client, and the server's profile."""

    admin: AdminClient
    profile: Profile


@contextmanager
def open_admin(server: str | None, token_file: str | None) -> Iterator[Caller]:
    """The client for a server, whose connection is closed in the end.

    Raises:
        NotFound: there is no profile.
        InvalidKey: the token is none.
    """
    from strongroom.providers.keyserver.transport import Transport

    profile = load_profile(server)
    token: str | None = None
    if token_file is not None:
        profile = replace(profile, token_file=token_file)
    elif os.environ.get(_TOKEN):
        token = _token(os.environ[_TOKEN])
    with closing(Transport(profile)) as transport:
        yield Caller(AdminClient(transport, profile, token), profile)


def load_profile(server: str | None) -> Profile:
    """The profile in a file, or the one that is found where nothing is said.

    Raises:
        NoKey, NotFound: there is none.
        UsageError: it cannot be used.
    """
    if server is None or server.startswith("https:"):
        return find_profile(server)
    return read_profile(server)


def _token(text: str) -> str:
    word = text.strip()
    if not word.isascii() or not word.isprintable() or " " in word or len(word) > _MAX_TOKEN:
        raise InvalidKey(f"{_TOKEN} holds no token.")
    return word


def confirm(question: str, yes: bool, *, word: str = "yes") -> None:
    """Go on only if a person types ``word``.

    Raises:
        UsageError: somebody types something else, or there is nobody to ask.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask.", hint="Say --yes if it is meant.")
    note(f"{plain(question)} Type {plain(word)} to go on:")
    if sys.stdin.readline().strip() != word:
        raise UsageError("It was not confirmed; nothing was done.")


def print_rows(
    found: list[dict[str, Any]], columns: Mapping[str, str], json: bool, member: str
) -> None:
    """A table, or JSON.

    Args:
        found: of the server.
        columns: title → member.
        json: whether JSON is wanted.
        member: what the JSON calls the list.
    """
    if json:
        print_json({member: found})
        return
    grid = Table.grid(padding=(0, 2))
    for _ in columns:
        grid.add_column(overflow="fold")
    grid.add_row(*(Text(title, "cyan") for title in columns))
    for one in found:
        grid.add_row(*(Text(plain(_shown(one.get(name)))) for name in columns.values()))
    with report() as out:
        out.print(grid if found else Text(f"no {member}"))


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    return ", ".join(map(str, value))
