"""SQLite and PostgreSQL, behaving alike: one writer at a time, and a commit is on the disk."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from strongroom.errors import MissingExtra, StorageError, UsageError, os_errors
from strongroom.keyserver.store.direct import Direct, Unexpected

__all__ = ["Database"]

_BUSY_MS: Final = 15_000
"""How long a writer waits for another process."""

_SESSION: Final = (
    "synchronous_commit = on",
    # A replica that hangs in the midst of a transaction hinders the others, and does not hang them.
    f"lock_timeout = {_BUSY_MS}",
    # One that lost its power or its network holds the lock until the database notices: else after two hours.
    "tcp_keepalives_idle = 10",
    "tcp_keepalives_interval = 5",
    "tcp_keepalives_count = 3",
)

_PATIENCE: Final = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""The same of this end, where the URL says nothing else: after a failover nobody waits for the dead."""

_LOCK: Final = 0x7374726F6E67
"""Of the one writer: a key of PostgreSQL's advisory locks, which are per database."""

_TRUSTED_SECONDS: Final = 1.0
"""That a connection is used again without asking whether it is one still: asking is a wait for the server, of
which a group of releases has one otherwise."""

_DAMAGED: Final = ("SQLITE_NOTADB", "SQLITE_CORRUPT")

_UNEXPECTED: Final = ("22012", "23505")
"""Of PostgreSQL: a division by zero, a row that is there already."""

_POOL: Final = 8
"""Connections for readers: threads of the server that look up keys."""


