"""``strongroom pki``: a CA of one's own, and certificates for mutual TLS."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from strongroom.cli.keyring import sealers
from strongroom.cli.new_files import write_files
from strongroom.cli.terminal import note, plain, print_json, report
from strongroom.cli.verb import (
    Group,
    Json,
    Key,
    Quiet,
    RecipientFile,
    RecipientOption,
    flag,
    utf8,
    verb,
)
from strongroom.errors import AlreadyExists, InvalidKey, NotAuthentic, NotFound, UsageError, os_errors
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.keys import Recipient
from strongroom.model.writer import SealingKeys, build_meta, write_sealed
from strongroom.pki.certificates import CA_DAYS, CERTIFICATE_DAYS, end_of, issue, new_ca
from strongroom.pki.inspection import Inspected, inspect_certificates
from strongroom.pki.ssl_config import ssl_config

__all__ = ["app"]

_CA, _CA_KEY = "ca.pem", "ca.key"
_MAX_NAME: Final = 64
_MAX_FILE: Final = 1 << 20
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HINT: Final = "Give another name, or --force to replace it."


class _Pki(Group):
    examples = """
strongroom pki init pki
strongroom pki server pki serving.example.org 10.0.0.7
strongroom pki server pki serving.example.org -r https://keys.example/serving-tls
strongroom pki client pki loader
strongroom pki inspect pki/server.pem
"""


app = typer.Typer(
    name="pki",
    cls=_Pki,
    no_args_is_help=True,
    help="A CA of one's own, and certificates for mutual TLS.",
)

_Place = Annotated[
    str, typer.Argument(metavar="DIR", show_default=False, help="The directory of the CA.")
]
_Days = Annotated[
    int, typer.Option("--days", metavar="N", min=1, max=CERTIFICATE_DAYS, help="How long it is valid.")
]
_Prefix = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PREFIX",
        show_default=False,
        help="The files are PREFIX.pem, PREFIX.key and PREFIX.chain.pem.",
    ),
]
_Force = Annotated[bool, flag("--force", help="Replace files that are there.")]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _checked(name: str, what: str) -> str:
    utf8(name, what)
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(f"The value of {what} has 1 to {_MAX_NAME} printable characters.")
    return name


def _told(files: dict[str, str], certificate: bytes, json: bool, quiet: bool) -> None:
    end = end_of(certificate)
    if json:
        found = inspect_certificates(certificate, _now())[0]
        print_json({**files, "not_after": end.isoformat(), "fingerprint": found.fingerprint})
    elif not quiet:
        note(f"Wrote {', '.join(map(plain, files.values()))}; valid to {end:%Y-%m-%d}.")


def init(
    place: _Place,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The common name of the CA.")
    ] = "strongroom CA",
    permit: Annotated[
        list[str] | None,
        typer.Option(
            "--permit",
            metavar="DOMAIN|NETWORK",
            show_default=False,
            help="The CA may sign only for servers in this domain or network. Can be repeated.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=1, max=CA_DAYS, help="How long it is valid.")
    ] = CA_DAYS,
    force: Annotated[
        bool, flag("--force", help="Replace a CA that is there; nobody believes its certificates then.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a CA.

    DIR is made if need be. ca.pem goes to everybody who verifies; whoever has ca.key (0600) makes
    certificates that all of them believe.
    """
    certificate, key = new_ca(_checked(name, "--name"), _now(), days=days, permitted=permit or ())
    with os_errors(place):
        Path(place).mkdir(mode=0o700, exist_ok=True)
    files = {"certificate": os.path.join(place, _CA), "key": os.path.join(place, _CA_KEY)}
    contents = {files["key"]: (key, 0o600), files["certificate"]: (certificate, 0o644)}
    write_files(
        contents, force=force, hint="Give another directory. With --force the CA in it is lost."
    )
    _told(files, certificate, json, quiet)


def _authority(place: str) -> tuple[bytes, bytes]:
    found = []
    for name in (_CA, _CA_KEY):
        path = os.path.join(place, name)
        try:
            with os_errors(path):
                found.append(Path(path).read_bytes())
        except NotFound as error:
            error.hint = f"Make a CA first: strongroom pki init {place}"
            raise
    return found[0], found[1]


def _files(place: str, prefix: str | None, name: str) -> dict[str, str]:
    if prefix is None:
        if not _FILE_NAME.fullmatch(name):
            raise UsageError(f"{name} makes no name of a file.", hint="Give -o PREFIX.")
        prefix = os.path.join(place, name)
    files = {
        "certificate": prefix + ".pem",
        "key": prefix + ".key",
        "chain": prefix + ".chain.pem",
    }
    if os.path.realpath(files["key"]) == os.path.realpath(os.path.join(place, _CA_KEY)):
        raise UsageError("This name is that of the CA.", hint="Give another -o PREFIX.")
    return files


