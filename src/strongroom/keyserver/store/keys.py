"""Keys: versions, states, and the wrapped keys themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, func, insert, select, update

from strongroom.crypto.derive import BUNDLE_SIZE, DEK_SIZE
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    HeaderTampered,
    NotFound,
    ReleaseDenied,
    Unavailable,
    UsageError,
)
from strongroom.format.encoding import canonical_json
from strongroom.keyserver.store.core import check_kek
from strongroom.keyserver.store.dek_cache import DekCache
from strongroom.keyserver.store.policies import PolicyRegister
from strongroom.keyserver.store.records import STATES, Actor, KeyRecord
from strongroom.keyserver.store.state import State, state_changed
from strongroom.keyserver.store.tables import keys, leases, micros, moment
from strongroom.release.decision import RELEASABLE
from strongroom.release.names import check_name, check_version

__all__ = ["KeyRegister", "key_aad"]

T = TypeVar("T")

_ATTEMPTS: Final = 10
"""To read a key at the revision whose state was verified; each meets a change of an administrator."""


def key_aad(
    store_id: str, test: bool, name: str, version: int, bundle: bytes, state: str, epoch: int
) -> bytes:
    """What a key is wrapped with: it opens for this record in this state of this store, and no other."""
    return canonical_json(
        {
            "store": store_id,
            "test": test,
            "name": name,
            "version": version,
            "bundle": bundle.hex(),
            "state": state,
            "epoch": epoch,
        }
    )


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        name=row.name,
        version=row.version,
        bundle=bytes(row.bundle),
        state=row.state,
        current=bool(row.current),
        created=moment(row.created),
        epoch=row.epoch,
        meta=json.loads(row.meta),
        reason=row.reason,
    )


def _no_key(name: str, version: int | None) -> NotFound:
    return NotFound(f"There is no key {name}{'' if version is None else f'@{version}'}.")


class KeyRegister(PolicyRegister):
    """The part of the store that is about keys."""

    def _prepare(self) -> None:
        self._deks = DekCache()
        super()._prepare()

    def close(self) -> None:
        """Close, and wipe the keys at hand."""
        self._deks.clear()
        super().close()

    def _aad(self, record: KeyRecord | Row[Any]) -> bytes:
        return key_aad(
            self.id,
            self.test,
            record.name,
            record.version,
            record.bundle,
            record.state,
            record.epoch,
        )

    def add_key(
        self,
        name: str,
        version: int | None,
        bundle: bytes,
        dek: SecretBytes,
        actor: Actor,
        meta: Mapping[str, Any] | None = None,
    ) -> KeyRecord:
        """Register a key. The first version of a name is its current one; later ones wait for :meth:`rotate`.

        Args:
            name: of the key.
            version: above all that there are; None takes the next.
            bundle: of the sealed model, 16 bytes.
            dek: the key, 32 bytes.
            actor: who registers it.
            meta: of the owner, JSON.

        Raises:
            AlreadyExists: there is this version, or a later one.
            UsageError: an argument is not what it should be.
            NotAuthorised: the actor may only read.
            Unavailable: the database or the root key does not answer.
        """
        check_name(name)
        if version is not None:
            check_version(version)
        if len(bundle) != BUNDLE_SIZE or len(dek) != DEK_SIZE:
            raise UsageError(f"A bundle has {BUNDLE_SIZE} bytes and a key {DEK_SIZE}.")
        try:
            meta_text = canonical_json(dict(meta or {})).decode()
        except ValueError as error:
            raise UsageError(f"The metadata of the key {error}.") from None
        with self._change(actor) as transaction:
            query = select(func.max(keys.c.version)).where(keys.c.name == name)
            newest = transaction.connection.execute(query).scalar() or 0
            number = newest + 1 if version is None else version
            if number <= newest:
                raise AlreadyExists(
                    f"{name}@{number} cannot be registered: there is {name}@{newest}.",
                    hint="Versions only rise.",
                )
            check_version(number)
            record = KeyRecord(
                name=name,
                version=number,
                bundle=bundle,
                state="active",
                current=newest == 0,
                created=moment(micros(transaction.now)),
                epoch=1,
                meta=json.loads(meta_text),
            )
            transaction.connection.execute(
                insert(keys).values(
                    name=name,
                    version=number,
                    bundle=bundle,
                    state=record.state,
                    epoch=record.epoch,
                    current=record.current,
                    wrapped=self._kek.wrap(dek, self._aad(record)),
                    created=micros(record.created),
                    meta=meta_text,
                )
            )
            transaction.note(
                "key.added",
                name=name,
                version=number,
                bundle=bundle.hex(),
                current=record.current,
                meta=dict(record.meta),
            )
        return record

    def keys(self, name: str | None = None) -> list[KeyRecord]:
        """All versions of one key, or of all, by name and version.

        Raises:
            StorageError: the database does not answer.
        """
        query = select(keys)
        if name is not None:
            query = query.where(keys.c.name == name)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return sorted(map(_record, rows), key=lambda one: (one.name, one.version))

    def key(self, name: str, version: int | None = None) -> KeyRecord:
        """One version, as the server has signed it; None gives the current one.

        Raises:
            NotFound: there is none.
            HeaderTampered: the database does not hold what the server has signed.
            Unavailable: the database does not answer.
        """
        for _ in range(_ATTEMPTS):
            self.snapshot()
            state = self._state
            with self._database.reading() as connection:
                if check_kek(connection, self._kek) == state.revision:
                    record = _one(connection, name, version)
                    _check_signed(state, record)
                    return record
        raise Unavailable("The keys change faster than they are read.", hint="Ask again.")

    def dek(self, record: KeyRecord) -> SecretBytes:
        """The key of a record; the caller's own copy.

        Args:
            record: as the store gave it: the key opens in that state and epoch only.

        Raises:
            ReleaseDenied: it is revoked or destroyed.
            NotFound: it is not there any more.
            HeaderTampered: the record or the wrapped key was changed.
            Unavailable: the database or the root key does not answer.
        """
        aad = self._releasable(record)
        return self._deks.get(aad, lambda: self._unwrapped(record, aad))

    def use_dek(self, record: KeyRecord, what: Callable[[SecretBytes], T]) -> T:
        """What ``what`` makes of the key of a record, which it must not keep; as :meth:`dek`, faster."""
        aad = self._releasable(record)
        return self._deks.use(aad, lambda: self._unwrapped(record, aad), what)

    def _releasable(self, record: KeyRecord) -> bytes:
        if record.state not in RELEASABLE:
            raise ReleaseDenied(
                f"The key {record.name}@{record.version} is {record.state}.", code="revoked"
            )
        return self._aad(record)

    def at_hand(self, record: KeyRecord) -> bool:
        """Whether :meth:`dek` would ask neither the database nor the root key."""
        return self._deks.has(self._aad(record))

    def _unwrapped(self, record: KeyRecord, aad: bytes) -> SecretBytes:
        kek = self._kek
        with self._database.reading() as connection:
            check_kek(connection, kek)
            query = select(keys.c.wrapped, keys.c.epoch).where(
                keys.c.name == record.name, keys.c.version == record.version
            )
            row = connection.execute(query).first()
        if row is None:
            raise _no_key(record.name, record.version)
        if row.epoch != record.epoch:
            raise Unavailable("The state of the key changed meanwhile.", hint="Ask again.")
        dek = kek.unwrap(row.wrapped or b"", aad)
        if len(dek) != DEK_SIZE:
            raise HeaderTampered("What is wrapped is no key.")
        return dek

    def set_state(self, name: str, version: int, state: str, actor: Actor, reason: str) -> KeyRecord:
        """Give a version another state. Leases of one that is revoked or destroyed end.

        Args:
            name: of the key.
            version: of it.
            state: active, deprecated, revoked or destroyed; nothing follows destroyed, since the
                wrapped key is erased.
            actor: who decides it.
            reason: for the record.

        Raises:
            NotFound: there is no such version.
            UsageError: there is no such state, or it is destroyed.
            NotAuthorised: the actor may only read.
            HeaderTampered: the record was changed.
            Unavailable: the database or the root key does not answer.
        """
        if state not in STATES:
            raise UsageError(f"There is no state {state}.", hint="States are: " + ", ".join(STATES))
        with self._change(actor) as transaction:
            before = _one(transaction.connection, name, version)
            after = self._move(transaction.connection, before, state, reason)
            if state not in RELEASABLE:
                _end_leases(transaction.connection, name, version)
            transaction.note(
                "key.state",
                name=name,
                version=version,
                before=before.state,
                state=state,
                epoch=after.epoch,
                reason=reason,
            )
        if state == "destroyed":
            self._deks.clear()
            self._database.forget_pages()
        return after

    def _move(
        self, connection: Connection, before: KeyRecord, state: str, reason: str | None
    ) -> KeyRecord:
        if before.state == "destroyed":
            raise UsageError(f"The key {before.name}@{before.version} is destroyed.")
        after = KeyRecord(
            name=before.name,
            version=before.version,
            bundle=before.bundle,
            state=state,
            current=before.current,
            created=before.created,
            epoch=before.epoch + 1,
            meta=before.meta,
            reason=reason,
        )
        here = (keys.c.name == before.name) & (keys.c.version == before.version)
        wrapped = None
        if state != "destroyed":
            found = connection.execute(select(keys.c.wrapped).where(here)).scalar()
            with self._kek.unwrap(found or b"", self._aad(before)) as dek:
                wrapped = self._kek.wrap(dek, self._aad(after))
        connection.execute(
            update(keys)
            .where(here)
            .values(state=state, epoch=after.epoch, wrapped=wrapped, reason=reason)
        )
        return after

    def rotate(self, name: str, version: int | None, actor: Actor) -> KeyRecord:
        """Make a version the current one; older active ones are deprecated.

        Args:
            name: of the key.
            version: that shall be current; None takes the newest that is active.
            actor: who decides it.

        Raises:
            NotFound: there is no such version.
            UsageError: it is not active.
            StrongroomError: as :meth:`set_state`.
        """
        with self._change(actor) as transaction:
            connection = transaction.connection
            rows = connection.execute(select(keys).where(keys.c.name == name)).all()
            found = sorted(map(_record, rows), key=lambda one: one.version)
            usable = [one for one in found if version in (None, one.version)]
            if version is None:
                usable = [one for one in usable if one.state == "active"] or usable
            if not usable:
                raise _no_key(name, version)
            chosen = usable[-1]
            if chosen.state != "active":
                raise UsageError(f"The key {name}@{chosen.version} is {chosen.state}, not active.")
            connection.execute(update(keys).where(keys.c.name == name).values(current=False))
            connection.execute(
                update(keys)
                .where(keys.c.name == name, keys.c.version == chosen.version)
                .values(current=True)
            )
            older = [one for one in found if one.version < chosen.version and one.state == "active"]
            for one in older:
                self._move(connection, one, "deprecated", f"{name}@{chosen.version} is current")
            transaction.note(
                "key.rotated",
                name=name,
                version=chosen.version,
                deprecated=[one.version for one in older],
            )
        return self.key(name, chosen.version)


def _one(connection: Connection, name: str, version: int | None) -> KeyRecord:
    wanted = keys.c.current.is_(True) if version is None else keys.c.version == version
    row = connection.execute(select(keys).where(keys.c.name == name, wanted)).first()
    if row is None:
        raise _no_key(name, version)
    return _record(row)


def _check_signed(state: State, record: KeyRecord) -> None:
    """A row put back as it once was, with the wrapped key of then, is whole in itself."""
    found = (record.bundle, record.state, record.epoch, record.current)
    if state.keys.get((record.name, record.version)) != found:
        raise state_changed()


def _end_leases(connection: Connection, name: str, version: int) -> None:
    connection.execute(
        update(leases)
        .where(leases.c.name == name, leases.c.version == version, leases.c.ended.is_(None))
        .values(ended="revoked")
    )
