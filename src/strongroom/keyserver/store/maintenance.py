"""What an owner does rarely: another root key, a check of everything, a clock or a restore accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from strongroom.errors import AuditBroken, NotFound, UsageError
from strongroom.keyserver.kek import RootKek
from strongroom.keyserver.store.anchor import Anchor
from strongroom.keyserver.store.audit_log import latest, read_records
from strongroom.keyserver.store.core import SECRETS, secret_aad
from strongroom.keyserver.store.keys import KeyRegister
from strongroom.keyserver.store.records import Actor
from strongroom.keyserver.store.state import verify_state
from strongroom.keyserver.store.tables import audit, keys, policies, secrets, store
from strongroom.release.audit import Head, verify_chain

__all__ = ["Maintenance"]

_Place = tuple[str, str, int, int]


class Maintenance(KeyRegister):
    """The part of the store for its owner."""

    def rotate_kek(self, new: RootKek, actor: Actor) -> int:
        """Move all keys to another root key; how many there were.

        Keys are wrapped anew before the one transaction that exchanges them all, so that releases go
        on meanwhile. Where it is interrupted nothing has happened: start it again. Other replicas
        refuse to go on with the old root key from then on.

        Args:
            new: the root key.
            actor: who decides it.

        Raises:
            UsageError: it is the one that they are under.
            HeaderTampered: a record was changed.
            NotAuthorised: the actor may only read.
            Unavailable: the database or a root key does not answer.
        """
        old = self._kek
        if new.id == old.id:
            raise UsageError("The keys are under this root key already.")
        # Read at once: a reader that lasts would keep SQLite from emptying its log.
        with self._database.reading() as connection:
            rows = self._wrapped(connection)
        ready = {place: _rewrap(wrapped, aad, old, new) for place, aad, wrapped in rows}
        with self._change(actor) as transaction:
            connection = transaction.connection
            rows = self._wrapped(connection)
            moved: dict[str, list[dict[str, Any]]] = {"secrets": [], "keys": []}
            for place, aad, before in rows:
                table, name, version, _ = place
                wrapped = ready.get(place) or _rewrap(before, aad, old, new)
                moved[table].append({"n": name, "v": version, "w": wrapped})
            named = secrets.c.name == bindparam("n")
            query = update(secrets).where(named).values(wrapped=bindparam("w"))
            connection.execute(query, moved["secrets"])
            if moved["keys"]:
                here = (keys.c.name == bindparam("n")) & (keys.c.version == bindparam("v"))
                connection.execute(
                    update(keys).where(here).values(wrapped=bindparam("w")), moved["keys"]
                )
            count = len(moved["keys"])
            connection.execute(update(store).values(kek=new.id))
            transaction.note("store.rewrapped", before=old.id, kek=new.id, keys=count)
        self._kek = new
        self._database.forget_pages()
        return count

    def _wrapped(self, connection: Connection) -> list[tuple[_Place, bytes, bytes]]:
        """What is wrapped: where, with what, and the bytes. Of another epoch it is another place."""
        found: list[tuple[_Place, bytes, bytes]] = [
            (("secrets", row.name, 0, 0), secret_aad(self.id, self.test, row.name), row.wrapped)
            for row in connection.execute(select(secrets))
        ]
        rows = connection.execute(select(keys).where(keys.c.wrapped.is_not(None)))
        found += [
            (("keys", row.name, row.version, row.epoch), self._aad(row), row.wrapped) for row in rows
        ]
        return found

    def verify(self, known: Iterable[Head] = ()) -> Head:
        """Check everything that can be checked, and return the head of the audit trail: the chain from
        its first record on, the state and the policies that the server has signed, every wrapped key.

        Args:
            known: heads that were kept elsewhere.

        Raises:
            AuditBroken: the trail was changed.
            HeaderTampered: something else was.
            Unavailable: the database or the root key does not answer.
        """
        kept = [*known] + ([self._anchor.read()] if self._anchor is not None else [])
        with self._database.reading() as connection:
            verify_state(connection, self._signing)
            for number in connection.execute(select(policies.c.number)).scalars().all():
                self._policy_record(connection, number)
            head = verify_chain(_columns_agree(connection), known=kept)
            for name in SECRETS:
                row = connection.execute(select(secrets).where(secrets.c.name == name)).first()
                aad = secret_aad(self.id, self.test, name)
                self._kek.unwrap(b"" if row is None else row.wrapped, aad).wipe()
            for row in connection.execute(select(keys)).all():
                if row.state != "destroyed" or row.wrapped is not None:
                    self._kek.unwrap(row.wrapped or b"", self._aad(row)).wipe()
        return head

    def accept_clock(self, actor: Actor, reason: str) -> None:
        """Go on with a clock that is behind the records, because it was ahead when they were written.

        Args:
            actor: who decides it.
            reason: for the record.

        Raises:
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        with self._change(actor) as transaction:
            transaction.changed = False
            before = transaction.log.latest
            transaction.log.set_time(transaction.now)
            transaction.note("clock.accepted", before=before.isoformat(), reason=reason)

    @classmethod
    def accept_head(
        cls,
        url: str,
        kek: RootKek,
        anchor: str | Path,
        actor: Actor,
        reason: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        allow_test_roots: bool = False,
    ) -> Head:
        """Go on with a database that is behind its anchor, after a restore on purpose; or give it an
        anchor. Challenges, revocations and evictions after the backup are forgotten: look at them.

        Args:
            url: of the database.
            kek: its root key.
            anchor: the file; made where there is none.
            actor: who decides it.
            reason: for the record.
            clock: gives the time, with a time zone.
            allow_test_roots: as when the store is opened.

        Raises:
            StrongroomError: as when the store is opened, and as :meth:`verify`.
        """
        path = Path(anchor)
        with cls(url, kek, clock=clock, allow_test_roots=allow_test_roots) as here:
            here.verify()
            before: dict[str, Any] | None = None
            try:
                file = Anchor(path, here.id)
            except NotFound:
                file = Anchor.create(path, here.id, Head(0, "0" * 64))
            else:
                try:
                    kept = file.read()
                    before = {"sequence": kept.sequence, "hash": kept.hash}
                except AuditBroken as error:
                    before = {"problem": error.message}
            try:
                with here._change(actor) as transaction:
                    transaction.changed = False
                    transaction.note("anchor.accepted", before=before, reason=reason)
                with here._database.reading() as connection:
                    head, _ = latest(connection)
                file.replace(head)
            finally:
                file.close()
        return head


def _rewrap(wrapped: bytes, aad: bytes, old: RootKek, new: RootKek) -> bytes:
    with old.unwrap(wrapped, aad) as secret:
        return new.wrap(secret, aad)


def _columns_agree(connection: Connection) -> Iterator[dict[str, Any]]:
    """All records, each compared with the column that the state is looked up by."""
    query = select(audit.c.sequence, audit.c.revision).where(audit.c.revision.is_not(None))
    revisions = {row.sequence: row.revision for row in connection.execute(query)}
    for record in read_records(connection, 0):
        if revisions.get(record["sequence"]) != record.get("revision"):
            raise AuditBroken(f"The row of audit record {record['sequence']} was changed.")
        yield record
