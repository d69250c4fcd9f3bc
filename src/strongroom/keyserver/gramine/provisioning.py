"""From the certificate of a client of Gramine to a key, or to a refusal; both are on record.

The decision is that of every other release: policies in force, leases, holders, evictions, revocations, by a
snapshot that the transaction checks. What differs is that the client names no key: the policies do.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from strongroom.attest.evidence import Claims, Evidence
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import EvidenceError, NotAuthentic, NotFound, ReleaseDenied, Unavailable
from strongroom.format.encoding import b64url
from strongroom.keyserver.gramine.certificate import read_certificate
from strongroom.keyserver.gramine.secret import secret_for
from strongroom.keyserver.store import Grant, KeyRecord, ReleaseWrite, Snapshot, Store
from strongroom.release.answer import Lease
from strongroom.release.decision import Asked, Decision, Presented, decide
from strongroom.release.lease import lease_end, renewal_time
from strongroom.release.messages import Challenge
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy
from strongroom.release.provision import Provision

if TYPE_CHECKING:
    from strongroom.keyserver.metrics import Metrics

__all__ = ["Provisioning", "Verifies"]

_ATTEMPTS: Final = 5
"""Decisions taken anew because an administrator changed something meanwhile."""

_NEEDED: Final = 0x01 | 0x04
_FORBIDDEN: Final = 0x10 | 0x20
"""SGX attributes: initialised, 64 bits; keys of the provisioning enclave and of launch enclaves."""


class Verifies(Protocol):
    """What of :class:`.VerificationPool` is needed here."""

    async def verify(
        self, evidence: Sequence[Evidence], now: datetime
    ) -> tuple[list[Claims], float]: ...


@dataclass(slots=True)
class _Verdict:
    """On one entry of a policy that answers to the name."""

    policy: Policy
    entry: Provision
    code: str
    record: KeyRecord | None = None
    decision: Decision | None = None
    shadows: dict[str, Decision] = field(default_factory=dict)
    lease: Lease | None = None


class Provisioning:
    """Decides what clients get.

    Args:
        store: keys, policies, leases, audit.
        pool: verifies quotes.
        challenge: makes one that is used at once: it makes a decision one that is written once.
        clock: gives the time, with a time zone.
        allow_test_roots: whether evidence under a root for tests may be accepted at all.
        metrics: counts outcomes.
    """

    def __init__(
        self,
        store: Store,
        *,
        pool: Verifies,
        challenge: Callable[[], Challenge],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        allow_test_roots: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._challenge = challenge
        self._clock = clock
        self._allow_test_roots = allow_test_roots
        self._metrics = metrics
        self._snapshot: Snapshot | None = None
        self._records: dict[KeyName, KeyRecord] = {}

    async def provision(self, certificate: bytes, name: str | None, source: str) -> SecretBytes:
        """What the client gets.

        Args:
            certificate: DER, of which it has proved to have the key.
            name: of the server that it asked for.
            source: where from, for the record.

        Raises:
            ReleaseDenied: nothing; with a code, which is on record with the reasons.
            Unavailable: the database, a worker or an endorsement source does not answer.
        """
        with self._store.release_coming() as coming:
            return await self._provision(certificate, name, source, coming)

    async def _provision(
        self, certificate: bytes, name: str | None, source: str, coming: int
    ) -> SecretBytes:
        now = self._clock()
        claims: list[Claims] = []
        bound, problem = b"", None
        try:
            shown = read_certificate(certificate)
            bound = shown.bound
            claims, seconds = await self._pool.verify([shown.evidence], now)
            if self._metrics is not None:
                self._metrics.verified("sgx", seconds)
            _check_attributes(claims[0])
        except EvidenceError as error:
            claims, problem = [], error
        said = {
            "door": "gramine",
            "source": source,
            "name": name,
            "recipient": hashlib.sha256(certificate).hexdigest()[:32],
        }
        for _ in range(_ATTEMPTS):
            snapshot = await self._current()
            if newer := _newer_crls(claims, snapshot):
                await asyncio.to_thread(self._store.crls_seen, newer)
                self._snapshot = None
                continue
            presented = Presented(
                now=now,
                claims=claims,
                expected_primary={"sgx": bound},
                expected_secondary=b"",
                allow_test_roots=self._allow_test_roots,
                evicted=snapshot.evicted,
                newest_crls=snapshot.newest_crls,
            )
            verdicts = [] if problem else await self._judge(name, snapshot, presented)
            write = self._write(snapshot, verdicts, presented, problem, said)
            outcome = await asyncio.wrap_future(self._store.commit_release(write, coming))
            if outcome.stale:
                self._snapshot = None
                continue
            if outcome.challenge_used:
                # Its own challenge is a minute old: the database took so long, and wrote no lease.
                raise Unavailable("The decision could not be written in time.", hint="Ask again.")
            granted = next((one for one in verdicts if one.lease is not None), None)
            code = _code(verdicts, problem)
            if granted is not None and granted.lease is not None:
                code = outcome.refused.get(granted.lease.id, "")
            if self._metrics is not None:
                self._metrics.outcome(code or "released", "sgx" if claims else "none")
            if code or granted is None or granted.record is None:
                raise ReleaseDenied("The client of Gramine gets nothing.", code=code)
            if self._store.at_hand(granted.record):
                return self._secret(granted.entry.form, granted.record)
            return await asyncio.to_thread(self._secret, granted.entry.form, granted.record)
        raise Unavailable("The policies change faster than a decision is taken.", hint="Ask again.")

    async def _current(self) -> Snapshot:
        """A snapshot, perhaps an old one: the transaction says if so."""
        if self._snapshot is None:
            self._snapshot = await asyncio.to_thread(self._store.snapshot)
            self._records = {}
        return self._snapshot

    async def _record(self, key: KeyName) -> KeyRecord:
        records = self._records
        if key not in records:
            records[key] = await asyncio.to_thread(self._store.key, key.name, key.version)
        return records[key]

    def _secret(self, form: str, record: KeyRecord) -> SecretBytes:
        with self._store.dek(record) as dek:
            return secret_for(form, dek, record.bundle)

    async def _judge(
        self, name: str | None, snapshot: Snapshot, presented: Presented
    ) -> list[_Verdict]:
        verdicts = [
            await self._verdict(policy, entry, snapshot, presented)
            for policy in snapshot.policies
            for entry in policy.gramine
            if entry.answers(name)
        ]
        allowed = [one for one in verdicts if not one.code]
        for one in allowed:
            if len(allowed) > 1:
                one.code = "ambiguous"
                continue
            end = lease_end(one.policy, presented.claims, presented.now)
            one.lease = Lease(secrets.token_urlsafe(16), end, renewal_time(presented.now, end))
        return verdicts

    async def _verdict(
        self, policy: Policy, entry: Provision, snapshot: Snapshot, presented: Presented
    ) -> _Verdict:
        try:
            record = await self._record(entry.key)
            current = await self._record(KeyName(entry.key.name))
        except NotFound:
            return _Verdict(policy, entry, "unknown-key")
        asked = Asked(
            key=replace(entry.key, version=record.version),
            # Whoever names no key names no model either: the one that is registered for it.
            bundle=record.bundle,
            current_version=current.version,
            current_bundle=current.bundle,
            state=record.state,
            registered=record.bundle,
        )
        shadows = {
            one.id: decide(one, asked, presented)
            for one in snapshot.shadows
            if one.covers(entry.key.name)
        }
        decision = decide(policy, asked, presented)
        return _Verdict(policy, entry, decision.code, record, decision, shadows)

    def _write(
        self,
        snapshot: Snapshot,
        verdicts: Sequence[_Verdict],
        presented: Presented,
        problem: EvidenceError | None,
        said: dict[str, Any],
    ) -> ReleaseWrite:
        challenge = self._challenge()
        granted = [one for one in verdicts if one.lease is not None]
        names = [one.decision.holder for one in granted if one.decision is not None]
        names = names or [one.platform for one in presented.claims]
        why = None if problem is None else problem.message
        if problem is None and not verdicts:
            why = "No policy has anything for clients of Gramine that ask for this name."
        return ReleaseWrite(
            challenge=challenge.challenge,
            challenge_expires=challenge.expires,
            revision=snapshot.revision,
            platform=next(filter(None, names), f"recipient:{said['recipient']}"),
            grants=[
                Grant(
                    lease_id=one.lease.id,
                    name=one.record.name,
                    version=one.record.version,
                    not_after=one.lease.not_after,
                    max_holders=one.policy.lease.max_holders,
                    policy_id=one.policy.id,
                    policy_version=one.policy.version,
                    claims=[claims.to_json() for claims in presented.proved()],
                )
                for one in granted
                if one.lease is not None and one.record is not None
            ],
            audit={
                **said,
                "evidence": [{"digest": one.digest.hex(), **one.to_json()} for one in presented.claims],
                "problem": why,
                "keys": [_on_record(one) for one in verdicts],
            },
        )


def _check_attributes(claims: Claims) -> None:
    """What Gramine asks of its own peers, besides that nobody looks in, which every release asks.

    Raises:
        NotAuthentic: it is not an enclave for applications.
    """
    flags = int.from_bytes(bytes.fromhex(str(claims.values["attributes"]))[:8], "little")
    if flags & _NEEDED != _NEEDED or flags & _FORBIDDEN:
        raise NotAuthentic(f"The enclave has the attributes {flags:#x}: it is not one of Gramine.")


def _newer_crls(claims: Sequence[Claims], snapshot: Snapshot) -> dict[str, int]:
    """The revocation lists among what vouches for the quote that are newer than any seen before."""
    return {
        issuer: number
        for one in claims
        for issuer, number in one.crls.items()
        if number > snapshot.newest_crls.get(issuer, -1)
    }


def _code(verdicts: Sequence[_Verdict], problem: EvidenceError | None) -> str:
    if problem is not None:
        return "evidence"
    codes = [one.code for one in verdicts]
    return "no-policy" if not codes else "ambiguous" if "ambiguous" in codes else codes[0]


def _on_record(verdict: _Verdict) -> dict[str, Any]:
    record, key = verdict.record, verdict.entry.key
    said: dict[str, Any] = {
        "name": key.name,
        "version": "current" if key.version is None else key.version,
        "form": verdict.entry.form,
        "code": verdict.code or "released",
        "policy": verdict.policy.id,
        "policy_version": verdict.policy.version,
    }
    if record is not None:
        said["bundle"] = b64url(record.bundle)
    if verdict.lease is not None and record is not None:
        said |= {"released": record.version, "lease": verdict.lease.id}
    if verdict.decision is not None and not verdict.decision.allowed:
        said["reasons"] = _reasons(verdict.decision)
    if verdict.shadows:
        said["shadow"] = {
            name: {"allowed": one.allowed, "code": one.code, "reasons": _reasons(one)}
            for name, one in verdict.shadows.items()
        }
    return said


def _reasons(decision: Decision) -> list[dict[str, Any]]:
    return [
        {"path": one.path, "found": one.found, "expected": one.expected, "text": one.text}
        for one in decision.findings
        if not one.ok
    ]
