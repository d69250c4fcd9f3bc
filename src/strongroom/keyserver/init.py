"""``keyserver init``: all that a new server needs, in one directory, and nothing of it replaced."""

from __future__ import annotations

import json
import secrets
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import AlreadyExists, UsageError, os_errors
from strongroom.format.encoding import b64url
from strongroom.keyserver.config import (
    TEST_PREFIX,
    absolute_source,
    absolute_url,
    database_url,
    load_config,
)
from strongroom.keyserver.kek import RootKek, create_kek, open_kek
from strongroom.keyserver.opening import now
from strongroom.keyserver.public_keys import public_keys
from strongroom.keyserver.settings import Config
from strongroom.keyserver.store import Actor, Store
from strongroom.keyserver.tls_files import LOCAL, make_certificates, write_new
from strongroom.keyserver.trust import test_root_files
from strongroom.providers.keyserver.profile import server_url

__all__ = [
    "CONFIG_FILE",
    "Made",
    "Wanted",
    "initialise",
    "profile_of",
]

CONFIG_FILE: Final = "keyserver.toml"
_PROFILE: Final = "profile.json"
_TOKEN: Final = "owner.token"
_OWNER: Final = "owner.json"
_DATABASE: Final = "keyserver.db"
_DATABASE_URL: Final = "database.url"
_ANCHOR: Final = "audit.anchor"
_ROOT_KEY: Final = "root.kek"
_TEST_ROOTS: Final = "TEST-ROOTS-NOT-FOR-PRODUCTION"
_ACTOR: Final = Actor("init", "owner", "local")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a new server shall be.

    Attributes:
        url: by which clients reach it: ``https://keys.example:8443``.
        passphrase: of the root key; None takes a key file or a root key that needs none.
        passphrase_file: where that passphrase is at each start; None leaves it to who starts the server.
        kek_key_file: file with the root key as it is; made where it is not there yet.
        kek: source of a root key that exists already, in an HSM for instance.
        database: URL of an empty database; None makes a file of SQLite.
        insecure_test_roots: file or directory of roots for tests.
    """

    url: str
    passphrase: SecretBytes | None = None
    passphrase_file: Path | None = None
    kek_key_file: Path | None = None
    kek: str | None = None
    database: str | None = None
    insecure_test_roots: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """Where things are.

    Attributes:
        server_id: its name in what is signed.
        url: by which clients reach it.
        config: of the server.
        profile: for clients.
        owner: the profile with the place of the token, for the owner.
        token: of the owner.
        ca: PEM.
    """

    server_id: str
    url: str
    config: Path
    profile: Path
    owner: Path
    token: Path
    ca: Path


def _split(url: str) -> tuple[str, int]:
    parts = urlsplit(server_url(url))
    assert parts.hostname is not None
    return parts.hostname, parts.port or 443


def initialise(directory: Path, wanted: Wanted) -> Made:
    """Make a server in ``directory``, which is empty or not there; what fails leaves nothing in it.

    Raises:
        AlreadyExists: there is something in it, or in the database.
        UsageError, NotFound: what is wanted cannot be.
        StorageError: the disk or the database refuses.
    """
    host, port = _split(wanted.url)
    if not _one_root_key(wanted):
        raise UsageError(
            "The root key is under a passphrase, in a key file, or elsewhere: say which one.",
            hint="Give --passphrase-fd or --kek-key-file.",
        )
    roots = {} if wanted.insecure_test_roots is None else test_root_files(wanted.insecure_test_roots)
    directory = directory.absolute()
    existed = directory.exists()
    if existed and (not directory.is_dir() or any(directory.iterdir())):
        raise AlreadyExists(
            f"{directory} is there and not empty.",
            hint="Give a new directory: a server is never replaced.",
        )
    key_file = wanted.kek_key_file
    new_key_file = key_file is not None and not key_file.exists()
    with os_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _make(directory, wanted, host, port, roots)
    except BaseException:
        if new_key_file and key_file is not None:
            key_file.unlink(missing_ok=True)
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            directory.rmdir()
        raise


def _one_root_key(wanted: Wanted) -> bool:
    if wanted.kek is not None:
        return wanted.kek_key_file is None
    return (wanted.passphrase is None) != (wanted.kek_key_file is None)


def _root_key(directory: Path, wanted: Wanted) -> tuple[RootKek, str]:
    if wanted.kek is not None:
        source = absolute_source(wanted.kek, Path.cwd())
        return open_kek(source, wanted.passphrase), source
    if wanted.kek_key_file is None:
        source = f"file:{_ROOT_KEY}"
        return create_kek(f"file:{directory / _ROOT_KEY}", wanted.passphrase), source
    source = f"file:{wanted.kek_key_file.absolute()}"
    return (open_kek if wanted.kek_key_file.exists() else create_kek)(source), source


def _make(directory: Path, wanted: Wanted, host: str, port: int, roots: dict[str, Path]) -> Made:
    server_id = f"{TEST_PREFIX if roots else ''}{host[:100]}-{secrets.token_hex(8)}"
    make_certificates(directory / "tls", server_id, host)
    if roots:
        (directory / _TEST_ROOTS).mkdir(mode=0o700)
        for path in roots.values():
            write_new(directory / _TEST_ROOTS / path.name, path.read_bytes())
    kek, source = _root_key(directory, wanted)
    if wanted.database is not None:
        url = absolute_url(wanted.database, Path.cwd())
        write_new(directory / _DATABASE_URL, url + "\n")
    if wanted.passphrase_file is None:
        opened_by = ""
    else:
        opened_by = f"passphrase_file = {json.dumps(str(wanted.passphrase_file.absolute()))}\n"
    text = _configuration(
        *(server_id, host, port, source, opened_by), own=wanted.database is None, test=bool(roots)
    )
    write_new(directory / CONFIG_FILE, text)
    config = load_config(directory / CONFIG_FILE)
    # Last, since it may be elsewhere, where nothing is cleaned up.
    store = Store.create(
        database_url(config, {}), kek, clock=now, anchor=config.audit.anchor, test=config.test
    )
    with closing(store):
        url = server_url(wanted.url)
        profile = profile_of(config, store, url, (directory / "tls" / "ca.pem").read_text())
        write_new(directory / _PROFILE, json.dumps(profile, indent=2) + "\n", 0o644)
        _, token = store.add_token("owner", "owner", None, _ACTOR)
        write_new(directory / _TOKEN, token + "\n")
        owner = {**profile, "token_file": _TOKEN}
        write_new(directory / _OWNER, json.dumps(owner, indent=2) + "\n")
    return Made(
        server_id,
        url,
        directory / CONFIG_FILE,
        directory / _PROFILE,
        directory / _OWNER,
        directory / _TOKEN,
        directory / "tls" / "ca.pem",
    )


def _configuration(
    server_id: str, host: str, port: int, source: str, opened_by: str, *, own: bool, test: bool
) -> str:
    # JSON's strings are strings of TOML.
    listen = "127.0.0.1" if host in LOCAL else "0.0.0.0"  # noqa: S104 – clients are elsewhere
    database = f'url = "sqlite:///{_DATABASE}"' if own else f'url_file = "{_DATABASE_URL}"'
    attestation = f'\n[attestation]\ninsecure_test_roots = "{_TEST_ROOTS}"\n' if test else ""
    return f"""# Paths are relative to this file. All members: see "Run a key server" in the documentation.
server_id = {json.dumps(server_id)}

[listen]
host = "{listen}"
port = {port}

[tls]
certificate = "tls/server.pem"
key = "tls/server.key"

[database]
{database}

[kek]
source = {json.dumps(source)}
{opened_by}
[audit]
anchor = "{_ANCHOR}"
{attestation}"""


def profile_of(config: Config, store: Store, url: str, ca: str | None) -> dict[str, Any]:
    """What clients pin.

    Args:
        config: of the server.
        store: with its keys.
        url: by which clients reach it.
        ca: PEM; None where its certificate is of a public CA.
    """
    keys = public_keys(store)
    return {
        "url": url,
        "server_id": config.server_id,
        "signing_key": b64url(keys.signing),
        "registration_key": {"suite": keys.suite, "public_key": b64url(keys.registration)},
        "ca": ca,
    }
