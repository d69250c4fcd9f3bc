"""``strongroom keys``: the keys of a key server, as their owner sees them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from strongroom.cli.admin import (
    KeyNameArgument,
    Reason,
    Server,
    TokenFile,
    Yes,
    confirm,
    open_admin,
    print_rows,
)
from strongroom.cli.keyring import opener
from strongroom.cli.terminal import plain, print_json, shown
from strongroom.cli.verb import Group, Json, Key, PassphraseFd, PassphraseOpens, parse_pairs, verb
from strongroom.crypto.derive import ModelKeys
from strongroom.errors import NotFound, UsageError
from strongroom.keys import unwrap
from strongroom.model.reader import open_model
from strongroom.release.names import KeyName

__all__ = ["app"]

_COLUMNS = {
    "name": "name",
    "version": "version",
    "state": "state",
    "current": "current",
    "bundle": "bundle",
    "created": "created",
    "meta": "meta",
}


class _Keys(Group):
    examples = """
strongroom keys add resnet50 resnet50.sealed -k key.txt
strongroom keys list
strongroom keys rotate resnet50@4
strongroom keys revoke resnet50@3 --reason "weights leaked"
"""


app = typer.Typer(
    name="keys", cls=_Keys, no_args_is_help=True, help="The keys in a key server. None comes out of it."
)


def _versioned(text: str) -> KeyName:
    key = KeyName.parse(text)
    if key.version is None:
        raise UsageError(f"{key} names all versions of a key.", hint=f"Say which one: {key}@3.")
    return key


def _print_key(record: dict[str, Any], done: str, json: bool) -> None:
    if json:
        print_json(record)
    else:
        print(f"{plain(str(record.get('name')))}@{record.get('version')} {done}.")


def add(
    name: KeyNameArgument,
    sealed: Annotated[
        str,
        typer.Argument(metavar="SEALED", show_default=False, help="The sealed model that it opens."),
    ],
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            "--meta", metavar="K=V", show_default=False, help="More to say of it. Can be repeated."
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Register the key of a sealed model. Without a version, it gets the next one.

    The model is opened here with the key options, and its key is sealed for the server, which
    releases it from then on to machines that its policies accept.

    The model stays as it is, and does not name the server. Where it shall, so that it opens without
    a key option, use strongroom rewrap SEALED -k KEY -r https://SERVER/NAME --keep in place of this.
    """
    wanted = KeyName.parse(name)
    described = parse_pairs(meta, "--meta")
    identities = opener(key, passphrase, passphrase_fd)()
    with open_admin(server, token_file) as caller, open_model(sealed, lambda: identities) as model:
        keys = ModelKeys(unwrap(model.header, identities), model.bundle)
        try:
            record = caller.admin.add_key(wanted, model.bundle, keys.dek, described)
        finally:
            keys.wipe()
    _print_key(record, f"is registered, for {shown(sealed)}", json)


def list_keys(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="One key; all, if not given."),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """List keys and their versions."""
    wanted = None if name is None else KeyName.parse(name).name
    with open_admin(server, token_file) as caller:
        found = caller.admin.keys(wanted)
    print_rows(found, _COLUMNS, json, "keys")


def show(
    name: KeyNameArgument, server: Server = None, token_file: TokenFile = None, json: Json = False
) -> None:
    """Show a version of a key, the current one if none is named. The key itself is never shown."""
    wanted = KeyName.parse(name)
    with open_admin(server, token_file) as caller:
        listed = caller.admin.keys(wanted.name)
    found = [
        one
        for one in listed
        if one.get("version") == wanted.version or (wanted.version is None and one.get("current"))
    ]
    if not found:
        raise NotFound(f"There is no key {wanted}.")
    if json:
        print_json(found[0])
    else:
        for title, value in found[0].items():
            print(f"{plain(title):<10}{plain(str(value))}")


def rotate(
    name: KeyNameArgument,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Make a version the current one, the newest if none is named.

    Older active versions become deprecated: they are released still, where a policy allows it.
    """
    with open_admin(server, token_file) as caller:
        record = caller.admin.rotate(KeyName.parse(name))
    _print_key(record, "is the current version", json)


def revoke(
    name: KeyNameArgument,
    reason: Reason,
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Release a version no more, and renew no lease on it.

    Who has it keeps it until the end of his lease.
    """
    key = _versioned(name)
    confirm(f"Machines that need {key} stop when their leases end.", yes)
    with open_admin(server, token_file) as caller:
        _print_key(caller.admin.set_state(key, "revoked", reason), "is revoked", json)


def destroy(
    name: KeyNameArgument,
    reason: Reason,
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Erase a version for ever. What it opens stays closed, unless somebody else has the key."""
    key = _versioned(name)
    confirm(f"{key} cannot be had back.", yes, word=str(key))
    with open_admin(server, token_file) as caller:
        _print_key(caller.admin.set_state(key, "destroyed", reason), "is destroyed", json)


verb(
    app,
    "add",
    add,
    """
strongroom keys add resnet50 resnet50.sealed -k key.txt
strongroom keys add team/llama@7 llama.sealed --passphrase --meta owner=nlp
""",
)
verb(app, "list", list_keys, "strongroom keys list\nstrongroom keys list resnet50 --json")
verb(app, "show", show, "strongroom keys show resnet50\nstrongroom keys show resnet50@3 --json")
verb(app, "rotate", rotate, "strongroom keys rotate resnet50\nstrongroom keys rotate resnet50@2")
verb(app, "revoke", revoke, 'strongroom keys revoke resnet50@3 --reason "weights leaked"')
verb(app, "destroy", destroy, 'strongroom keys destroy resnet50@1 --reason "end of life" --yes')
