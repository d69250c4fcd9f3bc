"""Renewals: the policy of today on the claims of then."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, select

from strongroom.errors import EvidenceError, NotFound, Unavailable
from strongroom.keyserver.store.keys import KeyRegister
from strongroom.keyserver.store.records import Snapshot, lease_on_record
from strongroom.keyserver.store.releases import ReleaseBook, RenewWrite
from strongroom.keyserver.store.tables import leases, micros, moment
from strongroom.release.approvals import policy_for
from strongroom.release.decision import Asked, Decision, Presented, renew
from strongroom.release.lease import lease_end, renewal_time
from strongroom.release.messages import time_text
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy
from strongroom.release.stored_claims import claims_from_json

__all__ = ["Renewals"]

_ATTEMPTS: Final = 5
"""Decisions taken anew because something has changed meanwhile."""

Judge = Callable[[Policy, Asked, Presented, datetime], Decision]


@dataclass(frozen=True, slots=True)
class _Verdict:
    id: str
    code: str
    not_after: datetime | None = None
    details: Mapping[str, Any] | None = None


class Renewals(KeyRegister, ReleaseBook):
    """The part of the store that renews leases."""

    def renew(
        self,
        ids: Sequence[str],
        now: datetime,
        allow_test_roots: bool = False,
        judge: Judge = renew,
    ) -> list[dict[str, Any]]:
        """More time for leases, where the policy of today takes the claims of then.

        Args:
            ids: of leases.
            now: with a time zone.
            allow_test_roots: whether claims under roots for tests may count at all.
            judge: decides; see :func:`strongroom.release.decision.renew`.

        Returns:
            For each id, in order: ``{id, not_after, renew_after}``, or ``{id, refused}`` with a code.

        Raises:
            Unavailable: the database does not answer, or the clock of this server was set back.
        """
        wanted = list(dict.fromkeys(ids))
        for _ in range(_ATTEMPTS):
            snapshot = self.snapshot()
            with self._database.reading() as connection:
                query = select(leases).where(leases.c.id.in_(wanted))
                rows = {row.id: row for row in connection.execute(query)}
            verdicts = {
                id: self._verdict(id, rows.get(id), snapshot, now, allow_test_roots, judge)
                for id in wanted
            }
            write = RenewWrite(
                snapshot.revision,
                {one.id: one.not_after for one in verdicts.values() if one.not_after is not None},
                [one.details for one in verdicts.values() if one.details is not None],
            )
            # Ids that nobody has heard of leave no record: anybody can make them up.
            if not write.details or self._writer.submit(write).result():
                return [_result(verdicts[id], now) for id in ids]
        raise Unavailable("The policies change faster than a decision is taken.", hint="Ask again.")

    def _verdict(
        self,
        id: str,
        row: Row[Any] | None,
        snapshot: Snapshot,
        now: datetime,
        allow_test_roots: bool,
        judge: Judge,
    ) -> _Verdict:
        # One that was given back, replaced or forgotten: a new release is the way on.
        if row is None or row.ended == "attest-again":
            return _Verdict(id, "attest-again")
        key = KeyName(row.name, row.version)
        policy = policy_for(snapshot.policies, row.name)
        code, decision = "", None
        if row.ended is not None:
            code = row.ended
        elif row.platform in snapshot.evicted:
            code = "evicted"
        elif micros(now) >= row.not_after:
            code = "expired"
        elif policy is None:
            code = "no-policy"
        else:
            decision = self._judged(row, policy, key, snapshot, now, allow_test_roots, judge)
            code = "unknown-key" if decision is None else decision.code
        not_after = None
        if not code:
            assert policy is not None
            claims = map(claims_from_json, json.loads(row.claims))
            not_after = lease_end(policy, claims, now)
            code = "" if not_after > now else "attest-again"
        name = lease_on_record(id)
        details: dict[str, Any] = {"lease": name, "key": str(key), "code": code or "renewed"}
        if policy is not None:
            details |= {"policy": policy.id, "policy_version": policy.version}
        if decision is not None and not decision.allowed:
            details["reasons"] = [
                {"path": one.path, "found": one.found, "expected": one.expected, "text": one.text}
                for one in decision.findings
                if not one.ok
            ]
        return _Verdict(id, code, None if code else not_after, details)

    def _judged(
        self,
        row: Row[Any],
        policy: Policy,
        key: KeyName,
        snapshot: Snapshot,
        now: datetime,
        allow_test_roots: bool,
        judge: Judge,
    ) -> Decision | None:
        try:
            record = self.key(row.name, row.version)
            current = self.key(row.name)
        except NotFound:
            return None
        asked = Asked(
            key=key,
            bundle=record.bundle,
            current_version=current.version,
            current_bundle=current.bundle,
            state=record.state,
            registered=record.bundle,
        )
        try:
            claims = [claims_from_json(one) for one in json.loads(row.claims)]
        except (EvidenceError, ValueError):
            return Decision(False, "attest-again", ())
        presented = Presented(
            now=now,
            claims=claims,
            expected_primary={},
            expected_secondary=b"",
            allow_test_roots=allow_test_roots and self.test,
            evicted=snapshot.evicted,
        )
        return judge(policy, asked, presented, moment(row.attested))


def _result(verdict: _Verdict, now: datetime) -> dict[str, Any]:
    if verdict.not_after is None:
        return {"id": verdict.id, "refused": verdict.code}
    return {
        "id": verdict.id,
        "not_after": time_text(verdict.not_after),
        "renew_after": time_text(renewal_time(now, verdict.not_after)),
    }
