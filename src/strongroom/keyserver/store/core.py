"""What all parts of the store share: the database, the root key, the clock, and transactions on record."""

from __future__ import annotations

import secrets as random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    AuditBroken,
    InvalidKey,
    NotAuthorised,
    StorageError,
    Unavailable,
    UsageError,
)
from strongroom.format.encoding import canonical_json
from strongroom.keyserver.kek import RootKek
from strongroom.keyserver.store import tables
from strongroom.keyserver.store.anchor import Anchor
from strongroom.keyserver.store.audit_log import (
    AuditLog,
    last,
    latest,
    read_records,
    record_at,
)
from strongroom.keyserver.store.before import Before, expect, read
from strongroom.keyserver.store.database import Database
from strongroom.keyserver.store.direct import Executes
from strongroom.keyserver.store.records import Actor
from strongroom.keyserver.store.schema import migrate
from strongroom.keyserver.store.state import sign_state, verify_state
from strongroom.release.audit import GENESIS, Head, verify_chain

__all__ = ["CLOCK_TOLERANCE", "SECRETS", "Core", "Transaction", "check_kek", "secret_aad"]

CLOCK_TOLERANCE: Final = timedelta(seconds=30)
"""Clocks of replicas with NTP differ by milliseconds; one that is further behind was set back."""

SECRETS: Final = ("signing", "registration", "challenge", "tokens")
_SECRET_SIZE: Final = 32
_WRITERS: Final = ("operator", "owner")


C = TypeVar("C", bound=Executes)


@dataclass(slots=True)
class Transaction(Generic[C]):
    """A writing transaction.

    Attributes:
        connection: of it.
        log: its audit records.
        now: its time.
        before: the database before it.
        changed: it changes what decisions rest on: the revision rises, and the state is signed anew.
        event: of the one audit record of an administrator's change.
        details: of that record.
    """

    connection: C
    log: AuditLog
    now: datetime
    before: Before
    changed: bool = True
    event: str = ""
    details: Mapping[str, Any] | None = None

    @property
    def revision(self) -> int:
        """Before it."""
        return self.before.revision

    def note(self, event: str, **details: Any) -> None:
        """Say what the record of this transaction is about."""
        self.event, self.details = event, details


