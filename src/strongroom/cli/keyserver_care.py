"""The verbs of ``strongroom keyserver`` that look after a server."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import typer

from strongroom.cli.keyring import ask_passphrase, read_passphrase
from strongroom.cli.keyserver_options import (
    DEFAULT_CONFIG,
    ConfigFile,
    PassphraseFd,
    absolute_source,
    console_actor,
    load,
    needs_packages,
    passphrase_for,
    secret_of,
    store_of,
)
from strongroom.cli.terminal import note, plain
from strongroom.cli.verb import flag
from strongroom.cli.verb import verb as add_verb
from strongroom.errors import AlreadyExists, UsageError
from strongroom.model.output import FileOutput

__all__ = ["register"]

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", show_default=False, help="For the audit trail.")
]


def migrate(config: ConfigFile = DEFAULT_CONFIG, passphrase_fd: PassphraseFd = None) -> None:
    """Upgrade the database to this release.

    A server does the same when it starts; this is for those who want to see it done before.
    """
    with closing(store_of(load(config), passphrase_fd)):
        note("The database is up to date.")


def backup(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="Where the copy goes.")
    ],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Copy a database of SQLite while the server runs.

    The copy is whole, and worthless without the root key. For PostgreSQL use pg_dump.
    """
    settings = load(config)
    from strongroom.keyserver.backup import backup_sqlite
    from strongroom.keyserver.config import database_url

    backup_sqlite(database_url(settings), output)
    note(f"Wrote {plain(str(output))}.")


def verify(config: ConfigFile = DEFAULT_CONFIG, passphrase_fd: PassphraseFd = None) -> None:
    """Check all of the database: the chain of audit records, the signed state, every wrapped key.

    The server can run meanwhile.
    """
    with closing(store_of(load(config), passphrase_fd)) as store:
        head = store.verify()
    note(f"All is well, up to audit record {head.sequence}: {head.hash}")


def make_kek(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="Where: pkcs11:…, aws-kms:alias/NAME, vault:MOUNT/KEY, tpm:PATH, file:PATH.",
        ),
    ],
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Make a root key, for init --kek and rotate-kek --to. None that is there is replaced.

    In an HSM, KMS or Vault it is made such that it never leaves it. In a file or a TPM it is under the
    passphrase of --passphrase-fd, and without one as safe as the file and the machine are.
    """
    needs_packages()
    from strongroom.keyserver.kek import create_kek, in_file

    source = absolute_source(source)
    if in_file(source) is None:
        secret = secret_of(source, passphrase_fd)
    else:
        secret = None if passphrase_fd is None else read_passphrase(passphrase_fd).encode()
    made = create_kek(source, secret)
    note(f"Made {plain(made.id)}.")


def rotate_kek(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SOURCE",
            show_default=False,
            help="The new root key: file:PATH or tpm:PATH, made if it is not there; pkcs11:…, "
            "aws-kms:KEY, vault:MOUNT/KEY, as make-kek makes them.",
        ),
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    passphrase_fd: PassphraseFd = None,
    new_passphrase_fd: Annotated[
        int | None,
        typer.Option(
            "--new-passphrase-fd",
            metavar="N",
            show_default=False,
            help="Read the passphrase of the new root key (PIN, token) from file descriptor N.",
        ),
    ] = None,
) -> None:
    """Put all keys under another root key.

    Running servers release nothing from then on, until they are started with the new one, which has
    to be written into the configuration.
    """
    settings = load(config)
    from strongroom.keyserver.kek import create_kek, in_file, open_kek

    source = absolute_source(to)
    file = in_file(source)
    missing = file is not None and not file.exists()
    if missing:
        new = None if new_passphrase_fd is None else read_passphrase(new_passphrase_fd).encode()
    else:
        new = secret_of(source, new_passphrase_fd)
    with closing(store_of(settings, passphrase_fd)) as store:
        count = store.rotate_kek((create_kek if missing else open_kek)(source, new), console_actor())
    note(f"Keys under the new root key: {count}.")
    note(f"Write into {plain(str(config))}, section [kek]: source = {plain(repr(source))}")
    if settings.kek.passphrase_file or settings.kek.passphrase_env:
        note("and there, whether and where the new one has a passphrase.")


def change_passphrase(
    config: ConfigFile = DEFAULT_CONFIG,
    passphrase_fd: PassphraseFd = None,
    new_passphrase_fd: Annotated[
        int | None,
        typer.Option(
            "--new-passphrase-fd",
            metavar="N",
            show_default=False,
            help="Read the new passphrase from file descriptor N.",
        ),
    ] = None,
) -> None:
    """Give the file of the root key another passphrase. The key stays the same."""
    settings = load(config)
    from strongroom.keyserver.keks.file import change_passphrase as change

    kind, _, place = settings.kek.source.partition(":")
    if kind != "file":
        raise UsageError("Only a root key in a file has a passphrase that can be changed here.")
    old = passphrase_for(settings, passphrase_fd)
    if new_passphrase_fd is not None:
        new = read_passphrase(new_passphrase_fd).encode()
    else:
        new = ask_passphrase("New passphrase of the root key", twice=True).encode()
    change(place, old, new)
    note("The root key has another passphrase.")


def token(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", show_default=False, help="Where it goes."),
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Make a token for an owner on the server itself, where the last one is lost.

    Needs the root key. It is on record in the audit trail.
    """
    settings = load(config)
    with closing(store_of(settings, passphrase_fd)) as store:
        # First the place for it: a token that nobody has must not be good.
        try:
            file = FileOutput(str(output), overwrite=False, mode=0o600)
        except AlreadyExists as error:
            error.hint = "Give another file: a token replaces none."
            raise
        try:
            _, made = store.add_token("owner", "owner", None, console_actor())
            file.write(made.encode() + b"\n")
            file.commit()
        finally:
            file.abort()
    note(f"Wrote the token to {plain(str(output))}.")


