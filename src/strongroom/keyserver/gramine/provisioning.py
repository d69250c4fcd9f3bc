"""From the certificate of a client of Gramine to a key, or to a refusal; both are on record.

The decision is that of every other release: policies in force, leases, holders, evictions, revocations, by a
snapshot that the transaction checks. What differs is that the client names no key: the policies do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from strongroom.attest.evidence import Claims, Evidence
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import EvidenceError, NotAuthentic, ReleaseDenied, Unavailable
from strongroom.format.encoding import b64url
from strongroom.keyserver.deciding import Case, Decider, Verdict
from strongroom.keyserver.gramine.certificate import read_certificate
from strongroom.keyserver.gramine.secret import secret_for
from strongroom.keyserver.store import KeyRecord, Snapshot, Store
from strongroom.release.decision import Presented
from strongroom.release.messages import Challenge
from strongroom.release.policy import Policy
from strongroom.release.provision import Provision

if TYPE_CHECKING:
    from strongroom.keyserver.metrics import Metrics

__all__ = ["Provisioning", "Verifies"]

_NEEDED: Final = 0x01 | 0x04
_FORBIDDEN: Final = 0x10 | 0x20
"""SGX attributes: initialised, 64 bits; keys of the provisioning enclave and of launch enclaves."""


class Verifies(Protocol):
    """What of :class:`.VerificationPool` is needed here."""

    async def verify(
        self, evidence: Sequence[Evidence], now: datetime
    ) -> tuple[list[Claims], float]: ...


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
        self._metrics = metrics
        self._decider = Decider(store, allow_test_roots=allow_test_roots, metrics=metrics)

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
        challenge = self._challenge()
        case = Case(
            now=now,
            challenge=challenge.challenge,
            challenge_expires=challenge.expires,
            claims=claims,
            problem=problem,
            expected_primary={"sgx": bound},
            expected_secondary=b"",
            recipient=hashlib.sha256(certificate).hexdigest()[:32],
            said={"door": "gramine", "source": source, "name": name},
        )
        try:
            verdicts = await self._decider.decide(case, partial(self._judge, name, problem), coming)
        except ReleaseDenied:
            # Its own challenge is a minute old: the database took so long, and wrote no lease.
            raise Unavailable("The decision could not be written in time.", hint="Ask again.") from None
        granted = next((one for one in verdicts if one.lease is not None), None)
        code = "" if granted is not None else _code(verdicts, problem)
        self._decider.count(code, claims)
        if granted is None or granted.record is None:
            raise ReleaseDenied("The client of Gramine gets nothing.", code=code)
        secret = partial(self._secret, granted.said["form"], granted.record)
        return await self._decider.with_keys([granted], secret)

    def _secret(self, form: str, record: KeyRecord) -> SecretBytes:
        with self._store.dek(record) as dek:
            return secret_for(form, dek, record.bundle)

    async def _judge(
        self,
        name: str | None,
        problem: EvidenceError | None,
        snapshot: Snapshot,
        presented: Presented,
    ) -> list[Verdict]:
        if problem is not None:
            return []
        verdicts = [
            await self._verdict(policy, entry, snapshot, presented)
            for policy in snapshot.policies
            for entry in policy.gramine
            if entry.answers(name)
        ]
        allowed = [one for one in verdicts if not one.code]
        if len(allowed) > 1:
            for one in allowed:
                one.code = "ambiguous"
        return verdicts

    async def _verdict(
        self, policy: Policy, entry: Provision, snapshot: Snapshot, presented: Presented
    ) -> Verdict:
        said = {
            "name": entry.key.name,
            "version": "current" if entry.key.version is None else entry.key.version,
            "form": entry.form,
        }
        # Whoever names no key names no model either: the one that is registered for it.
        verdict = await self._decider.verdict(said, policy, entry.key, None, snapshot, presented)
        if verdict.record is not None:
            said["bundle"] = b64url(verdict.record.bundle)
        return verdict


def _check_attributes(claims: Claims) -> None:
    """What Gramine asks of its own peers, besides that nobody looks in, which every release asks.

    Raises:
        NotAuthentic: it is not an enclave for applications.
    """
    flags = int.from_bytes(bytes.fromhex(str(claims.values["attributes"]))[:8], "little")
    if flags & _NEEDED != _NEEDED or flags & _FORBIDDEN:
        raise NotAuthentic(f"The enclave has the attributes {flags:#x}: it is not one of Gramine.")


def _code(verdicts: Sequence[Verdict], problem: EvidenceError | None) -> str:
    if problem is not None:
        return "evidence"
    codes = [one.code for one in verdicts] or ["no-policy"]
    # These are about an entry that would have been given.
    return next((one for one in ("ambiguous", "holders") if one in codes), codes[0])
