"""Machines: who holds what, who was evicted."""

from __future__ import annotations

from sqlalchemy import func, insert, select, update

from strongroom.errors import NotFound, UsageError
from strongroom.keyserver.store.core import Core
from strongroom.keyserver.store.records import Actor, NodeRecord
from strongroom.keyserver.store.tables import leases, micros, moment, nodes

__all__ = ["NodeRegister"]

_MAX_PLATFORM = 300


class NodeRegister(Core):
    """The part of the store that is about machines."""

    def nodes(self) -> list[NodeRecord]:
        """Machines that keys were released to, and those that were enrolled or evicted, by name.

        Raises:
            StorageError: the database does not answer.
        """
        now = micros(self._clock())
        with self._database.reading() as connection:
            rows = connection.execute(select(nodes)).all()
            live = select(leases.c.platform, func.count()).where(
                leases.c.ended.is_(None), leases.c.not_after > now
            )
            counts = dict(tuple(row) for row in connection.execute(live.group_by(leases.c.platform)))
        found = [
            NodeRecord(
                platform=row.platform,
                evicted=bool(row.evicted),
                reason=row.reason,
                leases=counts.get(row.platform, 0),
                first_seen=None if row.first_seen is None else moment(row.first_seen),
                last_seen=None if row.last_seen is None else moment(row.last_seen),
            )
            for row in rows
        ]
        return sorted(found, key=lambda one: one.platform)

    def evict(self, platform: str, actor: Actor, reason: str) -> None:
        """Give a machine no more keys; its leases end. It may be one that has never asked.

        Args:
            platform: its name, ``kind:hex``, as audit records have it.
            actor: who decides it.
            reason: for the record.

        Raises:
            UsageError: this names no machine.
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        if not platform.isprintable() or not 0 < len(platform) <= _MAX_PLATFORM:
            raise UsageError("This is not the name of a machine.")
        with self._change(actor) as transaction:
            connection = transaction.connection
            values = {"evicted": True, "reason": reason}
            changed = connection.execute(
                update(nodes).where(nodes.c.platform == platform).values(values)
            )
            if not changed.rowcount:
                connection.execute(insert(nodes).values(platform=platform, **values))
            ended = connection.execute(
                update(leases)
                .where(leases.c.platform == platform, leases.c.ended.is_(None))
                .values(ended="evicted")
            )
            transaction.note(
                "node.evicted", platform=platform, reason=reason, leases_ended=ended.rowcount
            )

    def enrol(self, platform: str, actor: Actor, *, ak_name: str, ek: str) -> None:
        """Put on record that an attestation key was proved to lie in a certified TPM.

        It changes no decision: whether the machine gets a key is for the policies that list it.

        Args:
            platform: ``ak:…``.
            actor: who has seen to it.
            ak_name: the TPM's name of the key, hexadecimal.
            ek: SHA-256 of the endorsement key, hexadecimal.

        Raises:
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        with self._change(actor) as transaction:
            transaction.changed = False
            known = select(nodes.c.platform).where(nodes.c.platform == platform)
            if transaction.connection.execute(known).first() is None:
                row = insert(nodes).values(platform=platform, evicted=False)
                transaction.connection.execute(row)
            transaction.note("node.enrolled", platform=platform, ak_name=ak_name, ek=ek)

    def admit(self, platform: str, actor: Actor) -> None:
        """Undo an eviction: the machine may ask again. Leases that ended stay so.

        Args:
            platform: its name.
            actor: who decides it.

        Raises:
            NotFound: it was not evicted.
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        with self._change(actor) as transaction:
            changed = transaction.connection.execute(
                update(nodes)
                .where(nodes.c.platform == platform, nodes.c.evicted.is_(True))
                .values(evicted=False, reason=None)
            )
            if not changed.rowcount:
                raise NotFound(f"The machine {platform} is not evicted.")
            transaction.note("node.admitted", platform=platform)
