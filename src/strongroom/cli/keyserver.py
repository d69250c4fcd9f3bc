"""``strongroom keyserver``: set up a key server, run it, and look after it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from strongroom.cli.keyring import ask_passphrase, read_passphrase
from strongroom.cli.terminal import note, plain, print_json
from strongroom.cli.verb import Group, Json, Quiet
from strongroom.cli.verb import verb as add_verb
from strongroom.errors import MissingExtra, NoKey, UsageError
from strongroom.model.output import FileOutput

if TYPE_CHECKING:
    from strongroom.crypto.secret import SecretBytes
    from strongroom.keyserver.settings import Config
    from strongroom.keyserver.store import Actor, Store

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

_DEFAULT: Final = Path("keyserver.toml")
ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="The configuration, as init made it.")
]
PassphraseFd = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        show_default=False,
        help="Read the passphrase of the root key from file descriptor N, up to the end of the line.",
    ),
]
Directory = Annotated[
    Path,
    typer.Argument(metavar="DIR", show_default=False, help="A directory that is empty or not there."),
]


def _needs_packages() -> None:
    """Refuse, with the line that installs them, where the server's packages are missing."""
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise MissingExtra("A key server", "keyserver") from None


def _load(path: Path) -> Config:
    _needs_packages()
    from strongroom.keyserver.config import load_config

    return load_config(path)


def _passphrase(config: Config, descriptor: int | None) -> SecretBytes | None:
    """The passphrase of the root key: given, where the configuration says, or asked for."""
    from strongroom.keyserver.config import passphrase_of
    from strongroom.keyserver.opening import open_root_key

    if descriptor is not None:
        return read_passphrase(descriptor).encode()
    found = passphrase_of(config)
    if found is None and config.kek.source.startswith("file:"):
        try:
            open_root_key(config)
        except NoKey:
            return ask_passphrase("Passphrase of the root key").encode()
    return found


def _store(config: Config, descriptor: int | None) -> Store:
    from strongroom.keyserver.opening import open_store

    return open_store(config, _passphrase(config, descriptor))


def _console() -> Actor:
    """Who stands at the machine itself, with its root key."""
    from strongroom.keyserver.store import Actor

    return Actor("console", "owner", "local")


def init(
    directory: Directory,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="By which clients will reach it.")
    ] = "https://localhost:8443",
    passphrase_fd: PassphraseFd = None,
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
            help="A root key that is there already: pkcs11:…, aws-kms:KEY, vault:MOUNT/KEY, tpm:PATH.",
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
    first owner, and the profile that clients need. Nothing that is there is replaced.

    Without --passphrase-fd, --kek-key-file and --kek, a passphrase for the root key is asked for.
    """
    _needs_packages()
    from strongroom.keyserver.init import Wanted, initialise

    if passphrase_fd is not None:
        passphrase = read_passphrase(passphrase_fd).encode()
    elif kek_key_file is None and kek is None:
        passphrase = ask_passphrase("New passphrase of the root key", twice=True).encode()
    else:
        passphrase = None
    made = initialise(
        directory,
        Wanted(
            url=url,
            passphrase=passphrase,
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
                "token_file": str(made.token),
                "ca": str(made.ca),
            }
        )
    elif not quiet:
        print(f"config   {plain(str(made.config))}")
        print(f"profile  {plain(str(made.profile))}")
        print(f"token    {plain(str(made.token))}")
        note("The profile is for clients. The token is the owner's: move it off this machine.")
    if insecure_test_roots is not None:
        note(
            "roots for tests: whoever has their keys gets every key of this server.", label="warning: "
        )


def run(
    config: ConfigFile = _DEFAULT,
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
    settings = _load(config)
    if workers is not None:
        if not 1 <= workers <= 256:
            raise UsageError("--workers is a number from 1 to 256.")
        settings = replace(settings, listen=replace(settings.listen, workers=workers))
    from strongroom.keyserver.run import run as run_server

    run_server(settings, _passphrase(settings, passphrase_fd))


def migrate(config: ConfigFile = _DEFAULT, passphrase_fd: PassphraseFd = None) -> None:
    """Upgrade the database to this release.

    A server does the same when it starts; this is for those who want to see it done before.
    """
    with closing(_store(_load(config), passphrase_fd)):
        note("The database is up to date.")


def rotate_kek(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="SOURCE",
            show_default=False,
            help="The new root key: file:PATH, which is made if it is not there, pkcs11:…, aws-kms:KEY, "
            "vault:MOUNT/KEY, tpm:PATH.",
        ),
    ],
    config: ConfigFile = _DEFAULT,
    passphrase_fd: PassphraseFd = None,
    new_passphrase_fd: Annotated[
        int | None,
        typer.Option(
            "--new-passphrase-fd",
            metavar="N",
            show_default=False,
            help="Read the passphrase of the new root key from file descriptor N.",
        ),
    ] = None,
) -> None:
    """Put all keys under another root key.

    Running servers release nothing from then on, until they are started with the new one, which has
    to be written into the configuration.
    """
    settings = _load(config)
    from strongroom.keyserver.config import absolute_source
    from strongroom.keyserver.kek import create_kek, open_kek

    source = absolute_source(to, Path.cwd())
    new = None if new_passphrase_fd is None else read_passphrase(new_passphrase_fd).encode()
    with closing(_store(settings, passphrase_fd)) as store:
        kind, _, place = source.partition(":")
        missing = kind in ("file", "tpm") and not Path(place).exists()
        count = store.rotate_kek((create_kek if missing else open_kek)(source, new), _console())
    note(f"Keys under the new root key: {count}.")
    note(f"Write into {plain(str(config))}, section [kek]: source = {plain(repr(source))}")


def change_passphrase(
    config: ConfigFile = _DEFAULT,
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
    settings = _load(config)
    from strongroom.keyserver.keks.file import change_passphrase as change

    kind, _, place = settings.kek.source.partition(":")
    if kind != "file":
        raise UsageError("Only a root key in a file has a passphrase that can be changed here.")
    old = _passphrase(settings, passphrase_fd)
    if new_passphrase_fd is not None:
        new = read_passphrase(new_passphrase_fd).encode()
    else:
        new = ask_passphrase("New passphrase of the root key", twice=True).encode()
    change(place, old, new)
    note("The root key has another passphrase.")


def backup(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="Where the copy goes.")
    ],
    config: ConfigFile = _DEFAULT,
) -> None:
    """Copy a database of SQLite while the server runs.

    The copy is whole, and worthless without the root key. For PostgreSQL use pg_dump.
    """
    settings = _load(config)
    from strongroom.keyserver.backup import backup_sqlite
    from strongroom.keyserver.config import database_url

    backup_sqlite(database_url(settings), output)
    note(f"Wrote {plain(str(output))}.")


def token(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", show_default=False, help="Where it goes."),
    ],
    config: ConfigFile = _DEFAULT,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Make a token for an owner on the server itself, where the last one is lost.

    Needs the root key. It is on record in the audit trail.
    """
    settings = _load(config)
    with closing(_store(settings, passphrase_fd)) as store:
        # First the place for it: a token that nobody has must not be good.
        file = FileOutput(str(output), overwrite=False, mode=0o600)
        try:
            _, made = store.add_token("owner", "owner", None, _console())
            file.write(made.encode() + b"\n")
            file.commit()
        finally:
            file.abort()
    note(f"Wrote the token to {plain(str(output))}.")


