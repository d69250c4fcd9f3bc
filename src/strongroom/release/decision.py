"""Allow or refuse: a policy, what is asked for, what is presented. Pure, and it looks at everything.

The machine is told a code and no more; the findings, one for each thing that was compared, for every
alternative of the policy, are for the audit records and for the owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from strongroom.attest.appraise import IDENTITY, Finding, binding_rule
from strongroom.attest.evidence import Claims
from strongroom.format.encoding import b64url
from strongroom.release.judgement import Judgement, judge
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

__all__ = [
    "CODES",
    "RELEASABLE",
    "Asked",
    "Decision",
    "Finding",
    "Presented",
    "decide",
    "evaluate",
    "renew",
]

CODES: Final = (
    "no-policy",
    "unknown-key",
    "revoked",
    "bundle",
    "not-yet",
    "expired",
    "evidence",
    "policy",
    "binding",
    "holders",
    "evicted",
    "challenge",
    "attest-again",
)
"""Why a key is refused: all that a machine is told."""

RELEASABLE: Final = ("active", "deprecated")
"""States of a version of a key in which it is released; of a deprecated one, the answer says so."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for, and what the store knows of it.

    Attributes:
        key: with its version, also where the current one was asked for.
        bundle: of the sealed model that the machine has, 16 bytes.
        current_version: of the key.
        current_bundle: registered for the current version.
        state: of the version that is asked for.
        registered: bundle registered for the version that is asked for; None is enough where that
            is the current one, and refuses any other.
    """

    key: KeyName
    bundle: bytes
    current_version: int
    current_bundle: bytes
    state: str
    registered: bytes | None = None


@dataclass(frozen=True, slots=True)
class Presented:
    """What the machine presents, verified, and what the server expects of it.

    Attributes:
        now: with a time zone.
        claims: primary evidence first, if there is any, then secondary evidence and identities.
        expected_primary: kind → what primary evidence of it must be bound to.
        expected_secondary: what secondary evidence must be bound to.
        allow_test_roots: whether the server takes roots for tests; the policy must too.
        evicted: names of machines that were taken out of service.
        newest_crls: issuer → number of the newest of its revocation lists that was seen.
    """

    now: datetime
    claims: Sequence[Claims]
    expected_primary: Mapping[str, bytes]
    expected_secondary: bytes
    allow_test_roots: bool = False
    evicted: AbstractSet[str] = field(default=frozenset())
    newest_crls: Mapping[str, int] = field(default_factory=dict)

    def proved(self) -> list[Claims]:
        """What is about whoever asks: evidence that is bound to this request, and identities.

        The rest may have been recorded elsewhere, and is nothing to renew a lease upon. Nothing
        vouches for secondary evidence where the primary is not bound.
        """
        evidence = [one for one in self.claims if one.kind not in IDENTITY]
        found: list[Claims] = []
        for one in evidence:
            expected = self.expected_secondary if found else self.expected_primary.get(one.kind)
            if binding_rule(one, "", expected).ok:
                found.append(one)
            elif not found:
                break
        return [*found, *(one for one in self.claims if one.kind in IDENTITY)]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict.

    Attributes:
        allowed: whether the key may be released.
        code: one of :data:`CODES`; empty where it is allowed.
        findings: everything that was compared.
        matched: path of the first alternative that holds, such as ``any[1]``; None if none does.
        holder: the name of the machine, by what that alternative is about, and not by what else was
            presented, which may be another's; None where that has none.
    """

    allowed: bool
    code: str
    findings: tuple[Finding, ...]
    matched: str | None = None
    holder: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "allowed": self.allowed,
            "code": self.code,
            "matched": self.matched,
            "findings": [finding.to_json() for finding in self.findings],
        }


def decide(policy: Policy, asked: Asked, presented: Presented) -> Decision:
    """Whether ``policy`` gives the key that is asked for to the machine that presents itself.

    Args:
        policy: the one that is about this key, enforced or shadow.
        asked: the key.
        presented: the machine.
    """
    return _combined(
        [*_about_key(policy, asked), *_window(policy, presented.now)], _judged(policy, presented)
    )


def evaluate(policy: Policy, presented: Presented) -> Decision:
    """What a policy makes of evidence, whatever the key and whatever the evidence is bound to.

    For people who try a policy on evidence that was recorded: a server decides.

    Args:
        policy: any.
        presented: the machine; what is expected of its evidence is not looked at.
    """
    return _combined(_window(policy, presented.now), _judged(policy, presented, bound=False))