class Core:
    """An open store.

    Args:
        url: of the database.
        kek: the root key that it is under.
        clock: gives the time, with a time zone.
        anchor: file that remembers the head of the audit trail.
        allow_test_roots: it is meant to be one for tests; must agree with how it was created.
    """

    def __init__(
        self,
        url: str,
        kek: RootKek,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        anchor: str | Path | None = None,
        allow_test_roots: bool = False,
    ) -> None:
        """Open the database, upgrade its schema, check it against its anchor.

        Raises:
            NotFound: there is no database, or no anchor file.
            UsageError: nothing was created in it, or it is (not) one for tests.
            InvalidKey: it is under another root key.
            HeaderTampered: its own secrets were changed.
            AuditBroken: it is older than its anchor, or another.
            UnsupportedVersion: a newer release has written it.
            StorageError: it does not answer.
        """
        self._kek = kek
        self._clock = clock
        self._secrets: dict[str, SecretBytes] = {}
        self._secrets_lock = threading.Lock()
        self._anchor: Anchor | None = None
        self._seen = GENESIS
        self._prepare()
        self._database = Database(url)
        try:
            migrate(self._database)
            self._read_identity(allow_test_roots)
            self._signing = Ed25519PrivateKey.from_private_bytes(self._secret("signing").buffer)
            if anchor is not None:
                self._anchor = Anchor(Path(anchor), self.id)
                self._check_anchor(self._anchor.read())
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """What a part keeps in memory, before the database is opened."""

    @classmethod
    def create(
        cls,
        url: str,
        kek: RootKek,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        anchor: str | Path | None = None,
        test: bool = False,
    ) -> Self:
        """Make a store in an empty database, and open it.

        Args:
            url: of the database.
            kek: the root key that it shall be under.
            clock: gives the time, with a time zone.
            anchor: file to make.
            test: for ever one for roots for tests.

        Raises:
            AlreadyExists: there is one in it, or the anchor file exists.
            StrongroomError: as when it is opened.
        """
        database = Database(url, create=True)
        made: Path | None = None
        try:
            migrate(database)
            store_id = random.token_hex(16)
            with database.writing() as connection:
                if connection.execute(select(tables.store.c.one)).first() is not None:
                    raise AlreadyExists("There is a key store in this database already.")
                _fill(connection, store_id, kek, clock(), test)
                # Before the commit: where there is no anchor file, there is no store.
                if anchor is not None:
                    Anchor.create(Path(anchor), store_id, GENESIS).close()
                    made = Path(anchor)
        except BaseException:
            if made is not None:
                made.unlink()
            raise
        finally:
            database.close()
        return cls(url, kek, clock=clock, anchor=anchor, allow_test_roots=test)

    def _read_identity(self, allow_test_roots: bool) -> None:
        with self._database.reading() as connection:
            row = connection.execute(select(tables.store)).first()
        if row is None:
            raise UsageError(
                "There is no key store in this database.", hint="Make one: strongroom keyserver init."
            )
        self.id: str = row.id
        self.test: bool = row.test
        if row.kek != self._kek.id:
            raise InvalidKey(
                f"The database is under the root key {row.kek}, and this is {self._kek.id}.",
                hint="Name the right one in [kek] of the configuration: after rotate-kek it is the new one.",
            )
        if self.test and not allow_test_roots:
            raise UsageError(
                "This key store was made for tests: anybody can forge what its policies accept.",
                hint="Make another one for production; keys are not carried over.",
            )
        if allow_test_roots and not self.test:
            raise UsageError(
                "This key store is one for production, and roots for tests are configured.",
                hint="Roots for tests need a key store that was made for them.",
            )

    def _check_anchor(self, kept: Head) -> None:
        with self._database.reading() as connection:
            head, _ = latest(connection)
            if head.sequence < kept.sequence:
                raise AuditBroken(
                    f"The database was rolled back: its audit trail ends at record {head.sequence}, "
                    f"and the anchor knows record {kept.sequence}.",
                    hint="After a restore on purpose, accept it: strongroom keyserver accept-head.",
                )
            if kept.sequence:
                record = record_at(connection, kept.sequence)
                before = Head(kept.sequence - 1, "" if record is None else str(record["previous"]))
                verify_chain(read_records(connection, before.sequence), before, [kept])

    def now(self) -> datetime:
        """The time of the store's clock."""
        return self._clock()

    @contextmanager
    def _change(self, actor: Actor) -> Iterator[Transaction[Connection]]:
        """A transaction of an administrator, with its one audit record.

        Raises:
            NotAuthorised: the actor may only read.
            UsageError: the record cannot be written as JSON.
            HeaderTampered: the database does not hold what the server has signed.
            StorageError: the database does not answer.
        """
        if actor.role not in _WRITERS:
            raise NotAuthorised(f"{actor.name} has the role {actor.role}, which changes nothing.")
        try:
            with self._transaction(self._database.writing()) as transaction:
                # What somebody else has changed is not signed with the next change.
                verify_state(transaction.connection, self._signing)
                yield transaction
                assert transaction.details is not None
                changed = transaction.revision + 1 if transaction.changed else None
                try:
                    head = transaction.log.append(
                        transaction.event, {"actor": actor.to_json()}, transaction.details, changed
                    )
                except ValueError as error:
                    raise UsageError(f"What is to be recorded {error}.") from None
                transaction.log.flush()
                if changed is not None:
                    sign_state(transaction.connection, self.id, changed, head.sequence, self._signing)
        except IntegrityError:
            raise StorageError("The database refuses the change.") from None

    @contextmanager
    def _transaction(
        self, writing: AbstractContextManager[C], expected: Before | None = None
    ) -> Iterator[Transaction[C]]:
        """A writing transaction; its records are the last thing that it writes.

        Args:
            writing: the transaction.
            expected: what is believed to be there, and then not read.

        Raises:
            Unexpected: something else is there.
        """
        with writing as connection:
            if expected is not None:
                expect(connection, expected)
            before = expected or read(connection)
            if expected is None:
                self._check_seen(before.last[0], self._seen)
            _check_kek(before.kek, self._kek)
            now = self._clock()
            log = AuditLog(connection, self.id, self.test, now, before.last)
            transaction = Transaction(connection, log, now, before)
            yield transaction
            log.flush()
        if log.head.sequence > self._seen.sequence:
            self._seen = log.head
        # Remembered before anybody is told: whatever was acknowledged is behind the anchor.
        if self._anchor is not None:
            self._anchor.advance(log.head)

    def _check_seen(self, head: Head, seen: Head) -> None:
        """Refuse a database that was put back, or failed over to a copy that lags, under a server that runs."""
        if head.sequence < seen.sequence or (head.sequence == seen.sequence and head != seen):
            raise AuditBroken(
                f"The database was rolled back: its audit trail ends at record {head.sequence}, "
                f"and this server has seen record {seen.sequence}.",
                hint="After a restore on purpose: strongroom keyserver accept-head, and start it again.",
            )

    def _check_clock(self, latest: datetime, now: datetime) -> None:
        behind = latest - now
        if behind > CLOCK_TOLERANCE:
            raise Unavailable(
                f"The clock of this server is {int(behind.total_seconds())} seconds behind its own records.",
                hint="Set the clock right. If it was ahead before: strongroom keyserver accept-clock.",
            )

    def secret(self, name: str) -> SecretBytes:
        """A secret of the server, 32 bytes, made with the store; the caller's own copy.

        Args:
            name: signing (seed of Ed25519), registration (of HPKE), challenge (of a MAC).

        Raises:
            UsageError: there is no such secret.
            HeaderTampered: its record was changed.
            Unavailable: the database or the root key does not answer.
        """
        return SecretBytes(self._secret(name).buffer)

    def _secret(self, name: str) -> SecretBytes:
        if name not in SECRETS:
            raise UsageError(f"There is no secret {name}.")
        with self._secrets_lock:
            if name not in self._secrets:
                with self._database.reading() as connection:
                    query = select(tables.secrets.c.wrapped).where(tables.secrets.c.name == name)
                    wrapped = connection.execute(query).scalar()
                aad = secret_aad(self.id, self.test, name)
                self._secrets[name] = self._kek.unwrap(wrapped or b"", aad)
            return self._secrets[name]

    def close(self) -> None:
        """Close the database and the anchor; wipe the secrets."""
        self._database.close()
        if self._anchor is not None:
            self._anchor.close()
        for secret in self._secrets.values():
            secret.wipe()
        self._secrets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check_kek(connection: Connection, kek: RootKek) -> int:
    """The revision, once it is sure that the database is still under this root key.

    Raises:
        Unavailable: it was moved to another one meanwhile.
    """
    row = connection.execute(select(tables.store.c.kek, tables.store.c.revision)).one()
    _check_kek(row.kek, kek)
    return int(row.revision)


