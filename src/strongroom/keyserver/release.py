"""The core of the key server: a request with evidence in, a signed answer out, all of it on record."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.attest.evidence import Claims
from strongroom.errors import EvidenceError, UsageError
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.keyserver.challenges import Challenges
from strongroom.keyserver.deciding import Case, Decider, Verdict
from strongroom.keyserver.store import Snapshot, Store
from strongroom.keyserver.verification import VerificationPool
from strongroom.release.answer import refuse_key, seal_key, sign, sign_answer
from strongroom.release.approvals import policy_for
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.decision import Presented
from strongroom.release.limits import MAX_KEYS
from strongroom.release.messages import Challenge, ReleaseRequest, time_text

if TYPE_CHECKING:
    from strongroom.keyserver.metrics import Metrics

__all__ = ["ReleaseService"]


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
        self._decider = Decider(store, allow_test_roots=allow_test_roots, metrics=metrics)

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
        case = Case(
            now=now,
            challenge=request.challenge,
            challenge_expires=expires,
            claims=claims,
            problem=problem,
            expected_primary={one.kind: binding.for_primary(one.kind, secondary) for one in claims[:1]},
            # Where there is none, nothing is bound to nothing.
            expected_secondary=binding.for_secondary() if secondary else b"",
            recipient=hashlib.sha256(request.public_key).hexdigest()[:32],
            said={"source": source},
            identities=identities,
        )
        judge = partial(self._judge, request.keys, problem)
        verdicts = await self._decider.decide(case, judge, coming)
        for one in verdicts:
            self._decider.count(one.code, claims)
        answer = partial(self._answer, binding, verdicts, now)
        return await self._decider.with_keys(verdicts, answer)

    async def _judge(
        self,
        keys: Sequence[WantedKey],
        problem: EvidenceError | None,
        snapshot: Snapshot,
        presented: Presented,
    ) -> list[Verdict]:
        if problem is not None or not presented.claims:
            # The same for every name: a stranger does not learn which keys there are.
            return [Verdict(one.to_json(), "evidence") for one in keys]
        verdicts = []
        for one in keys:
            policy = policy_for(snapshot.policies, one.key.name)
            verdicts.append(
                Verdict(one.to_json(), "no-policy")
                if policy is None
                else await self._decider.verdict(
                    one.to_json(), policy, one.key, one.bundle, snapshot, presented
                )
            )
        return verdicts

    def _answer(self, binding: Binding, verdicts: Sequence[Verdict], now: datetime) -> dict[str, Any]:
        results = []
        for wanted, one in zip(binding.keys, verdicts, strict=True):
            if one.lease is None or one.record is None:
                results.append(refuse_key(wanted, one.code))
                continue
            seal = partial(seal_key, binding, wanted, one.record.version, one.lease)
            results.append(self._store.use_dek(one.record, seal))
        return sign_answer(binding, results, now, self._signing)

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
