"""A real PostgreSQL in a temporary directory, with its durable settings, for as long as a test needs it.

PostgreSQL refuses to run as root: it runs as ``postgres`` or ``nobody`` then.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

__all__ = ["Postgres", "binaries"]


def binaries() -> Path | None:
    """The directory of ``initdb`` and ``postgres``: on the path, or where Debian has them."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda one: float(one.parts[-3])
    )
    return versions[-1].parent if versions else None


def _user() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("no user to run PostgreSQL as")


class Postgres:
    """One server; ``database()`` gives the URL of a new, empty database.

    Args:
        settings: other than the defaults of PostgreSQL, which are durable.
    """

    def __init__(self, **settings: str) -> None:
        place = binaries()
        if place is None:
            raise RuntimeError("PostgreSQL is not installed")
        self._bin = place
        self._settings = settings
        self._user = _user()
        self._numbers = itertools.count(1)
        self._shared: str | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="strongroom-pg-"))
        if self._user:
            os.chown(self.directory, self._user["user"], self._user["group"])
        subprocess.run(
            [
                place / "initdb",
                *("--no-sync", "-D", self.directory / "data"),
                *("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """Of the process that all others of the server are children of."""
        assert self._process is not None
        return self._process.pid

    def start(self, **others: str) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "max_connections": "100",
            **self._settings,
            **others,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.directory / "data", *options],
                stdout=log,
                stderr=log,
                cwd="/",
                **self._user,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT is an orderly end; SIGQUIT is a crash, from which it recovers at the next start."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _conninfo(self, name: str) -> str:
        return f"host={self.directory} user=postgres dbname={name} connect_timeout=60"

    def database(self, name: str | None = None) -> str:
        name = name or f"keys{next(self._numbers)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self.directory}"

    def emptied(self) -> str:
        """The URL of one database that is always the same, without the rows of the test before."""
        if self._shared is None:
            self._shared = self.database("keys_shared")
        with psycopg.connect(self._conninfo("keys_shared")) as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            ).fetchall()
            for (table,) in tables:
                connection.execute(f"DELETE FROM {table}")
        return self._shared