def _check_kek(found: str, kek: RootKek) -> None:
    if found != kek.id:
        raise Unavailable(
            "The keys were moved to another root key.", hint="Start this server with that one."
        )


def secret_aad(store_id: str, test: bool, name: str) -> bytes:
    """What a secret of the server is wrapped with: it belongs to this store and has this name."""
    return canonical_json({"store": store_id, "test": test, "secret": name})


def _fill(connection: Connection, store_id: str, kek: RootKek, now: datetime, test: bool) -> None:
    for name in SECRETS:
        with SecretBytes.random(_SECRET_SIZE) as secret:
            wrapped = kek.wrap(secret, secret_aad(store_id, test, name))
            if name == "signing":
                signing = Ed25519PrivateKey.from_private_bytes(secret.buffer)
        connection.execute(insert(tables.secrets).values(name=name, wrapped=wrapped))
    connection.execute(
        insert(tables.store).values(
            one=1,
            id=store_id,
            test=test,
            created=tables.micros(now),
            kek=kek.id,
            revision=0,
            state_sequence=0,
            state_signature=b"",
        )
    )
    log = AuditLog(connection, store_id, test, now, last())
    head = log.append("store.created", {"actor": _MAKER.to_json()}, {"kek": kek.id}, 1)
    log.flush()
    sign_state(connection, store_id, 1, head.sequence, signing)


_MAKER: Final = Actor("init", "owner", "local")
