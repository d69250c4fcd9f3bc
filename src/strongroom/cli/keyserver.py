"""``strongroom keyserver``: set up a key server, run it, and look after it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from strongroom.cli import keyserver_care
from strongroom.cli.keyring import ask_passphrase, read_passphrase
from strongroom.cli.keyserver_options import (
    DEFAULT_CONFIG,
    ConfigFile,
    PassphraseFd,
    absolute_source,
    load,
    needs_packages,
    passphrase_for,
    secret_of,
)
from strongroom.cli.terminal import note, plain, print_json
from strongroom.cli.verb import Group, Json, Quiet, verb
from strongroom.errors import UsageError

if TYPE_CHECKING:
    from strongroom.crypto.secret import SecretBytes

__all__ = ["app"]


class _KeyServer(Group):
    examples = """
strongroom keyserver init keys --url https://keys.example:8443
strongroom keyserver run -c keys/keyserver.toml
"""


app = typer.Typer(
    name="keyserver",
    cls=_KeyServer,
    no_args_is_help=True,
    help="Set up a key server, run it, and look after it.",
)

Directory = Annotated[
    Path,
    typer.Argument(metavar="DIR", show_default=False, help="A directory that is empty or not there."),
]


def init(
    directory: Directory,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="By which clients will reach it.")
    ] = "https://localhost:8443",
    passphrase_fd: PassphraseFd = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file",
            metavar="FILE",
            show_default=False,
            help="Read it from the first line of FILE, now and at each start: FILE is written into the "
            "configuration, the passphrase is not.",
        ),
    ] = None,
    kek_key_file: Annotated[
        Path | None,
        typer.Option(
            "--kek-key-file",
            metavar="FILE",
            show_default=False,
            help="Keep the root key in FILE, without a passphrase; made if it is not there.",
        ),
    ] = None,
    kek: Annotated[
        str | None,
        typer.Option(
            "--kek",
            metavar="SOURCE",
            show_default=False,
            help="A root key that is there already, as make-kek makes it: pkcs11:…, aws-kms:KEY, "
            "vault:MOUNT/KEY, tpm:PATH.",
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            show_default=False,
            help="An empty database, such as postgresql://user@host/name; if not given, a file in DIR.",
        ),
    ] = None,
    insecure_test_roots: Annotated[
        Path | None,
        typer.Option(
            "--insecure-test-roots",
            metavar="PATH",
            show_default=False,
            help="For tests only: believe these roots in place of the vendors'. Whoever has their keys "
            "gets every key. Cannot be undone.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a key server in a directory of its own.

    Makes the configuration, a CA and a certificate, the root key, the database, the token of the
    first owner, the profile that clients need, and the owner's own, which names that token as well.
    Nothing that is there is replaced.

    Without --passphrase-fd, --passphrase-file, --kek-key-file and --kek, a passphrase for the root key
    is asked for; with --kek, the passphrase, PIN or token that it needs.
    """
    needs_packages()
    from strongroom.keyserver.config import first_line
    from strongroom.keyserver.init import Wanted, initialise

    passphrase: SecretBytes | None = None
    if passphrase_file is not None:
        if passphrase_fd is not None or kek_key_file is not None:
            raise UsageError("--passphrase-file is given without --passphrase-fd and --kek-key-file.")
        passphrase = first_line(passphrase_file)
    elif kek is not None:
        passphrase = secret_of(absolute_source(kek), passphrase_fd)
    elif passphrase_fd is not None:
        passphrase = read_passphrase(passphrase_fd).encode()
    elif kek_key_file is None:
        passphrase = ask_passphrase("New passphrase of the root key", twice=True).encode()
    made = initialise(
        directory,
        Wanted(
            url=url,
            passphrase=passphrase,
            passphrase_file=passphrase_file,
            kek_key_file=kek_key_file,
            kek=kek,
            database=database,
            insecure_test_roots=insecure_test_roots,
        ),
    )
    if json:
        print_json(
            {
                "server_id": made.server_id,
                "url": made.url,
                "config": str(made.config),
                "profile": str(made.profile),
                "owner": str(made.owner),
                "token_file": str(made.token),
                "ca": str(made.ca),
            }
        )
    elif not quiet:
        print(f"config   {plain(str(made.config))}")
        print(f"profile  {plain(str(made.profile))}")
        print(f"owner    {plain(str(made.owner))}")
        print(f"token    {plain(str(made.token))}")
        note(
            "The profile is for clients. The last two are the owner's: move both, together, off this machine."
        )
        where = plain(shlex.quote(str(made.owner)))
        note(f"Once the server runs: STRONGROOM_KEYSERVER={where} strongroom keys list")
    if insecure_test_roots is not None:
        note(
            "roots for tests: whoever has their keys gets every key of this server.", label="warning: "
        )


def run(
    config: ConfigFile = DEFAULT_CONFIG,
    passphrase_fd: PassphraseFd = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            show_default=False,
            help="Processes that answer, in place of listen.workers.",
        ),
    ] = None,
) -> None:
    """Run a key server until SIGTERM or SIGINT.

    SIGTERM lets it first tell load balancers, then finish what it does. SIGHUP makes it read its
    certificate again, which it also does by itself. Logs are JSON on standard error.
    """
    settings = load(config)
    if workers is not None:
        if not 1 <= workers <= 256:
            raise UsageError("--workers is a number from 1 to 256.")
        settings = replace(settings, listen=replace(settings.listen, workers=workers))
    from strongroom.keyserver.run import run as run_server

    run_server(settings, passphrase_for(settings, passphrase_fd))


_INIT: Final = """
strongroom keyserver init keys --url https://keys.example:8443
strongroom keyserver init keys --kek-key-file /etc/strongroom/root.kek
strongroom keyserver init keys --passphrase-fd 3 3< passphrase.txt
strongroom keyserver init keys --passphrase-file /etc/strongroom/kek-passphrase
strongroom keyserver init keys --kek aws-kms:alias/strongroom
"""
_RUN: Final = """
strongroom keyserver run -c keys/keyserver.toml
strongroom keyserver run -c keys/keyserver.toml --workers 4 --passphrase-fd 3 3< passphrase.txt
"""
verb(app, "init", init, _INIT)
verb(app, "run", run, _RUN)
keyserver_care.register(app)
