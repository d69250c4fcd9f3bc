"""What a writing transaction rests on: read at its beginning, or expected and compared by the database itself.

Whoever reads waits for the database before he goes on: with that, with the challenges that he finds unused and
with the commit itself, a release waits for it three times, each time until the scheduler has let both of them
have a core. Whoever has written last knows what is there; the database undoes all where he is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, bindparam, literal_column, select, true

from strongroom.keyserver.store import tables
from strongroom.keyserver.store.audit_log import LAST, Last, last
from strongroom.keyserver.store.direct import Direct, Executes
from strongroom.keyserver.store.tables import micros

__all__ = ["Before", "expect", "read"]

_LAST: Final = LAST.subquery()
_READ: Final = select(tables.store.c.kek, tables.store.c.revision, _LAST).select_from(
    tables.store.outerjoin(_LAST, true())
)
# Where nothing is as it is expected to be, this divides by zero, which PostgreSQL refuses.
_COMPARE: Final[Select[Any]] = (
    select(literal_column("1 / count(*)"))
    .select_from(tables.store.join(_LAST, true()))
    .where(
        tables.store.c.kek == bindparam("kek"),
        tables.store.c.revision == bindparam("revision"),
        _LAST.c.sequence == bindparam("sequence"),
        _LAST.c.hash == bindparam("hash"),
        _LAST.c.time == bindparam("time"),
    )
)


@dataclass(frozen=True, slots=True)
class Before:
    """The database before a transaction.

    Attributes:
        kek: id of the root key that it is under.
        revision: of what administrators have made of it.
        last: audit record.
    """

    kek: str
    revision: int
    last: Last


def read(connection: Executes) -> Before:
    """How it is."""
    ((kek, revision, *record),) = connection.execute(_READ)
    return Before(kek, revision, last(*record))


def expect(connection: Executes, before: Before) -> None:
    """Undo the transaction where the database is not like this; nothing is waited for.

    Args:
        connection: to PostgreSQL, with nothing read or written yet.
        before: with an audit record.
    """
    if not isinstance(connection, Direct) or connection.is_sqlite:
        raise AssertionError("nobody would compare")
    head, time = before.last
    members = {"sequence": head.sequence, "hash": head.hash, "time": micros(time)}
    connection.expect(_COMPARE, {"kek": before.kek, "revision": before.revision, **members})
