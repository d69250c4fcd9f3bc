"""A copy of a database of SQLite, while the server writes to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from strongroom.errors import AlreadyExists, NotFound, StorageError, UsageError, os_errors

__all__ = ["backup_sqlite"]


def backup_sqlite(url: str, destination: Path) -> None:
    """Copy the database at ``url``, as it is at one moment, to a new file.

    Raises:
        UsageError: it is not a file of SQLite.
        NotFound: it is not there.
        AlreadyExists: the destination is.
        StorageError: it cannot be read, or the copy not be written.
    """
    scheme, separator, path = url.partition(":///")
    if not scheme.startswith("sqlite") or not separator:
        raise UsageError(
            "Only databases of SQLite are copied like this.", hint="For PostgreSQL use pg_dump."
        )
    if not os.path.exists(path):
        raise NotFound(f"{path}: no such file or directory.")
    if destination.exists():
        raise AlreadyExists(f"{destination} exists already.")
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        with os_errors(destination):
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        with os_errors(destination), open(partial, "rb") as file:
            os.fsync(file.fileno())
            os.link(partial, destination)
    except sqlite3.Error as error:
        raise StorageError(f"The database cannot be copied ({type(error).__name__}).") from None
    finally:
        partial.unlink(missing_ok=True)
