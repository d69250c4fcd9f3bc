"""Statements given to the driver itself: 10 µs of a core each, where SQLAlchemy's own way takes 50."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Protocol

from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

__all__ = ["Direct", "Executes", "Unexpected"]

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")
_POSTGRESQL: Final = postgresql.psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call]

_MANY: Final = 8
"""Rows in one INSERT: 16 releases take 3.9 ms of PostgreSQL and client, and 6.2 with one. With 16 they
take no less, and to compile that for the first time takes 10 ms."""


class Unexpected(Exception):
    """The database was not as expected: nothing was written."""


class Executes(Protocol):
    """What a connection of SQLAlchemy and a direct one have in common."""

    def execute(self, statement: Any, rows: Any = ..., /) -> Iterable[Any]:
        """Run a statement, and give its rows."""


class Direct:
    """A connection in a writing transaction.

    Args:
        connection: of the driver; one of PostgreSQL is in pipeline mode.

    Attributes:
        expecting: the database was told what to expect.
    """

    def __init__(self, connection: Any, *, is_sqlite: bool) -> None:
        self._connection = connection
        self.is_sqlite = is_sqlite
        self.expecting = False

    def execute(
        self, statement: Any, rows: Sequence[Mapping[str, Any]] = ({},), /
    ) -> list[tuple[Any, ...]]:
        """Run a statement for each row of parameters; what it gives, for all of them.

        What gives nothing may fail later, at the latest when it is committed.

        Args:
            statement: of SQLAlchemy. It is compiled once, and that is kept for ever: a constant.
            rows: of a table's columns for INSERT, all with the same; or of the statement's parameters.
        """
        # All are under way before the first answer is waited for.
        return [row for cursor in self._send(statement, rows) for row in cursor.fetchall()]

    def expect(self, statement: Any, row: Mapping[str, Any], /) -> None:
        """Send a statement that fails where the database is not as expected.

        With that, and where a row is written that must be the only one and is not, the transaction ends with
        :class:`Unexpected`.
        """
        self.expecting = True
        self._send(statement, [row])

    def _send(self, statement: Any, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        giving = []
        for part in _parts(statement, rows):
            text, names, fixed, gives = _compiled(statement, self.is_sqlite, tuple(part[0]), len(part))
            values = fixed | (_numbered(part) if isinstance(statement, Insert) else dict(part[0]))
            cursor = self._connection.cursor()
            cursor.execute(text, [values[name] for name in names])
            if gives:
                giving.append(cursor)
        return giving


def _numbered(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{name}_{index}": value for index, row in enumerate(rows) for name, value in row.items()}


def _parts(statement: Any, rows: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    """Rows that go together: powers of two, so that few statements are compiled and prepared."""
    most = _MANY if isinstance(statement, Insert) else 1
    begin = 0
    while left := len(rows) - begin:
        size = min(most, 1 << (left.bit_length() - 1))
        yield rows[begin : begin + size]
        begin += size


@cache
def _compiled(
    statement: Any, is_sqlite: bool, names: tuple[str, ...], count: int
) -> tuple[str, Sequence[str], dict[str, Any], bool]:
    """The text, its parameters in order, those that have a value already, and whether it gives rows."""
    gives = len(statement.exported_columns) > 0
    if isinstance(statement, Insert):
        rows: list[dict[str, Any]] = [
            {name: bindparam(f"{name}_{index}") for name in names} for index in range(count)
        ]
        statement = statement.values(rows)
    compiled = statement.compile(dialect=_SQLITE if is_sqlite else _POSTGRESQL)
    fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
    return str(compiled), compiled.positiontup, fixed, gives
