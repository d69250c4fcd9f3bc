"""``keyserver.toml``: parsed into dataclasses, strictly.

Unknown members are refused: a mistyped limit must not be no limit. Paths are relative to the file.
Secrets are never in it: it says in which file or environment variable they are.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import NoKey, UsageError, os_errors
from strongroom.keyserver.settings import Config

__all__ = [
    "TEST_PREFIX",
    "absolute_source",
    "absolute_url",
    "database_url",
    "first_line",
    "load_config",
    "parse_config",
    "passphrase_of",
]

TEST_PREFIX: Final = "TEST-"
"""What the id of a server begins with whose roots are for tests. Clients pin the id, and every key is
registered and released under it: a server for tests cannot become another, nor the other way round."""

DATABASE_VARIABLE: Final = "STRONGROOM_KEYSERVER_DATABASE"
_MAX_CONFIG: Final = 1 << 20
_MAX_PASSPHRASE: Final = 1 << 12

_PLACES: Final = ("file", "tpm", "files", "cache")
"""Kinds of root keys, and of sources of endorsements, whose place is a path."""

T = TypeVar("T")


def load_config(path: Path) -> Config:
    """Read and parse a configuration file.

    Raises:
        NotFound, UsageError: it is not there, or not valid; says which member is wrong.
    """
    with os_errors(path), open(path, "rb") as file:
        content = file.read(_MAX_CONFIG + 1)
    if len(content) > _MAX_CONFIG:
        raise UsageError(f"{path} is too large to be a configuration.")
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not TOML: it is not UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        # The place alone: what stands there may be a secret.
        place = re.search(r"\(at (line \d+, column \d+|end of document)\)$", str(error))
        raise UsageError(f"{path} is not TOML" + (f", at {place[1]}." if place else ".")) from None
    return parse_config(document, path.absolute().parent)


def parse_config(document: Mapping[str, Any], base: Path) -> Config:
    """Check a configuration.

    Args:
        document: as TOML gives it.
        base: what paths are relative to.

    Raises:
        UsageError: a member is unknown, missing, of another type or out of bounds; says which.
    """
    config = _table(Config, document, "", base)
    _check(config)
    config = replace(
        config,
        kek=replace(config.kek, source=absolute_source(config.kek.source, base)),
        attestation=replace(
            config.attestation,
            endorsements=[absolute_source(one, base) for one in config.attestation.endorsements],
        ),
    )
    if config.database.url is not None:
        url = absolute_url(config.database.url, base)
        config = replace(config, database=replace(config.database, url=url))
    return config


def _wrong(path: str, problem: str, *, hint: str | None = None) -> UsageError:
    return UsageError(f"The configuration is not valid: {path} {problem}.", hint=hint)


def _table(kind: type[T], value: object, path: str, base: Path) -> T:
    if not isinstance(value, Mapping):
        raise _wrong(path, "is not a table")
    prefix = f"{path}." if path else ""
    hints = get_type_hints(kind)
    members = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in members:
            close = difflib.get_close_matches(str(name), members, n=1)
            hint = (
                f"Did you mean {prefix}{close[0]}?" if close else "Known: " + ", ".join(members) + "."
            )
            raise _wrong(f"{prefix}{name}", "is not known", hint=hint)
    for name, one in members.items():
        if name not in value and one.default is MISSING and one.default_factory is MISSING:
            raise _wrong(f"{prefix}{name}", "is missing")
    return kind(**{name: _value(hints[name], value[name], f"{prefix}{name}", base) for name in value})


def _value(kind: Any, value: object, path: str, base: Path) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return _value(kind, value, path, base)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(path, "is not a list")
        return [
            _value(get_args(kind)[0], one, f"{path}[{index}]", base) for index, one in enumerate(value)
        ]
    if origin is Literal:
        if value not in get_args(kind):
            raise _wrong(path, "is none of " + ", ".join(get_args(kind)))
        return value
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise _wrong(path, "is not a path")
        return base / value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (str, int, float):
        if type(value) is not kind:
            raise _wrong(path, f"is not {'text' if kind is str else 'a number'}")
        return value
    return _table(kind, value, path, base)


_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "listen.port": (0, 65535),
    "listen.workers": (1, 256),
    "listen.drain_seconds": (0, 600),
    "listen.stop_seconds": (1, 600),
    "verification.workers": (1, 256),
    "verification.timeout_seconds": (0.1, 120),
    "verification.memory_mb": (32, 1 << 16),
    "limits.requests_per_second": (0.1, 1e6),
    "limits.burst": (1, 1e6),
    "limits.connections": (1, 1e6),
    "limits.connections_per_address": (1, 1e6),
    "limits.release_bytes": (1 << 10, 16 << 20),
    "limits.body_bytes": (1 << 10, 16 << 20),
    "limits.head_seconds": (0.1, 600),
    "limits.body_seconds": (0.1, 600),
    "limits.answer_seconds": (0.1, 600),
}


def _check(config: Config) -> None:
    for path, (low, high) in _BOUNDS.items():
        section, _, name = path.partition(".")
        # Not "value < low": a NaN is in no range.
        if not low <= getattr(getattr(config, section), name) <= high:
            raise _wrong(path, f"is not within {low:g} to {high:g}")
    if config.gramine is not None and not 0 <= config.gramine.port <= 65535:
        raise _wrong("gramine.port", "is not within 0 to 65535")
    if not 0 < len(config.server_id) <= 200 or not config.server_id.isascii():
        raise _wrong("server_id", "is not a short ASCII text")
    if config.test != config.server_id.startswith(TEST_PREFIX):
        raise _wrong(
            "attestation.insecure_test_roots",
            f"and a server_id that begins with {TEST_PREFIX} go together, and only together",
        )
    if config.database.url is not None and config.database.url_file is not None:
        raise _wrong("database", "has both url and url_file")
    if config.kek.passphrase_file is not None and config.kek.passphrase_env is not None:
        raise _wrong("kek", "has both passphrase_file and passphrase_env")
    for index, who in enumerate(config.auth.mtls):
        path = f"auth.mtls[{index}]"
        if (who.subject is None) == (who.sha256 is None):
            raise _wrong(path, "has not exactly one of subject and sha256")
        if not who.name or who.subject == "":
            raise _wrong(path, "has an empty name or subject")
        if who.sha256 is not None and (len(who.sha256) != 64 or not _is_hex(who.sha256)):
            raise _wrong(f"{path}.sha256", "is not 64 hexadecimal digits")
    if config.tls.client_crl is not None and config.tls.client_ca is None:
        raise _wrong("tls.client_ca", "is missing, and there are revocation lists of it")
    if config.auth.mtls and config.tls.client_ca is None:
        raise _wrong("tls.client_ca", "is missing, and auth.mtls names client certificates")


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)


def absolute_source(source: str, base: Path) -> str:
    """A root key or a source of endorsements; a relative path in it is relative to ``base``."""
    kind, separator, place = source.partition(":")
    return f"{kind}:{base / place}" if separator and place and kind in _PLACES else source


def absolute_url(url: str, base: Path) -> str:
    """The URL of a database; a relative file of SQLite is relative to ``base``."""
    scheme, separator, path = url.partition(":///")
    if scheme.startswith("sqlite") and separator and path and not path.startswith("/"):
        return f"{scheme}:///{base / path}"
    return url


def database_url(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """The URL of the database.

    Raises:
        UsageError: the configuration and the environment name none.
    """
    url = environ.get(DATABASE_VARIABLE) or config.database.url
    if url is None and config.database.url_file is not None:
        with os_errors(config.database.url_file):
            url = config.database.url_file.read_text().strip()
    if not url:
        raise UsageError(
            "No database is configured.", hint=f"Set database.url, or {DATABASE_VARIABLE}."
        )
    return url


def passphrase_of(config: Config, environ: Mapping[str, str] = os.environ) -> SecretBytes | None:
    """The passphrase of the root key that the configuration leads to; None where it names none.

    Raises:
        NoKey: the variable is empty or not set.
        NotFound, UsageError: the file cannot be read.
    """
    if config.kek.passphrase_env is not None:
        value = environ.get(config.kek.passphrase_env, "")
        if not value:
            raise NoKey(f"The environment variable {config.kek.passphrase_env} is empty or not set.")
        return SecretBytes.take(value.encode())
    path = config.kek.passphrase_file
    return None if path is None else first_line(path)


def first_line(path: Path) -> SecretBytes:
    """The passphrase in a file: its first line.

    Raises:
        NoKey: it is empty.
        NotFound, UsageError: the file cannot be read.
    """
    with os_errors(path), open(path, "rb", buffering=0) as file:
        content = file.read(_MAX_PASSPHRASE)
    line = content.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise NoKey(f"{path} has no passphrase in its first line.")
    return SecretBytes.take(line)
