"""``strongroom rewrap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from strongroom.cli.inspect import describe_recipient
from strongroom.cli.keyring import ask_passphrase, opener, read_passphrase, sealers
from strongroom.cli.terminal import note, shown
from strongroom.cli.verb import (
    PassphraseFd,
    PassphraseOpens,
    Quiet,
    RecipientFile,
    RecipientOption,
    Source,
    flag,
    verb,
)
from strongroom.errors import UsageError
from strongroom.keys import Identity
from strongroom.model.inspection import inspect_model
from strongroom.model.rewrap import rewrap_model

__all__ = ["register"]

_EXAMPLES = """
strongroom rewrap resnet50.sealed -k old.txt -k new.txt
strongroom rewrap resnet50.sealed -k key.txt -R team.pub --keep
strongroom rewrap model.pt.sealed --passphrase -k key.txt
strongroom rewrap model.pt.sealed -k key.txt --new-passphrase
STRONGROOM_KEY_FILE=key.txt strongroom rewrap resnet50.sealed -R team.pub
"""


def rewrap(
    source: Source,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "-k",
            "--key",
            metavar="KEY",
            show_default=False,
            help="The first one opens the model (unless a passphrase does); every further one is new.",
        ),
    ] = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientFile = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    new_passphrase: Annotated[
        bool, flag("--new-passphrase", help="Ask on the terminal for a new passphrase.")
    ] = False,
    new_passphrase_fd: Annotated[
        int | None,
        typer.Option(
            "--new-passphrase-fd",
            metavar="N",
            show_default=False,
            help="Read a new passphrase from file descriptor N, up to the end of the line.",
        ),
    ] = None,
    keep: Annotated[bool, flag("--keep", help="Those who can open it now still can.")] = False,
    quiet: Quiet = False,
) -> None:
    """Change who can open a sealed model. The payload is not touched.

    The first -k, or the passphrase, or else the key in the environment opens it; the others can open
    it afterwards. At every moment there is one whole model, whatever happens.
    """
    if source == "-":
        raise UsageError("rewrap changes a file in place, and standard input is none.")
    by_passphrase = passphrase or passphrase_fd is not None
    opening, new = ([], key or []) if by_passphrase else ((key or [])[:1], (key or [])[1:])
    if not (new or recipient or recipients_file or new_passphrase or new_passphrase_fd is not None):
        raise UsageError(
            "It is not said who shall be able to open the model.",
            hint="After the -k that opens it, give another -k, -r, -R or --new-passphrase.",
        )
    inspect_model(source)  # before anybody is asked for a passphrase
    # In this order: with both on one descriptor, the passphrase that opens comes first.
    identities = _now(opener(opening, passphrase, passphrase_fd))
    secrets = [] if new_passphrase_fd is None else [read_passphrase(new_passphrase_fd)]
    if new_passphrase:
        secrets.append(ask_passphrase("New passphrase", twice=True))
    recipients = sealers(new, recipient, recipients_file, secrets, environment=False)
    rewrap_model(source, identities, recipients, keep=keep)
    if quiet:
        return
    entries = inspect_model(source).header.recipients
    note(f"{shown(source)} opens for:")
    for entry in entries:
        note(f"  {describe_recipient(entry)}")
    if not keep:
        note(
            "Who could open it before may have kept its data key; to shut them out, seal the model anew.",
            label="note: ",
        )


def _now(identities: Callable[[], list[Identity]]) -> Callable[[], list[Identity]]:
    found = identities()
    return lambda: found


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "rewrap", rewrap, _EXAMPLES)
