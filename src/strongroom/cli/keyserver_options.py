"""What the verbs of ``strongroom keyserver`` share: the configuration, and how the root key is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from strongroom.cli.keyring import ask_passphrase, read_passphrase
from strongroom.errors import MissingExtra

if TYPE_CHECKING:
    from strongroom.crypto.secret import SecretBytes
    from strongroom.keyserver.settings import Config
    from strongroom.keyserver.store import Actor, Store

__all__ = [
    "DEFAULT_CONFIG",
    "ConfigFile",
    "PassphraseFd",
    "absolute_source",
    "console_actor",
    "load",
    "needs_packages",
    "passphrase_for",
    "secret_of",
    "store_of",
]

DEFAULT_CONFIG: Final = Path("keyserver.toml")
ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="The configuration, as init made it.")
]
PassphraseFd = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        show_default=False,
        help="Read the passphrase of the root key (PIN of an HSM, token of Vault) from file descriptor N, "
        "up to the end of the line.",
    ),
]


def needs_packages() -> None:
    """Refuse, with the line that installs them, where the server's packages are missing."""
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise MissingExtra("A key server", "keyserver") from None


def load(path: Path) -> Config:
    """The configuration at ``path``."""
    needs_packages()
    from strongroom.keyserver.config import load_config

    return load_config(path)


def absolute_source(source: str) -> str:
    """A source of a root key as the command line has it: relative to where one stands."""
    from strongroom.keyserver.config import absolute_source as absolute

    return absolute(source, Path.cwd())


def secret_of(source: str, descriptor: int | None) -> SecretBytes | None:
    """What opens the root key at ``source``: given, asked for, or None where it needs nothing."""
    from strongroom.keyserver.kek import needs_passphrase

    if descriptor is not None:
        return read_passphrase(descriptor).encode()
    if not needs_passphrase(source):
        return None
    kind = source.partition(":")[0]
    what = {"pkcs11": "PIN of the HSM", "vault": "Token for Vault"}
    return ask_passphrase(what.get(kind, "Passphrase of the root key")).encode()


def passphrase_for(config: Config, descriptor: int | None) -> SecretBytes | None:
    """The passphrase of the root key: given, where the configuration says, or asked for."""
    from strongroom.keyserver.config import passphrase_of

    found = None if descriptor is not None else passphrase_of(config)
    return found if found is not None else secret_of(config.kek.source, descriptor)


def store_of(config: Config, descriptor: int | None) -> Store:
    """The store of a server, open."""
    from strongroom.keyserver.opening import open_store

    return open_store(config, passphrase_for(config, descriptor))


def console_actor() -> Actor:
    """Who stands at the machine itself, with its root key."""
    from strongroom.keyserver.store import Actor

    return Actor("console", "owner", "local")