def renew_certificate(
    config: ConfigFile = DEFAULT_CONFIG,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME",
            show_default=False,
            help="Name or address of the server; those of the old certificate if not given. Can be "
            "repeated.",
        ),
    ] = None,
) -> None:
    """Give the server a new certificate of its own CA.

    A running server takes it by itself within seconds.
    """
    settings = load(config)
    from strongroom.keyserver.tls_files import renew_certificate as renew

    end = renew(settings, host or [])
    note(f"The certificate is good until {end:%Y-%m-%d}.")


def accept_head(
    reason: Reason,
    config: ConfigFile = DEFAULT_CONFIG,
    passphrase_fd: PassphraseFd = None,
    if_missing: Annotated[
        bool,
        flag(
            "--if-missing", help="Do nothing where there is an anchor: before the start of a replica."
        ),
    ] = False,
) -> None:
    """Accept the database as it is, after a restore on purpose; or give this machine an anchor.

    A server refuses a database that is older than the anchor of its audit trail. What was written
    since the backup is lost: keys that were revoked then are not revoked now.
    """
    settings = load(config)
    anchor = settings.audit.anchor
    if if_missing and anchor is not None and anchor.exists():
        note(f"{plain(str(anchor))} is there.")
        return
    from strongroom.keyserver.opening import accept_head as accept

    head = accept(settings, passphrase_for(settings, passphrase_fd), console_actor(), reason)
    note(f"Accepted, up to audit record {head.sequence}. Look for revocations that are missing.")


def accept_clock(
    reason: Reason, config: ConfigFile = DEFAULT_CONFIG, passphrase_fd: PassphraseFd = None
) -> None:
    """Go on with a clock that is behind the audit trail, because it was ahead before.

    A server releases nothing while its clock is behind its own records: it may have been set back.
    """
    with closing(store_of(load(config), passphrase_fd)) as store:
        store.accept_clock(console_actor(), reason)
    note("Accepted.")


_EXAMPLES: Final = {
    "migrate": "strongroom keyserver migrate -c keys/keyserver.toml",
    "backup": "strongroom keyserver backup -c keys/keyserver.toml keyserver-backup.db",
    "verify": "strongroom keyserver verify -c keys/keyserver.toml",
    "make-kek": "strongroom keyserver make-kek tpm:/var/lib/strongroom/root.tpm --passphrase-fd 3 3< passphrase",
    "rotate-kek": "strongroom keyserver rotate-kek -c keys/keyserver.toml --to file:new.kek",
    "change-passphrase": "strongroom keyserver change-passphrase -c keys/keyserver.toml",
    "token": "strongroom keyserver token -c keys/keyserver.toml -o owner.token",
    "renew-certificate": "strongroom keyserver renew-certificate -c keys/keyserver.toml",
    "accept-head": "strongroom keyserver accept-head -c keys/keyserver.toml --reason 'disk lost'",
    "accept-clock": "strongroom keyserver accept-clock -c keys/keyserver.toml --reason 'was ahead'",
}


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for function in (
        *(migrate, backup, verify, make_kek, rotate_kek, change_passphrase),
        *(token, renew_certificate, accept_head, accept_clock),
    ):
        name = function.__name__.replace("_", "-")
        add_verb(app, name, function, _EXAMPLES[name])
