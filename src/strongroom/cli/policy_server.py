"""``strongroom policy put|show|history|approve``: policies in a key server."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from strongroom.cli.admin import Server, TokenFile, Yes, confirm, open_admin, print_rows
from strongroom.cli.attest_files import read_limited
from strongroom.cli.policy_files import read_policy
from strongroom.cli.terminal import plain, print_json, shown
from strongroom.cli.verb import Json, verb
from strongroom.errors import InvalidKey, NotFound
from strongroom.format.encoding import b64url
from strongroom.release.names import KeyName

__all__ = ["register_server_verbs"]

_MAX_KEY: Final = 16 << 10
_COLUMNS = {
    "id": "id",
    "version": "version",
    "status": "status",
    "approvals": "approvals",
    "needed": "needed",
    "author": "author",
    "created": "created",
}
_File = Annotated[
    str, typer.Argument(metavar="FILE", show_default=False, help="The policy, JSON or TOML.")
]
_KeyFile = Annotated[
    str,
    typer.Option(
        "--signing-key",
        metavar="FILE",
        show_default=False,
        help="The approver's Ed25519 key in PEM, as openssl genpkey -algorithm ed25519 makes it.",
    ),
]


def _status(answer: dict[str, Any], json: bool) -> None:
    if json:
        print_json(answer)
        return
    what = f"{plain(str(answer.get('id')))} version {answer.get('version')}"
    if answer.get("status") == "pending":
        print(f"{what} waits: {answer.get('approvals')} of {answer.get('needed')} approvals are there.")
    else:
        print(f"{what} is {plain(str(answer.get('status')))}.")


def put(file: _File, server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Bring a version of a policy into force.

    Where the version in force wants approvals, the new one waits until enough are there. Versions
    only rise; nothing is overwritten.
    """
    policy = read_policy(file)
    with open_admin(server, token_file) as caller:
        _status(caller.admin.put_policy(policy.to_json()), json)


def show(
    name: Annotated[
        str | None,
        typer.Argument(metavar="ID[@V]", show_default=False, help="One policy; a list, if not given."),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Show a policy, the version in force if none is named, as JSON; or list them all."""
    wanted = None if name is None else KeyName.parse(name)
    with open_admin(server, token_file) as caller:
        if wanted is None:
            print_rows(caller.admin.policies(), _COLUMNS, json, "policies")
            return
        versions = caller.admin.policy_history(wanted.name)
    found = [
        one
        for one in versions
        if one.get("version") == wanted.version
        or (wanted.version is None and one.get("status") == "active")
    ]
    if not found:
        raise NotFound(f"There is no policy {wanted}.", hint="See strongroom policy history.")
    print_json(found[-1] if json else found[-1].get("policy"))


def history(
    id: Annotated[str, typer.Argument(metavar="ID", show_default=False, help="A policy.")],
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """List all versions of a policy, oldest first."""
    name = KeyName.parse(id).name
    with open_admin(server, token_file) as caller:
        print_rows(caller.admin.policy_history(name), _COLUMNS, json, "policies")


def approve(
    file: _File,
    approver: Annotated[
        str,
        typer.Option(
            "--approver", metavar="NAME", show_default=False, help="Your name in the version in force."
        ),
    ],
    signing_key: _KeyFile,
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Approve a version that waits: sign the policy in FILE, which you have read.

    The server must have the same policy as FILE; what it says of it is not taken for it.
    """
    policy = read_policy(file)
    key = _load_key(signing_key)
    confirm(f"You approve {policy.id} version {policy.version}, SHA-256 {policy.digest.hex()}.", yes)
    with open_admin(server, token_file) as caller:
        _status(caller.admin.approve(policy, approver, key), json)


def approver(signing_key: _KeyFile) -> None:
    """Print the public key of an approver, as a policy's approvals.approvers names it."""
    print(b64url(_load_key(signing_key).public_key().public_bytes_raw()))


def _load_key(path: str) -> Ed25519PrivateKey:
    pem = read_limited(path, _MAX_KEY)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidKey(
            f"{shown(path)} is no Ed25519 key in PEM, or is encrypted.",
            hint="openssl genpkey -algorithm ed25519 -out approver.pem",
        )
    return key


def register_server_verbs(app: typer.Typer) -> None:
    """Add the verbs to the group ``policy``."""
    verb(app, "put", put, "strongroom policy put llama.json --server keyserver.json")
    verb(app, "show", show, "strongroom policy show\nstrongroom policy show llama@3 > llama-3.json")
    verb(app, "history", history, "strongroom policy history llama")
    verb(
        app,
        "approve",
        approve,
        "strongroom policy approve llama.json --approver alice --signing-key alice.pem",
    )
    verb(app, "approver", approver, "strongroom policy approver --signing-key alice.pem")
