"""The core of the key server: a request with evidence in, a signed answer out, all of it on record.

Nothing that a decision depends on stays in this process: it decides by a snapshot of the database, and
the transaction that grants the leases checks that the snapshot is still true.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.attest.evidence import Claims
from strongroom.errors import EvidenceError, NotFound, Unavailable, UsageError
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.keyserver.challenges import Challenges, used_challenge
from strongroom.keyserver.store import Grant, KeyRecord, ReleaseOutcome, ReleaseWrite, Snapshot, Store
from strongroom.keyserver.verification import VerificationPool
from strongroom.release.answer import Lease, refuse_key, seal_key, sign, sign_answer
from strongroom.release.approvals import policy_for
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.decision import Asked, Decision, Presented, decide
from strongroom.release.lease import lease_end, renewal_time
from strongroom.release.limits import MAX_KEYS
from strongroom.release.messages import Challenge, ReleaseRequest, time_text
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

if TYPE_CHECKING:
    from strongroom.keyserver.metrics import Metrics

__all__ = ["ReleaseService", "Verdict"]

_ATTEMPTS: Final = 5
"""Decisions taken anew because an administrator changed something meanwhile."""


@dataclass(slots=True)
class Verdict:
    """On one key of a request."""

    wanted: WantedKey
    code: str
    record: KeyRecord | None = None
    policy: Policy | None = None
    decision: Decision | None = None
    shadows: Mapping[str, Decision] = field(default_factory=dict)
    lease: Lease | None = None


def _reasons(decision: Decision) -> list[dict[str, Any]]:
    """What spoke against it, for the record."""
    return [
        {"path": one.path, "found": one.found, "expected": one.expected, "text": one.text}
        for one in decision.findings
        if not one.ok
    ]


class ReleaseService:
    """Answers to challenges, requests and renewals.

    Args:
        store: keys, policies, leases, audit.
        server_id: whom evidence must name.
        pool: verifies evidence; it has the roots.
        clock: gives the time, with a time zone.
        allow_test_roots: whether evidence under a root for tests may be accepted at all.
        metrics: counts outcomes.
    """

    def __init__(
        self,
        store: Store,
        *,
        server_id: str,
        pool: VerificationPool,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        allow_test_roots: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._server_id = server_id
        self._pool = pool
        self._clock = clock
        self._allow_test_roots = allow_test_roots
        self._metrics = metrics
        self._challenges = Challenges(store.secret("challenge"), server_id)
        seed = store.secret("signing")
        self._signing = Ed25519PrivateKey.from_private_bytes(seed.buffer)
        self._snapshot: Snapshot | None = None
        self._records: dict[KeyName, KeyRecord] = {}

    def challenge(self) -> Challenge:
        """A challenge for one request."""
        return self._challenges.make(self._clock())

    async def release(
        self, request: ReleaseRequest, identities: Sequence[Claims] = (), source: str = ""
    ) -> dict[str, Any]:
        """The signed answer: every key sealed to the attested key, or refused with a code.

        Args:
            request: as it came.
            identities: what the transport knows of the client: a certificate, a token.
            source: where from, for the record.

        Raises:
            ReleaseDenied: the challenge is not good.
            Unavailable: the database, a worker or an endorsement source does not answer.
        """
        with self._store.release_coming() as coming:
            return await self._release(request, identities, source, coming)

    async def _release(
        self, request: ReleaseRequest, identities: Sequence[Claims], source: str, coming: int
    ) -> dict[str, Any]:
        now = self._clock()
        expires = self._challenges.check(request.challenge, now)
        binding = request.binding(self._server_id)
        claims: list[Claims] = []
        problem: EvidenceError | None = None
        try:
            claims, seconds = await self._pool.verify(request.evidence, now)
            if self._metrics is not None and claims:
                self._metrics.verified(claims[0].kind, seconds)
        except EvidenceError as error:
            problem = error
        secondary = request.evidence[1:]
        expected = {one.kind: binding.for_primary(one.kind, secondary) for one in claims[:1]}
        # Where there is none, nothing is bound to nothing.
        expected_secondary = binding.for_secondary() if secondary else b""
        for _ in range(_ATTEMPTS):
            snapshot = await self._current()
            if newer := _newer_crls(claims, snapshot.newest_crls):
                await asyncio.to_thread(self._store.crls_seen, newer)
                self._snapshot = None
                continue
            presented = Presented(
                now=now,
                claims=(*claims, *identities),
                expected_primary=expected,
                expected_secondary=expected_secondary,
                allow_test_roots=self._allow_test_roots,
                evicted=snapshot.evicted,
                newest_crls=snapshot.newest_crls,
            )
            verdicts = [
                await self._judge(wanted, snapshot, presented, problem) for wanted in request.keys
            ]
            write = self._write(request, expires, snapshot, verdicts, presented, problem, source)
            outcome = await self._commit(write, coming)
            if outcome.stale:
                self._snapshot = None
                continue
            if outcome.challenge_used:
                self._count("challenge", claims, len(verdicts))
                raise used_challenge()
            for verdict in verdicts:
                if verdict.lease is not None and verdict.lease.id in outcome.refused:
                    verdict.code, verdict.lease = outcome.refused[verdict.lease.id], None
                self._count(verdict.code or "released", claims, 1)
            granted = [
                one.record for one in verdicts if one.lease is not None and one.record is not None
            ]
            if all(map(self._store.at_hand, granted)):
                return self._answer(binding, verdicts, now)
            return await asyncio.to_thread(self._answer, binding, verdicts, now)
        raise Unavailable("The policies change faster than a decision is taken.", hint="Ask again.")

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
        records = self._records
        if key not in records:
            try:
                records[key] = await asyncio.to_thread(self._store.key, key.name, key.version)
            except NotFound:
                return None
        return records[key]

    async def _judge(
        self,
        wanted: WantedKey,
        snapshot: Snapshot,
        presented: Presented,
        problem: EvidenceError | None,
    ) -> Verdict:
        if problem is not None or not presented.claims:
            # The same for every name: a stranger does not learn which keys there are.
            return Verdict(wanted, "evidence")
        policy = policy_for(snapshot.policies, wanted.key.name)
        record = await self._record(wanted.key)
        current = await self._record(KeyName(wanted.key.name))
        if policy is None or record is None or current is None:
            return Verdict(wanted, "no-policy" if policy is None else "unknown-key", record, policy)
        asked = Asked(
            key=KeyName(record.name, record.version),
            bundle=wanted.bundle,
            current_version=current.version,
            current_bundle=current.bundle,
            state=record.state,
            registered=record.bundle,
        )
        shadows = {
            one.id: decide(one, asked, presented)
            for one in snapshot.shadows
            if one.covers(wanted.key.name)
        }
        decision = decide(policy, asked, presented)
        if not decision.allowed:
            return Verdict(wanted, decision.code, record, policy, decision, shadows)
        end = lease_end(policy, presented.claims, presented.now)
        lease = Lease(secrets.token_urlsafe(16), end, renewal_time(presented.now, end))
        return Verdict(wanted, "", record, policy, decision, shadows, lease)

    def _write(
        self,
        request: ReleaseRequest,
        expires: datetime,
        snapshot: Snapshot,
        verdicts: Sequence[Verdict],
        presented: Presented,
        problem: EvidenceError | None,
        source: str,
    ) -> ReleaseWrite:
        recipient = hashlib.sha256(request.public_key).hexdigest()[:32]
        names = [one.decision.holder for one in verdicts if one.lease is not None and one.decision]
        # Where nothing is granted, the record names whatever was shown.
        names = names or [one.platform for one in presented.claims]
        platform = next(filter(None, names), f"recipient:{recipient}")
        said = [one.to_json() for one in presented.claims]
        proved = [one.to_json() for one in presented.proved()]
        grants = [
            Grant(
                lease_id=one.lease.id,
                name=one.record.name,
                version=one.record.version,
                not_after=one.lease.not_after,
                max_holders=one.policy.lease.max_holders,
                policy_id=one.policy.id,
                policy_version=one.policy.version,
                claims=proved,
            )
            for one in verdicts
            if one.lease is not None and one.record is not None and one.policy is not None
        ]
        return ReleaseWrite(
            challenge=request.challenge,
            challenge_expires=expires,
            revision=snapshot.revision,
            platform=platform,
            grants=grants,
            audit={
                "source": source,
                "recipient": recipient,
                "evidence": [
                    {"digest": one.digest.hex(), **members}
                    for one, members in zip(presented.claims, said, strict=True)
                ],
                "problem": None if problem is None else problem.message,
                "keys": [_on_record(one) for one in verdicts],
            },
        )

    def _answer(self, binding: Binding, verdicts: Sequence[Verdict], now: datetime) -> dict[str, Any]:
        results = []
        for one in verdicts:
            if one.lease is None or one.record is None:
                results.append(refuse_key(one.wanted, one.code))
                continue
            seal = partial(seal_key, binding, one.wanted, one.record.version, one.lease)
            results.append(self._store.use_dek(one.record, seal))
        return sign_answer(binding, results, now, self._signing)

    def _count(self, code: str, claims: Sequence[Claims], count: int) -> None:
        if self._metrics is not None:
            self._metrics.outcome(code, claims[0].kind if claims else "none", count)

    async def renew(self, body: object) -> dict[str, Any]:
        """More time for leases, if what was claimed when they were granted is acceptable still.

        Args:
            body: ``{nonce, leases}``: 32 bytes of the client's, and ids.

        Raises:
            UsageError: the body is something else.
            Unavailable: the database does not answer.
        """
        nonce, ids = _nonce(body), _lease_ids(body)
        now = self._clock()
        results = await asyncio.to_thread(self._store.renew, ids, now, self._allow_test_roots)
        payload = {
            "v": 1,
            "server_id": self._server_id,
            "nonce": nonce,
            "time": time_text(now),
            "results": results,
        }
        return sign(payload, self._signing)

    async def end(self, body: object) -> dict[str, Any]:
        """Give leases back before their end.

        Raises:
            UsageError: the body is something else.
            Unavailable: the database does not answer.
        """
        await asyncio.to_thread(self._store.end_leases, _lease_ids(body), self._clock())
        return {}

    def signed_head(self) -> dict[str, Any]:
        """The head of the audit chain, to be kept where this server cannot change it."""
        sequence, digest = self._store.audit_head()
        return sign(
            {
                "v": 1,
                "server_id": self._server_id,
                "time": time_text(self._clock()),
                "sequence": sequence,
                "hash": digest,
            },
            self._signing,
        )


def _newer_crls(claims: Sequence[Claims], newest: Mapping[str, int]) -> dict[str, int]:
    """The revocation lists among what vouches for the evidence that are newer than any seen before."""
    return {
        issuer: number
        for one in claims
        for issuer, number in one.crls.items()
        if number > newest.get(issuer, -1)
    }


def _on_record(verdict: Verdict) -> dict[str, Any]:
    said: dict[str, Any] = {**verdict.wanted.to_json(), "code": verdict.code or "released"}
    if verdict.policy is not None:
        said |= {"policy": verdict.policy.id, "policy_version": verdict.policy.version}
    if verdict.lease is not None and verdict.record is not None:
        said |= {"released": verdict.record.version, "lease": verdict.lease.id}
    if verdict.decision is not None and not verdict.decision.allowed:
        said["reasons"] = _reasons(verdict.decision)
    if verdict.shadows:
        said["shadow"] = {
            name: {"allowed": one.allowed, "code": one.code, "reasons": _reasons(one)}
            for name, one in verdict.shadows.items()
        }
    return said


def _nonce(body: object) -> str:
    nonce = body.get("nonce") if isinstance(body, dict) else None
    try:
        if len(unb64url_text(nonce)) == 32:
            return b64url(unb64url_text(nonce))
    except ValueError:
        pass
    raise UsageError("nonce is not 32 bytes in base64url.")


def _lease_ids(body: object) -> list[str]:
    leases = body.get("leases") if isinstance(body, dict) else None
    if (
        not isinstance(leases, list)
        or not 0 < len(leases) <= MAX_KEYS
        or not all(isinstance(one, str) and len(one) <= 64 for one in leases)
    ):
        raise UsageError(f"leases is a list of one to {MAX_KEYS} ids.")
    return leases