def _url(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except ArgumentError:
        # Its words would show the password.
        raise UsageError("This is not the URL of a database.", hint=_HINT) from None
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise UsageError(f"Databases of the kind {backend} are not supported.", hint=_HINT)
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise UsageError("A database of SQLite is a file.", hint=_HINT)
    return url.set(drivername="sqlite+pysqlite")


_HINT: Final = "Write sqlite:////path/keyserver.db or postgresql://user@host/database."


class Database:
    """A connection pool with two kinds of transactions.

    Args:
        url: as SQLAlchemy writes it.
        create: a file of SQLite may come to be.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Connect.

        Raises:
            UsageError: the URL is no good, or PostgreSQL is set not to keep what it acknowledges.
            NotFound: there is no such file.
            StorageError: the database does not answer.
        """
        parsed = _url(url)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self._mutex = threading.Lock()
        self._failed = -math.inf
        self._closed = False
        if self.sqlite:
            assert parsed.database is not None
            path = os.path.abspath(parsed.database)
            with os_errors(path):
                flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
                # SQLite gives its log and shared memory the mode of this file.
                os.close(os.open(path, flags, 0o600))
            self.engine = _sqlite(path)
        else:
            self.engine = _postgresql(parsed, self._is_suspect)
        try:
            with self.reading() as connection:
                if not self.sqlite:
                    _check_durable(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database.

        Raises:
            StorageError: the database does not answer.
        """
        self._check_open()
        with _translated(), self.engine.connect() as connection:
            if not self.sqlite:
                # One state for all statements, as a reader of SQLite has it.
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is alone in the whole database; committed, durably, at the end.

        Raises:
            StorageError: the database does not answer; what was written may or may not be there when
                the connection is lost while it is committed.
        """
        # Threads queue here, in order; SQLite's own way is to try again after a while.
        self._check_open()
        with self._mutex, _translated(), self.engine.connect() as connection:
            connection = connection.execution_options(write=True)
            with connection.begin():
                if not self.sqlite:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                yield connection

    @contextmanager
    def direct(self) -> Iterator[Direct]:
        """As :meth:`writing`, on the driver itself. On PostgreSQL nothing is waited for until rows are
        read: who has read some is alone in the database.

        Raises:
            StorageError: as there.
            Unexpected: the database was not as :meth:`.Direct.expect` was told.
        """
        self._check_open()
        with self._mutex, _translated():
            pooled = self.engine.raw_connection()
            raw: Any = pooled.dbapi_connection
            direct = Direct(raw, is_sqlite=self.sqlite)
            driver = self.engine.dialect.loaded_dbapi
            try:
                if self.sqlite:
                    raw.execute("BEGIN IMMEDIATE")
                    yield direct
                    raw.execute("COMMIT")
                else:
                    # Its own way to begin a transaction waits for the server.
                    raw.autocommit = True
                    with _pipeline(raw, driver.Error):
                        # Whatever the default is: a statement after the lock must see what was before it.
                        raw.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                        raw.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                        yield direct
                        raw.execute("COMMIT")
                    raw.autocommit = False
            except BaseException as error:
                if direct.expecting and getattr(error, "sqlstate", None) in _UNEXPECTED:
                    raw.rollback()
                    raw.autocommit = False
                    pooled.close()
                    raise Unexpected from None
                self._failed = time.monotonic()
                with suppress(driver.Error):
                    raw.rollback()
                pooled.invalidate()
                if isinstance(error, driver.Error):
                    raise DBAPIError.instance("", None, error, driver.Error) from None
                raise
            pooled.close()

    def forget_pages(self) -> None:
        """After a secret was erased: leave nothing of it in SQLite's log; nothing on PostgreSQL."""
        if self.sqlite:
            with _translated(), self.engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self.engine.dispose()

    def _is_suspect(self, used: float) -> bool:
        """Whether a connection that was used last at this time may be one no more."""
        return used <= self._failed or time.monotonic() - used > _TRUSTED_SECONDS

    def _check_open(self) -> None:
        # A pool that was disposed of would connect again.
        if self._closed:
            raise StorageError("The key store is closed.")


def _sqlite(path: str) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=path),
        hide_parameters=True,
        pool_size=_POOL,
        max_overflow=2 * _POOL,
        connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None  # transactions begin below, and not by themselves
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = ON",
            "trusted_schema = OFF",
            f"busy_timeout = {_BUSY_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql(url: URL, is_suspect: Callable[[float], bool]) -> Engine:
    try:
        engine = create_engine(
            url.set(query={**_PATIENCE, **url.query}),
            hide_parameters=True,
            pool_size=_POOL,
            max_overflow=2 * _POOL,
            # Each statement sees what was committed before it: also what was while it waited for the lock.
            isolation_level="READ COMMITTED",
            connect_args={"application_name": "strongroom", "connect_timeout": 10},
        )
    except ModuleNotFoundError:
        raise MissingExtra("PostgreSQL", "keyserver") from None

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("; ".join(f"SET {one}" for one in _SESSION))
        connection.commit()

    @event.listens_for(engine, "checkin")
    def checkin(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, record: Any, proxy: object) -> None:
        # As the pool's own "pre_ping", which asks each time.
        if is_suspect(record.info.get("used", math.inf)):
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error:
                raise DisconnectionError from None

    return engine


@contextmanager
def _pipeline(raw: Any, errors: type[Exception]) -> Iterator[None]:
    """Pipeline mode of psycopg, which logs a line for an error that follows from the one that ends it."""
    first = None
    try:
        with raw.pipeline():
            try:
                yield
            except errors as error:
                first = error
    except errors as error:
        raise (first or error) from None
    if first is not None:
        raise first


def _check_durable(connection: Connection) -> None:
    for name in ("fsync", "full_page_writes"):
        if connection.execute(text(f"SHOW {name}")).scalar_one() != "on":
            raise UsageError(
                f"PostgreSQL runs with {name} off: what it acknowledges can be lost.",
                hint=f"Set {name} = on.",
            )


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what SQLAlchemy raises into this project's tree, without the words of the database.

    Constraints that fail are passed on, for those who expect them.
    """
    problem, unusable = "", False
    try:
        yield
    except IntegrityError:
        raise
    except DataError:
        # PostgreSQL takes no NUL in a text. Said of this write alone: those that wait with it are good.
        unusable = True
    except (OperationalError, DBAPIError, SQLAlchemyError, NoSuchModuleError, sqlite3.Error) as error:
        inner = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(inner, "sqlstate", None) or getattr(inner, "sqlite_errorname", None)
        problem = type(inner).__name__ + (f", {code}" if code else "")
    if unusable:
        raise UsageError("The database cannot hold what is said here.")
    if problem:
        raise StorageError(
            f"The database does not answer as it should ({problem}).",
            hint="Its file is damaged: restore a backup."
            if problem.endswith(_DAMAGED)
            else "See whether it runs, has a database of this name and room on its disk, and lets this user in.",
        )
