"""The store: all its parts in one object."""

from __future__ import annotations

from typing import Any

from strongroom.keyserver.store.audit_log import latest, read_records
from strongroom.keyserver.store.core import check_kek
from strongroom.keyserver.store.crls import CrlRegister
from strongroom.keyserver.store.maintenance import Maintenance
from strongroom.keyserver.store.nodes import NodeRegister
from strongroom.keyserver.store.renewals import Renewals
from strongroom.keyserver.store.tokens import TokenRegister

__all__ = ["Store"]

_MAX_RECORDS = 1000


class Store(Renewals, NodeRegister, CrlRegister, TokenRegister, Maintenance):
    """Keys, policies, leases, tokens and their audit trail, in one database; safe for threads and replicas.

    :meth:`create` makes one, the constructor opens it; see :class:`.Core` for their arguments.
    """

    def check(self) -> None:
        """Whether releases are possible: the database answers, holds what was signed, is under this
        root key, and the clock is not behind it.

        Raises:
            HeaderTampered: it does not hold what the server has signed.
            AuditBroken: it was rolled back.
            Unavailable: it does not answer, was moved to another root key, or is ahead of this clock.
        """
        seen = self._seen
        with self._database.reading() as connection:
            check_kek(connection, self._kek)
            head, time = latest(connection)
            self._check_seen(head, seen)
            self._check_clock(time, self._clock())
        self.snapshot()

    def audit(self, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Audit records in order, each with its hash.

        Args:
            after: number of the record before the first that is given.
            limit: how many at most; 1000 are the most.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as connection:
            return list(read_records(connection, after, max(0, min(limit, _MAX_RECORDS))))

    def audit_head(self) -> tuple[int, str]:
        """Number and hash of the last record.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as connection:
            head, _ = latest(connection)
        return head.sequence, head.hash
