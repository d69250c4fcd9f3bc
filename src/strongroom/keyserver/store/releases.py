"""Releases: challenge, holders, leases and audit record, in one transaction for all that wait."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import orjson
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from strongroom.errors import Unavailable
from strongroom.keyserver.store.before import Before
from strongroom.keyserver.store.core import CLOCK_TOLERANCE, Core, Transaction
from strongroom.keyserver.store.direct import Direct, Unexpected
from strongroom.keyserver.store.records import Grant, ReleaseOutcome, ReleaseWrite, lease_on_record
from strongroom.keyserver.store.tables import challenges, leases, micros, nodes
from strongroom.keyserver.store.writer import Coming, Writer

__all__ = ["EndWrite", "ReleaseBook", "RenewWrite"]

_KEEP_CHALLENGES: Final = timedelta(hours=1)
"""After their end, so that no replica whose clock is behind takes one twice: far above its tolerance."""

_KEEP_LEASES: Final = timedelta(days=1)
"""After their end, so that who renews late is told why he cannot."""

_PURGE_EVERY: Final = timedelta(minutes=1)
_ALONE: Final = 4
"""Transactions with nothing between them after which the next is believed to find what the last has left. Where
it is wrong, it is done again: replicas that take turns must not be so twice as slow."""

assert _KEEP_CHALLENGES > 10 * CLOCK_TOLERANCE


@dataclass(frozen=True, slots=True)
class RenewWrite:
    """Leases that shall last longer: id → new end; decided at ``revision``."""

    revision: int
    leases: Mapping[str, datetime]
    details: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EndWrite:
    """Leases that are given back."""

    leases: Sequence[str]


class ReleaseBook(Core):
    """The part of the store that writes releases."""

    def _prepare(self) -> None:
        self._writer = Writer(self._commit)
        self._purged: datetime | None = None
        # What there was after the last transaction, and how many found what the one before them had left.
        self._written: Before | None = None
        self._alone = 0
        super()._prepare()

    def close(self) -> None:
        """Write what waits, then close."""
        self._writer.close()
        super().close()

    def commit_release(
        self, write: ReleaseWrite, coming: Coming | None = None
    ) -> Future[ReleaseOutcome]:
        """Make a decision a fact. When the future is done, all of it is on the disk: the challenge is
        used, also where everything is refused; leases and audit record are written.

        Exceptions of the future: Unavailable, where the database does not answer, or where the clock
        of this server was set back; UsageError, where the write cannot be recorded.

        Args:
            write: the decision.
            coming: what :meth:`release_coming` has given, once.

        Raises:
            Unavailable: the store is closed.
        """
        return self._writer.submit(write, coming)

    def release_coming(self) -> AbstractContextManager[Coming]:
        """While a release is being decided: others can be written with it."""
        return self._writer.coming()

    def end_leases(self, ids: Sequence[str], now: datetime | None = None) -> None:
        """Give leases back; unknown ones are passed over.

        Args:
            ids: of leases.
            now: not looked at: the store has a clock.

        Raises:
            Unavailable: the database does not answer.
        """
        self._writer.submit(EndWrite(tuple(ids))).result()

    def _commit(self, writes: Sequence[Any]) -> list[Any]:
        try:
            believed = self._written
            # What this process has itself written over since is not believed.
            if self._alone >= _ALONE and believed is not None and believed.last[0] == self._seen:
                with suppress(Unexpected):
                    return self._write(writes, believed)
            return self._write(writes)
        except Unavailable:
            # The next one reads: the clock that is behind the records may be accepted meanwhile, which whoever
            # only believes would never learn.
            self._alone = 0
            raise

    def _write(self, writes: Sequence[Any], expected: Before | None = None) -> list[Any]:
        with self._transaction(self._database.direct(), expected) as transaction:
            self._check_clock(transaction.log.latest, transaction.now)
            outcomes: list[Any] = [None] * len(writes)
            releases = []
            for index, write in enumerate(writes):
                if isinstance(write, ReleaseWrite):
                    releases.append((index, write))
                elif isinstance(write, RenewWrite):
                    outcomes[index] = _renew(transaction, write)
                else:
                    _end(transaction, write)
            if releases:
                found = _release(transaction, [write for _, write in releases])
                for (index, _), outcome in zip(releases, found, strict=True):
                    outcomes[index] = outcome
            if self._purged is None or transaction.now - self._purged > _PURGE_EVERY:
                self._purged = transaction.now
                _purge(transaction)
        if not self._database.sqlite:
            before = transaction.before
            self._alone = self._alone + 1 if before == self._written else 0
            self._written = replace(before, last=transaction.log.last)
        return outcomes


# Statements are made once: making them takes longer than running them.


@cache
def _insert(is_sqlite: bool, table: Any) -> Any:
    # The same words in both; SQLAlchemy has them per database.
    return (sqlite if is_sqlite else postgresql).insert(table)


@cache
def _use_challenges(is_sqlite: bool) -> Any:
    query = _insert(is_sqlite, challenges)
    return query.on_conflict_do_nothing().returning(challenges.c.challenge)


@cache
def _insert_leases(is_sqlite: bool) -> Any:
    query = _insert(is_sqlite, leases)
    keyed = ("name", "version", "platform")
    others = {
        column.name: query.excluded[column.name] for column in leases.c if column.name not in keyed
    }
    return query.on_conflict_do_update(index_elements=keyed, set_=others)


@cache
def _insert_nodes(is_sqlite: bool) -> Any:
    query = _insert(is_sqlite, nodes)
    return query.on_conflict_do_update(
        index_elements=["platform"],
        set_={
            "last_seen": query.excluded.last_seen,
            "first_seen": func.coalesce(nodes.c.first_seen, query.excluded.first_seen),
        },
    )


_ONLY_CHALLENGES: Final = insert(challenges)
_LIVE: Final = leases.c.ended.is_(None) & (leases.c.not_after > bindparam("now"))
_OF_KEY: Final = leases.c.name == bindparam("key")
_COUNT_HOLDERS: Final = (
    select(leases.c.name, func.count(leases.c.platform.distinct()))
    .where(_OF_KEY, _LIVE)
    .group_by(leases.c.name)
)
_HOLDS: Final = select(leases.c.name, leases.c.platform).where(
    _OF_KEY, _LIVE, leases.c.platform == bindparam("holder")
)
_OF_ID: Final = leases.c.id == bindparam("lease")
_FIND_LIVE: Final = select(leases.c.id, leases.c.platform).where(_OF_ID, _LIVE)
_LENGTHEN: Final = update(leases).where(_OF_ID).values(not_after=bindparam("end"))
_FIND_OPEN: Final = select(leases.c.id, leases.c.platform).where(_OF_ID, leases.c.ended.is_(None))
_END: Final = update(leases).where(_OF_ID).values(ended="attest-again")
_FORGET_CHALLENGES: Final = delete(challenges).where(challenges.c.expires < bindparam("before"))
_FORGET_LEASES: Final = delete(leases).where(leases.c.not_after < bindparam("before"))


def _release(transaction: Transaction[Direct], writes: Sequence[ReleaseWrite]) -> list[ReleaseOutcome]:
    now = transaction.now
    outcomes: list[ReleaseOutcome | None] = [None] * len(writes)
    first: dict[bytes, int] = {}
    for index, write in enumerate(writes):
        if write.revision != transaction.revision:
            outcomes[index] = ReleaseOutcome(stale=True)
        elif write.challenge_expires > now:
            first.setdefault(write.challenge, index)
    fresh = _use(transaction, {challenge: writes[index] for challenge, index in first.items()})
    accepted = []
    for index, write in enumerate(writes):
        if outcomes[index] is not None:
            continue
        if write.challenge in fresh and first.get(write.challenge) == index:
            accepted.append((index, write))
        else:
            outcomes[index] = ReleaseOutcome(challenge_used=True)
            details = {"challenge": "used", "source": write.audit.get("source")}
            transaction.log.append("release.replayed", {"platform": write.platform}, details)
    refused = _over_the_limit(transaction, [write for _, write in accepted])
    granted: dict[tuple[str, int, str], Grant] = {}
    for index, write in accepted:
        out = {one.lease_id: "holders" for one in write.grants if one.lease_id in refused}
        outcomes[index] = ReleaseOutcome(refused=out)
        for grant in write.grants:
            if grant.lease_id not in refused:
                granted[grant.name, grant.version, _holder(write, grant)] = grant
        transaction.log.append("release", {"platform": write.platform}, _details(write.audit, out))
    _write_leases(transaction, granted)
    return [outcome for outcome in outcomes if outcome is not None]


def _use(transaction: Transaction[Direct], wanted: Mapping[bytes, ReleaseWrite]) -> set[bytes]:
    """Use challenges: those that nobody has used before."""
    if not wanted:
        return set()
    rows = [
        {"challenge": challenge, "expires": micros(write.challenge_expires)}
        for challenge, write in wanted.items()
    ]
    connection = transaction.connection
    if connection.expecting:
        # Two rows of one challenge are as unexpected as anything.
        connection.execute(_ONLY_CHALLENGES, rows)
        return set(wanted)
    return {bytes(one) for (one,) in connection.execute(_use_challenges(connection.is_sqlite), rows)}


def _holder(write: ReleaseWrite, grant: Grant) -> str:
    return grant.holder or write.platform


def _over_the_limit(transaction: Transaction[Direct], writes: Sequence[ReleaseWrite]) -> set[str]:
    """Leases that would have more machines hold a key than its policy says."""
    names = {grant.name for write in writes for grant in write.grants if grant.max_holders is not None}
    if not names:
        return set()
    now = micros(transaction.now)
    execute = transaction.connection.execute
    counts: dict[str, int] = dict(
        execute(_COUNT_HOLDERS, [{"key": name, "now": now} for name in sorted(names)])
    )
    asking = {(one.name, _holder(write, one)) for write in writes for one in write.grants}
    rows = [
        {"key": name, "holder": platform, "now": now}
        for name, platform in sorted(asking)
        if name in names
    ]
    holders = set(execute(_HOLDS, rows))
    refused = set()
    for write in writes:
        for grant in write.grants:
            one = (grant.name, _holder(write, grant))
            if grant.name not in names or one in holders:
                continue
            if grant.max_holders is not None and counts.get(grant.name, 0) >= grant.max_holders:
                refused.add(grant.lease_id)
                continue
            holders.add(one)
            counts[grant.name] = counts.get(grant.name, 0) + 1
    return refused


def _details(audit: Mapping[str, Any], refused: Mapping[str, str]) -> dict[str, Any]:
    """The details of a record, as they are after all."""
    details = dict(audit)
    if isinstance(details.get("keys"), Sequence):
        details["keys"] = [
            {name: value for name, value in one.items() if name not in ("lease", "released")}
            | {"code": refused[one["lease"]]}
            if one.get("lease") in refused
            else one | ({"lease": lease_on_record(one["lease"])} if "lease" in one else {})
            for one in details["keys"]
        ]
    return details


def _write_leases(
    transaction: Transaction[Direct], granted: Mapping[tuple[str, int, str], Grant]
) -> None:
    if not granted:
        return
    now = micros(transaction.now)
    rows = [
        {
            "name": grant.name,
            "version": grant.version,
            "platform": platform,
            "id": grant.lease_id,
            "attested": now,
            "not_after": micros(grant.not_after),
            "ended": None,
            "policy_id": grant.policy_id,
            "policy_version": grant.policy_version,
            "claims": _text(grant.claims),
        }
        for (_, _, platform), grant in granted.items()
    ]
    transaction.connection.execute(_insert_leases(transaction.connection.is_sqlite), rows)
    _seen(transaction, {platform for _, _, platform in granted})


def _text(claims: Sequence[Mapping[str, Any]]) -> str:
    try:
        return orjson.dumps(claims).decode()
    except TypeError:
        # Tokens may have numbers of any size.
        return json.dumps(list(claims), separators=(",", ":"))


def _seen(transaction: Transaction[Direct], platforms: set[str]) -> None:
    now = micros(transaction.now)
    rows = [
        {"platform": one, "evicted": False, "first_seen": now, "last_seen": now}
        for one in sorted(platforms)
    ]
    transaction.connection.execute(_insert_nodes(transaction.connection.is_sqlite), rows)


def _renew(transaction: Transaction[Direct], write: RenewWrite) -> bool:
    """Whether it was written: not where something has changed since it was decided."""
    if write.revision != transaction.revision:
        return False
    now = micros(transaction.now)
    execute = transaction.connection.execute
    live = dict(execute(_FIND_LIVE, [{"lease": id, "now": now} for id in write.leases]))
    if set(live) != set(write.leases):
        return False
    execute(_LENGTHEN, [{"lease": id, "end": micros(end)} for id, end in write.leases.items()])
    if live:
        _seen(transaction, set(live.values()))
    transaction.log.append(
        "lease.renewed", {"platforms": sorted(set(live.values()))}, {"leases": list(write.details)}
    )
    return True


def _end(transaction: Transaction[Direct], write: EndWrite) -> None:
    execute = transaction.connection.execute
    found = execute(_FIND_OPEN, [{"lease": id} for id in dict.fromkeys(write.leases)])
    if found:
        execute(_END, [{"lease": id} for id, _ in found])
        transaction.log.append(
            "lease.ended",
            {"platforms": sorted({platform for _, platform in found})},
            {"leases": sorted(lease_on_record(id) for id, _ in found)},
        )


def _purge(transaction: Transaction[Direct]) -> None:
    execute, now = transaction.connection.execute, transaction.now
    execute(_FORGET_CHALLENGES, [{"before": micros(now - _KEEP_CHALLENGES)}])
    execute(_FORGET_LEASES, [{"before": micros(now - _KEEP_LEASES)}])