def server(
    place: _Place,
    hosts: Annotated[
        list[str],
        typer.Argument(
            metavar="HOST...",
            show_default=False,
            help="DNS names and addresses by which clients reach it.",
        ),
    ],
    output: _Prefix = None,
    days: _Days = CERTIFICATE_DAYS,
    key_file: Key = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientFile = None,
    ssl_config_file: Annotated[
        str | None,
        typer.Option(
            "--ssl-config",
            metavar="FILE",
            show_default=False,
            help="Write TensorFlow Serving's ssl.cfg too, for mutual TLS. It holds the key.",
        ),
    ] = None,
    force: _Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the certificate of a server.

    The files are DIR/server.pem, .key (0600) and .chain.pem, which has the CA's certificate too. It ends
    with the CA at the latest. With -k, -r or -R the key is sealed before it is written: it is
    DIR/server.key.sealed, which strongroom's model server opens in memory.
    """
    ca, ca_key = _authority(place)
    certificate, key = issue(ca, ca_key, hosts[0], hosts, _now(), days=days)
    files = _files(place, output, "server")
    if key_file or recipient or recipients_file:
        if ssl_config_file is not None:
            raise UsageError(
                "An ssl.cfg holds the key in the clear: TensorFlow Serving reads nothing that is sealed.",
                hint="Leave out --ssl-config; strongroom serve takes the certificate and the sealed key.",
            )
        wrapped_for = sealers(key_file, recipient, recipients_file, environment=False)
        files["key"] += SEALED_SUFFIX
        for path in files.values():
            if not force and os.path.lexists(path):
                # Before a key server is given a key that nobody needs.
                raise AlreadyExists(f"{path} exists.", hint=_HINT)
        key = _sealed(key, os.path.basename(files["key"]).removesuffix(SEALED_SUFFIX), wrapped_for)
    contents = _contents(files, certificate, key, ca)
    if ssl_config_file is not None:
        files["ssl_config"] = ssl_config_file
        contents[ssl_config_file] = (ssl_config(key, certificate, ca), 0o600)
    write_files(contents, force=force, hint=_HINT)
    _told(files, certificate, json, quiet)


class _Memory:
    """Where a sealed file goes that is written with others."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: memoryview | bytes) -> None:
        self.content += data

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _sealed(key: bytes, name: str, wrapped_for: Sequence[Recipient]) -> bytes:
    keys, output = SealingKeys(wrapped_for), _Memory()
    try:
        area = keys.area(name, DEFAULT_SEGMENT, build_meta(None, None, None))
        write_sealed(keys, area, name, DEFAULT_SEGMENT, output, key)
    finally:
        keys.keys.wipe()
    return bytes(output.content)


def client(
    place: _Place,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, help="The common name: who the client is."),
    ],
    uri: Annotated[
        list[str] | None,
        typer.Option(
            "--uri",
            metavar="URI",
            show_default=False,
            help="Another name, such as spiffe://example.org/loader. Can be repeated.",
        ),
    ] = None,
    output: _Prefix = None,
    days: _Days = CERTIFICATE_DAYS,
    force: _Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the certificate of a client.

    The files are DIR/NAME.pem, .key (0600) and .chain.pem. It ends with the CA at the latest.
    """
    ca, ca_key = _authority(place)
    certificate, key = issue(ca, ca_key, _checked(name, "NAME"), [], _now(), days=days, uris=uri or ())
    files = _files(place, output, name)
    write_files(_contents(files, certificate, key, ca), force=force, hint=_HINT)
    _told(files, certificate, json, quiet)


def _contents(
    files: dict[str, str], certificate: bytes, key: bytes, ca: bytes
) -> dict[str, tuple[bytes, int]]:
    return {
        files["key"]: (key, 0o600),
        files["certificate"]: (certificate, 0o644),
        files["chain"]: (certificate + ca, 0o644),
    }


def inspect(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", show_default=False, help="Certificates or chains, PEM or DER."
        ),
    ],
    json: Json = False,
) -> None:
    """Show what certificates say, and what is wrong with them.

    Each certificate of a chain should be signed by the next. The exit code is 6 if anything is wrong:
    expired or soon to end, a server without names, a CA where none belongs, weak keys or signatures.
    """
    found: list[tuple[str, Inspected]] = []
    for path in files:
        with os_errors(path), Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise UsageError(f"{path} is too large for certificates.")
        try:
            found += [(path, one) for one in inspect_certificates(data, _now())]
        except InvalidKey as error:
            error.within(path)
            raise
    if json:
        print_json([_as_json(path, one) for path, one in found])
    else:
        for index, (path, one) in enumerate(found):
            _print(path, one, first=index == 0)
    if count := sum(len(one.problems) for _, one in found):
        raise NotAuthentic(
            f"{count} thing{' is' if count == 1 else 's are'} wrong with "
            f"{'this certificate' if len(found) == 1 else 'these certificates'}."
        )


def _as_json(path: str, one: Inspected) -> dict[str, Any]:
    return {
        "file": path,
        **asdict(one),
        "not_before": one.not_before.isoformat(),
        "not_after": one.not_after.isoformat(),
    }


def _print(path: str, one: Inspected, *, first: bool) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    days = (one.not_after - _now()).days
    rows = {
        "subject": one.subject,
        "issuer": one.issuer,
        "names": ", ".join(one.names),
        "valid": f"{one.not_before:%Y-%m-%d} to {one.not_after:%Y-%m-%d}, {days} days more",
        "use": ("CA, " if one.ca else "") + ", ".join(one.usages),
        "only for": ", ".join(one.permitted),
        "key": f"{one.key}, signed with {one.signature}",
        "serial": one.serial,
        "SHA-256": one.fingerprint,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(plain(value)))
    for problem in one.problems:
        table.add_row("wrong", Text(problem, "bold red"))
    with report() as out:
        if not first:
            out.print()
        out.print(Text(plain(path), "bold"), soft_wrap=True)
        out.print(table)


verb(
    app,
    "init",
    init,
    "strongroom pki init pki\nstrongroom pki init pki --permit example.org --permit 10.0.0.0/8",
)
verb(
    app,
    "server",
    server,
    "strongroom pki server pki serving.example.org 10.0.0.7\n"
    "strongroom pki server pki localhost 127.0.0.1 --days 90 --ssl-config ssl.cfg",
)
verb(
    app,
    "client",
    client,
    "strongroom pki client pki loader\nstrongroom pki client pki loader --uri spiffe://example.org/loader",
)
verb(
    app,
    "inspect",
    inspect,
    "strongroom pki inspect pki/server.chain.pem\nstrongroom pki inspect pki/*.pem --json",
)
