"""Audit records in the database: appended within the transaction that they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select

from strongroom.errors import AuditBroken
from strongroom.format.encoding import canonical_json
from strongroom.keyserver.store.direct import Executes
from strongroom.keyserver.store.tables import audit, micros, moment
from strongroom.release.audit import GENESIS, Head, hash_of

__all__ = ["LAST", "AuditLog", "Last", "last", "latest", "read_records", "record_at"]

_PAGE: Final = 500

Last = tuple[Head, datetime]

LAST: Final = (
    select(audit.c.sequence, audit.c.hash, audit.c.time).order_by(audit.c.sequence.desc()).limit(1)
)
_APPEND: Final = insert(audit)


def _time_text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def last(sequence: int | None = None, digest: str = "", time: int = 0) -> Last:
    """From a row of :data:`LAST`; before the first record without one."""
    return (GENESIS if sequence is None else Head(sequence, digest)), moment(time or 0)


def latest(connection: Connection) -> Last:
    """The last record: where it is in the chain, and its time."""
    return last(*(connection.execute(LAST).first() or ()))


class AuditLog:
    """Records of one transaction: hashed when they are appended, written by :meth:`flush`.

    Args:
        connection: in a writing transaction.
        store: id of the store.
        test: it is one for tests; every record says so.
        now: time of the records, unless the last record is later.
        last: record of that transaction.
    """

    def __init__(self, connection: Executes, store: str, test: bool, now: datetime, last: Last) -> None:
        self._connection = connection
        self._fixed: dict[str, Any] = {"v": 1, "store": store} | ({"test": True} if test else {})
        self.head, self.latest = last
        self._time = max(now, self.latest)
        self._before = last
        self._rows: list[dict[str, Any]] = []

    @property
    def last(self) -> Last:
        """The last record, once these are written."""
        return (self.head, self._time) if self.head != self._before[0] else self._before

    def set_time(self, now: datetime) -> None:
        """Take ``now``, even if it is before the last record."""
        self._time = now

    def append(
        self,
        event: str,
        who: Mapping[str, Any],
        details: Mapping[str, Any],
        revision: int | None = None,
    ) -> Head:
        """Add a record.

        Args:
            event: what happened.
            who: ``{"actor": …}`` or ``{"platform": …}``.
            details: of the event.
            revision: that comes to be with it.

        Raises:
            ValueError: it has no canonical form.
        """
        record = {
            **self._fixed,
            "sequence": self.head.sequence + 1,
            "previous": self.head.hash,
            "time": _time_text(self._time),
            "event": event,
            **who,
            "details": details,
        }
        if revision is not None:
            record["revision"] = revision
        content = canonical_json(record)
        digest = hash_of(content)
        self._rows.append(
            {
                "sequence": record["sequence"],
                "time": micros(self._time),
                "revision": revision,
                "hash": digest,
                "record": content.decode(),
            }
        )
        self.head = Head(self.head.sequence + 1, digest)
        return self.head

    def flush(self) -> None:
        """Write what was appended."""
        if self._rows:
            self._connection.execute(_APPEND, self._rows)
            self._rows = []


def _record(row: Row[Any]) -> dict[str, Any]:
    try:
        record = json.loads(row.record)
        if not isinstance(record, dict) or record.get("sequence") != row.sequence:
            raise ValueError
    except ValueError:
        raise AuditBroken(
            f"The audit trail is broken: record {row.sequence} is no record.",
            hint="Restore a backup.",
        ) from None
    return {**record, "hash": row.hash}


def record_at(connection: Connection, sequence: int) -> dict[str, Any] | None:
    """The record of this number, with its hash; None if there is none."""
    row = connection.execute(select(audit).where(audit.c.sequence == sequence)).first()
    return None if row is None else _record(row)


def read_records(
    connection: Connection, after: int, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Records after a number, in order, each with its hash.

    Raises:
        AuditBroken: one is no record at all. The chain is for :func:`.verify_chain` to check.
    """
    left = limit
    while left is None or left > 0:
        rows = connection.execute(
            select(audit)
            .where(audit.c.sequence > after)
            .order_by(audit.c.sequence)
            .limit(_PAGE if left is None else min(left, _PAGE))
        ).all()
        for row in rows:
            yield _record(row)
        if not rows:
            return
        after = rows[-1].sequence
        left = left if left is None else left - len(rows)
