"""From verified claims to leases on record: the one order of steps that all doors of the server share.

A snapshot of the database, revocation lists that are newer than it, a judgement, the transaction that makes
it a fact, and only then an answer. Nothing that a decision depends on stays in this process: the transaction
checks that the snapshot is still true. A verdict has a lease when it is written, and after no other outcome.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from strongroom.attest.evidence import Claims, digest_of
from strongroom.errors import EvidenceError, NotFound, Unavailable
from strongroom.keyserver.challenges import used_challenge
from strongroom.keyserver.store import Grant, KeyRecord, ReleaseOutcome, ReleaseWrite, Snapshot, Store
from strongroom.release.answer import Lease
from strongroom.release.decision import Asked, Decision, Presented, decide
from strongroom.release.lease import lease_end, renewal_time
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

if TYPE_CHECKING:
    from strongroom.keyserver.metrics import Metrics

__all__ = ["Case", "Decider", "Judge", "Verdict"]

_ATTEMPTS: Final = 5
"""Decisions taken anew because an administrator changed something meanwhile."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """What a door has found out of who asks.

    Attributes:
        now: when he asked, with a time zone.
        challenge: used up by the decision, whatever it is.
        challenge_expires: when it does.
        claims: of the evidence, verified; none where ``problem`` says why.
        problem: with the evidence.
        identities: what else is known of him.
        expected_primary: kind → what primary evidence of it must be bound to.
        expected_secondary: what secondary evidence must be bound to.
        recipient: names who has shown no name.
        said: members of the audit record.
    """

    now: datetime
    challenge: bytes
    challenge_expires: datetime
    claims: Sequence[Claims]
    problem: EvidenceError | None
    expected_primary: Mapping[str, bytes]
    expected_secondary: bytes
    recipient: str
    said: Mapping[str, Any]
    identities: Sequence[Claims] = ()


@dataclass(slots=True)
class Verdict:
    """On one key.

    Attributes:
        said: how the record names what was asked for.
        code: why it is refused; empty where it is released.
        record: of the key.
        policy: that is about it.
        decision: of that policy.
        shadows: decisions that are recorded only.
        lease: of what is released, and of nothing else.
    """

    said: Mapping[str, Any]
    code: str
    policy: Policy | None = None
    record: KeyRecord | None = None
    decision: Decision | None = None
    shadows: Mapping[str, Decision] = field(default_factory=dict)
    lease: Lease | None = None


Judge = Callable[[Snapshot, Presented], Awaitable[Sequence[Verdict]]]
"""What a door makes of a case, without leases."""


class Decider:
    """Decides for one door.

    Args:
        store: keys, policies, leases, audit.
        allow_test_roots: whether evidence under a root for tests may be accepted at all.
        metrics: counts outcomes.
    """

    def __init__(self, store: Store, *, allow_test_roots: bool, metrics: Metrics | None) -> None:
        self._store = store
        self._allow_test_roots = allow_test_roots
        self._metrics = metrics
        self._snapshot: Snapshot | None = None
        self._records: dict[KeyName, KeyRecord] = {}

    async def decide(self, case: Case, judge: Judge, coming: int) -> Sequence[Verdict]:
        """Verdicts that are facts: on the disk, with the leases of those that are released.

        Args:
            case: who asks.
            judge: asked again where an administrator has changed something meanwhile.
            coming: what :meth:`.Store.release_coming` has given.

        Raises:
            ReleaseDenied: the challenge was used before, or has expired before the decision was written.
            Unavailable: the database does not answer, or policies change faster than they are read.
        """
        for _ in range(_ATTEMPTS):
            snapshot = await self._current()
            if newer := _newer_crls(case.claims, snapshot.newest_crls):
                await asyncio.to_thread(self._store.crls_seen, newer)
                self._snapshot = None
                continue
            presented = Presented(
                now=case.now,
                claims=(*case.claims, *case.identities),
                expected_primary=case.expected_primary,
                expected_secondary=case.expected_secondary,
                allow_test_roots=self._allow_test_roots,
                evicted=snapshot.evicted,
                newest_crls=snapshot.newest_crls,
            )
            verdicts = await judge(snapshot, presented)
            proved = case.problem is None and bool(presented.claims)
            for one in verdicts:
                if not proved:
                    one.code = "evidence"
                elif not one.code:
                    one.lease = _lease(one, presented)
            outcome = await self._commit(_write(case, snapshot, presented, verdicts), coming)
            if outcome.stale:
                self._snapshot = None
                continue
            if outcome.challenge_used:
                self.count("challenge", case.claims, max(1, len(verdicts)))
                raise used_challenge()
            for one in verdicts:
                if one.lease is not None and one.lease.id in outcome.refused:
                    one.code, one.lease = outcome.refused[one.lease.id], None
            return verdicts
        raise Unavailable("The policies change faster than a decision is taken.", hint="Ask again.")

    async def verdict(
        self,
        said: Mapping[str, Any],
        policy: Policy,
        key: KeyName,
        bundle: bytes | None,
        snapshot: Snapshot,
        presented: Presented,
    ) -> Verdict:
        """What a policy makes of a key for who presents himself.

        Args:
            said: how the record names it.
            policy: that is about it.
            key: without a version, the current one.
            bundle: of the sealed model that he has; None takes the one that is registered.
            snapshot: of which the policy is.
            presented: who asks.
        """
        record = await self._record(key)
        current = await self._record(KeyName(key.name))
        if record is None or current is None:
            return Verdict(said, "unknown-key", policy)
        asked = Asked(
            key=KeyName(record.name, record.version),
            bundle=record.bundle if bundle is None else bundle,
            current_version=current.version,
            current_bundle=current.bundle,
            state=record.state,
            registered=record.bundle,
        )
        shadows = {
            one.id: decide(one, asked, presented) for one in snapshot.shadows if one.covers(key.name)
        }
        decision = decide(policy, asked, presented)
        return Verdict(said, decision.code, policy, record, decision, shadows)

    async def with_keys(self, verdicts: Sequence[Verdict], make: Callable[[], T]) -> T:
        """What ``make`` makes of the keys that are released, in a thread where they are not at hand."""
        granted = [one.record for one in verdicts if one.lease is not None and one.record is not None]
        if all(map(self._store.at_hand, granted)):
            return make()
        return await asyncio.to_thread(make)

    def count(self, code: str, claims: Sequence[Claims], count: int = 1) -> None:
        """Count an outcome: the code of a refusal, or none.

        Args:
            code: empty for what is released.
            claims: of the evidence.
            count: of keys.
        """
        if self._metrics is not None:
            self._metrics.outcome(code or "released", claims[0].kind if claims else "none", count)

    async def _commit(self, write: ReleaseWrite, coming: int) -> ReleaseOutcome:
        if self._metrics is None:
            return await asyncio.wrap_future(self._store.commit_release(write, coming))
        started = time.perf_counter()
        self._metrics.commit_waits()
        try:
            return await asyncio.wrap_future(self._store.commit_release(write, coming))
        finally:
            self._metrics.committed(time.perf_counter() - started)

    async def _current(self) -> Snapshot:
        """A snapshot, perhaps an old one: the transaction says if so."""
        if self._snapshot is None:
            self._snapshot = await asyncio.to_thread(self._store.snapshot)
            self._records = {}
        return self._snapshot

    async def _record(self, key: KeyName) -> KeyRecord | None:
        # Of the snapshot of now: another one has other records.
        records = self._records
        if key not in records:
            try:
                records[key] = await asyncio.to_thread(self._store.key, key.name, key.version)
            except NotFound:
                return None
        return records[key]


def _lease(verdict: Verdict, presented: Presented) -> Lease:
    if verdict.policy is None or verdict.decision is None or not verdict.decision.allowed:
        raise AssertionError("a release that nobody has decided")
    end = lease_end(verdict.policy, presented.claims, presented.now)
    return Lease(secrets.token_urlsafe(16), end, renewal_time(presented.now, end))


def _write(
    case: Case, snapshot: Snapshot, presented: Presented, verdicts: Sequence[Verdict]
) -> ReleaseWrite:
    names = [one.decision.holder for one in verdicts if one.lease is not None and one.decision]
    # Where nothing is granted, the record names whatever was shown.
    names = names or [one.platform for one in presented.claims]
    platform = next(filter(None, names), f"recipient:{case.recipient}")
    said = {id(one): one.to_json() for one in presented.claims}
    proved = [said[id(one)] for one in presented.proved()]
    problem = None if case.problem is None else case.problem.message
    if problem is None and not verdicts:
        problem = "No policy has anything for what was asked."
    return ReleaseWrite(
        challenge=case.challenge,
        challenge_expires=case.challenge_expires,
        revision=snapshot.revision,
        platform=platform,
        grants=[
            Grant(
                lease_id=one.lease.id,
                name=one.record.name,
                version=one.record.version,
                not_after=one.lease.not_after,
                max_holders=one.policy.lease.max_holders,
                policy_id=one.policy.id,
                policy_version=one.policy.version,
                claims=proved,
                holder=None if one.decision is None else one.decision.holder,
            )
            for one in verdicts
            if one.lease is not None and one.record is not None and one.policy is not None
        ],
        audit={
            **case.said,
            "recipient": case.recipient,
            "evidence": [{"digest": digest_of(one).hex(), **one} for one in said.values()],
            "problem": problem,
            "keys": [_on_record(one, platform) for one in verdicts],
        },
    )


def _on_record(verdict: Verdict, platform: str) -> dict[str, Any]:
    said: dict[str, Any] = {**verdict.said, "code": verdict.code or "released"}
    if verdict.policy is not None:
        said |= {"policy": verdict.policy.id, "policy_version": verdict.policy.version}
    if verdict.lease is not None and verdict.record is not None:
        said |= {"released": verdict.record.version, "lease": verdict.lease.id}
        if verdict.decision is not None and verdict.decision.holder not in (None, platform):
            said["holder"] = verdict.decision.holder
    if verdict.decision is not None and not verdict.decision.allowed:
        said["reasons"] = _reasons(verdict.decision)
    if verdict.shadows:
        said["shadow"] = {
            name: {"allowed": one.allowed, "code": one.code, "reasons": _reasons(one)}
            for name, one in verdict.shadows.items()
        }
    return said


def _reasons(decision: Decision) -> list[dict[str, Any]]:
    """What spoke against it."""
    return [
        {"path": one.path, "found": one.found, "expected": one.expected, "text": one.text}
        for one in decision.findings
        if not one.ok
    ]


def _newer_crls(claims: Sequence[Claims], newest: Mapping[str, int]) -> dict[str, int]:
    """The revocation lists among what vouches for the evidence that are newer than any seen before."""
    return {
        issuer: number
        for one in claims
        for issuer, number in one.crls.items()
        if number > newest.get(issuer, -1)
    }