def renew_certificate(
    config: ConfigFile = _DEFAULT,
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
    settings = _load(config)
    from strongroom.keyserver.init import renew_certificate as renew

    end = renew(settings, host or [])
    note(f"The certificate is good until {end:%Y-%m-%d}.")


Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", show_default=False, help="For the audit trail.")
]


def accept_head(
    reason: Reason, config: ConfigFile = _DEFAULT, passphrase_fd: PassphraseFd = None
) -> None:
    """Accept the database as it is, after a restore on purpose; or give this machine an anchor.

    A server refuses a database that is older than the anchor of its audit trail. What was written
    since the backup is lost: keys that were revoked then are not revoked now.
    """
    settings = _load(config)
    from strongroom.keyserver.opening import accept_head as accept

    head = accept(settings, _passphrase(settings, passphrase_fd), _console(), reason)
    note(f"Accepted, up to audit record {head.sequence}. Look for revocations that are missing.")


def accept_clock(
    reason: Reason, config: ConfigFile = _DEFAULT, passphrase_fd: PassphraseFd = None
) -> None:
    """Go on with a clock that is behind the audit trail, because it was ahead before.

    A server releases nothing while its clock is behind its own records: it may have been set back.
    """
    with closing(_store(_load(config), passphrase_fd)) as store:
        store.accept_clock(_console(), reason)
    note("Accepted.")


def verify(config: ConfigFile = _DEFAULT, passphrase_fd: PassphraseFd = None) -> None:
    """Check all of the database: the chain of audit records, the signed state, every wrapped key.

    The server can run meanwhile.
    """
    with closing(_store(_load(config), passphrase_fd)) as store:
        head = store.verify()
    note(f"All is well, up to audit record {head.sequence}: {head.hash}")


_EXAMPLES: Final = {
    "init": """
strongroom keyserver init keys --url https://keys.example:8443
strongroom keyserver init keys --kek-key-file /etc/strongroom/root.kek
strongroom keyserver init keys --passphrase-fd 3 3< passphrase.txt
""",
    "run": """
strongroom keyserver run -c keys/keyserver.toml
strongroom keyserver run -c keys/keyserver.toml --workers 4 --passphrase-fd 3 3< passphrase.txt
""",
    "migrate": "strongroom keyserver migrate -c keys/keyserver.toml",
    "rotate-kek": "strongroom keyserver rotate-kek -c keys/keyserver.toml --to file:new.kek",
    "change-passphrase": "strongroom keyserver change-passphrase -c keys/keyserver.toml",
    "backup": "strongroom keyserver backup -c keys/keyserver.toml keyserver-backup.db",
    "token": "strongroom keyserver token -c keys/keyserver.toml -o owner.token",
    "renew-certificate": "strongroom keyserver renew-certificate -c keys/keyserver.toml",
    "accept-head": "strongroom keyserver accept-head -c keys/keyserver.toml --reason 'disk lost'",
    "accept-clock": "strongroom keyserver accept-clock -c keys/keyserver.toml --reason 'was ahead'",
    "verify": "strongroom keyserver verify -c keys/keyserver.toml",
}
for _function in (
    *(init, run, migrate, backup, verify, rotate_kek, change_passphrase),
    *(token, renew_certificate, accept_head, accept_clock),
):
    _name = _function.__name__.replace("_", "-")
    add_verb(app, _name, _function, _EXAMPLES[_name])
