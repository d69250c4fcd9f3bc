"""``strongroom keygen``: a new key or key pair, in a file that only its owner can read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from strongroom.cli.new_files import write_files
from strongroom.cli.terminal import binary_output, note, plain, print_json
from strongroom.cli.verb import Json, Quiet, flag, verb
from strongroom.crypto.hpke import MLKEM768X25519, X25519
from strongroom.errors import UsageError, os_errors
from strongroom.keys import HpkeIdentity, SymmetricKey

__all__ = ["register"]

_EXAMPLES = """
strongroom keygen -o key.txt
strongroom keygen -o identity.txt --type hpke
strongroom keygen -o - | vault kv put secret/resnet50 key=-
"""
_SUFFIX = ".pub"


class KeyType(StrEnum):
    """What kind of key."""

    symmetric = "symmetric"
    hpke = "hpke"
    hpke_x25519 = "hpke-x25519"


def _generate(kind: KeyType) -> SymmetricKey | HpkeIdentity:
    if kind is KeyType.symmetric:
        return SymmetricKey.generate()
    return HpkeIdentity.generate(X25519 if kind is KeyType.hpke_x25519 else MLKEM768X25519)


def keygen(
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FILE", show_default=False, help="The key file; - is stdout."
        ),
    ],
    kind: Annotated[
        KeyType,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="symmetric: one secret key, the content of a Fernet key file. hpke: a key pair, "
            "safe from quantum computers. hpke-x25519: a key pair with short recipients.",
        ),
    ] = KeyType.symmetric,
    force: Annotated[
        bool, flag("--force", help="Replace FILE; what was sealed for its key stays closed.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a key, or a key pair.

    The file can be read by its owner alone (0600). Of a key pair, FILE is the identity, which opens,
    and the recipient, which seals, is printed and stored in FILE.pub.
    """
    if output == "-" and json:
        raise UsageError("With -o - the key itself is on standard output, and no JSON can be.")
    key = _generate(kind)
    recipient = None if isinstance(key, SymmetricKey) else str(key.recipient)
    kid = key.kid if isinstance(key, SymmetricKey) else key.recipient.kid
    if output == "-":
        stream = binary_output()
        with os_errors("standard output"):
            stream.write(key.encode())
            stream.flush()
        if recipient:
            note(f"recipient: {recipient}")
        return
    contents = {output: (key.encode(), 0o600)}
    if recipient:
        contents[output + _SUFFIX] = (recipient.encode() + b"\n", 0o666)
    write_files(
        contents,
        force=force,
        hint="Give another name. With --force the key in it is lost for ever.",
    )
    if json:
        print_json(
            {
                "type": kind.value,
                "file": output,
                "kid": kid,
                "recipient": recipient,
                "recipient_file": output + _SUFFIX if recipient else None,
            }
        )
    elif recipient:
        print(recipient)
    if not quiet:
        also = f" and its recipient to {plain(output + _SUFFIX)}" if recipient else ""
        note(
            f"Wrote the key to {plain(output)}{also}. Without this key, what is sealed for it is lost."
        )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "keygen", keygen, _EXAMPLES)