def renew(policy: Policy, asked: Asked, presented: Presented, attested: datetime) -> Decision:
    """Whether a holder may keep a key, by the policy of today and the claims of then.

    The claims were bound to another request and were vouched for at another time: neither is asked
    again. Everything else is, and the holder must attest anew where the policy says so.

    Args:
        policy: in force now.
        asked: the key, as it stands now.
        presented: the claims of the release; what is expected of them is not looked at.
        attested: when they were verified.
    """
    about = [*_about_key(policy, asked), *_window(policy, presented.now)]
    about.append(_recent(policy, presented.now, attested))
    return _combined(about, _judged(policy, presented, bound=False, valid=False))


_Coded = tuple[str, Finding]


def _judged(
    policy: Policy, presented: Presented, *, bound: bool = True, valid: bool = True
) -> Judgement:
    return judge(
        policy,
        presented.claims,
        presented.now,
        expected_primary=presented.expected_primary,
        expected_secondary=presented.expected_secondary,
        allow_test_roots=presented.allow_test_roots,
        evicted=presented.evicted,
        newest_crls=presented.newest_crls,
        bound=bound,
        valid=valid,
    )


def _combined(about: Sequence[_Coded], judged: Judgement) -> Decision:
    # Who has not proved himself learns nothing of the key: the code of the evidence comes first.
    failed = [code for code, finding in about if not finding.ok]
    code = "no-policy" if "no-policy" in failed else judged.code or next(iter(failed), "")
    findings = (*(finding for _, finding in about), *judged.findings)
    return Decision(not code, code, findings, judged.matched, judged.holder)


def _about_key(policy: Policy, asked: Asked) -> list[_Coded]:
    return [
        _covered(policy, asked.key.name),
        _state(asked),
        _version(policy, asked),
        _registered(asked),
        _not_revoked(policy, asked),
    ]


def _covered(policy: Policy, name: str) -> _Coded:
    ok = policy.covers(name)
    sentence = f"The policy is {'' if ok else 'not '}about the key {name}."
    return "no-policy", Finding(ok, "keys", name, list(policy.keys[:8]), sentence)


def _state(asked: Asked) -> _Coded:
    ok = asked.state in RELEASABLE
    sentence = f"The key {asked.key} is {asked.state}."
    return "revoked", Finding(ok, "key.state", asked.state, list(RELEASABLE), sentence)


def _version(policy: Policy, asked: Asked) -> _Coded:
    version, current = asked.key.version, asked.current_version
    ok = version is not None and policy.versions.allow(version, current)
    sentence = f"Version {version} is asked for, version {current} is the current one."
    return "policy", Finding(ok, "versions", version, policy.versions.to_json(), sentence)


def _registered(asked: Asked) -> _Coded:
    registered = asked.registered
    if registered is None and asked.key.version == asked.current_version:
        registered = asked.current_bundle
    ok = bool(asked.bundle) and asked.bundle == registered
    wanted = None if registered is None else b64url(registered)
    sentence = (
        "The model at hand is " + ("" if ok else "not ") + "the one that was registered for the key."
    )
    return "bundle", Finding(ok, "key.bundle", b64url(asked.bundle), wanted, sentence)


def _not_revoked(policy: Policy, asked: Asked) -> _Coded:
    ok = asked.bundle not in policy.revoked_bundles
    sentence = f"The model at hand is {'not ' if ok else ''}revoked."
    return "revoked", Finding(ok, "revoked_bundles", b64url(asked.bundle), "not revoked", sentence)


def _window(policy: Policy, now: datetime) -> list[_Coded]:
    found: list[_Coded] = []
    at = now.isoformat(timespec="seconds")
    if policy.not_before is not None:
        start = policy.not_before.isoformat(timespec="seconds")
        ok = now >= policy.not_before
        sentence = f"The policy releases from {start} on."
        found.append(("not-yet", Finding(ok, "not_before", at, {"from": start}, sentence)))
    if policy.not_after is not None:
        end = policy.not_after.isoformat(timespec="seconds")
        ok = now < policy.not_after
        sentence = f"The policy releases until {end}."
        found.append(("expired", Finding(ok, "not_after", at, {"until": end}, sentence)))
    return found


def _recent(policy: Policy, now: datetime, attested: datetime) -> _Coded:
    age, most = int((now - attested).total_seconds()), policy.lease.attest_again_after
    ok = policy.lease.renew and 0 <= age < most
    path = "lease.attest_again_after" if policy.lease.renew else "lease.renew"
    sentence = f"The machine attested {age} seconds ago" + ("." if ok else "; it must attest again.")
    return "attest-again", Finding(
        ok, path, age, {"below": most} if policy.lease.renew else True, sentence
    )
