"""What is presented against the alternatives of a policy: rules for each piece of evidence, then members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from strongroom.attest.appraise import (
    IDENTITY,
    Finding,
    Requirement,
    all_ok,
    appraise,
    binding_rule,
    crl_rules,
    eviction_rule,
    rules,
)
from strongroom.attest.evidence import Claims
from strongroom.release.policy import Policy

__all__ = ["Judgement", "judge"]

_BY_RULE: Final = ("evidence", "binding", "evicted")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of the evidence.

    Attributes:
        findings: everything that was compared.
        matched: path of the first alternative that holds, or None.
        code: why it is refused; empty where it is not.
        holder: the name of the machine, by what that alternative is about; None where it has none.
    """

    findings: tuple[Finding, ...]
    matched: str | None
    code: str
    holder: str | None = None


def judge(
    policy: Policy,
    claims: Sequence[Claims],
    now: datetime,
    *,
    expected_primary: Mapping[str, bytes],
    expected_secondary: bytes,
    allow_test_roots: bool,
    evicted: AbstractSet[str],
    newest_crls: Mapping[str, int],
    bound: bool,
    valid: bool,
) -> Judgement:
    """Judge what is presented by the alternatives of a policy.

    Args:
        policy: any.
        claims: primary evidence first, if there is any, then secondary evidence and identities.
        now: with a time zone.
        expected_primary: kind → what primary evidence of it must be bound to.
        expected_secondary: what secondary evidence must be bound to.
        allow_test_roots: whether the server takes roots for tests.
        newest_crls: issuer → number of the newest of its revocation lists that was seen.
        evicted: names of machines that were taken out of service.
        bound: whether the evidence must be bound to what is expected.
        valid: whether what vouches for it must hold now.
    """
    if not claims:
        nothing = Finding(False, "evidence", None, "evidence", "Nothing is presented.")
        return Judgement((nothing,), None, "evidence")
    test_roots = policy.test_roots and allow_test_roots
    by_rule: list[list[tuple[str, Finding]]] = []
    for index, one in enumerate(claims):
        path = f"evidence[{index}]"
        found = [
            ("evidence", finding)
            for finding in (
                *rules(one, path, now if valid else None, test_roots=test_roots),
                *crl_rules(one, path, newest_crls if valid else {}),
            )
        ]
        if bound and one.kind not in IDENTITY:
            expected = expected_secondary if index else expected_primary.get(one.kind)
            found.append(("binding", binding_rule(one, path, expected)))
        found.append(("evicted", eviction_rule(one, path, evicted)))
        by_rule.append(found)
    findings = [finding for found in by_rule for _, finding in found]

    matched, holder, failed = None, None, set()
    for requirement in policy.alternatives:
        compared = _alternative(requirement, claims, now)
        findings += compared
        broken = {
            code
            for index in _used(requirement, claims)
            for code, finding in by_rule[index]
            if not finding.ok
        }
        failed |= broken
        if matched is None and not broken and all_ok(compared):
            matched = requirement.path
            used = (claims[index].platform for index in _used(requirement, claims))
            holder = next(filter(None, used), None)
    # Whatever is presented beside it: a machine that was evicted is not served.
    out = any(code == "evicted" and not finding.ok for found in by_rule for code, finding in found)
    if matched is not None and not out:
        return Judgement(tuple(findings), matched, "", holder)
    if out:
        failed.add("evicted")
    code = next((code for code in _BY_RULE if code in failed), "policy")
    return Judgement(tuple(findings), None, code)


def _subjects(requirement: Requirement, claims: Sequence[Claims]) -> list[int]:
    """What an alternative is about: identities wherever they stand, evidence only in the first place."""
    if requirement.is_identity:
        return [index for index, one in enumerate(claims) if one.kind == requirement.kind]
    return [] if claims[0].kind in IDENTITY else [0]


def _used(requirement: Requirement, claims: Sequence[Claims]) -> list[int]:
    subjects = _subjects(requirement, claims)
    kinds = {companion.kind for companion in requirement.companions}
    others = [index for index, one in enumerate(claims) if one.kind in kinds and index not in subjects]
    return [*subjects, *others]


def _alternative(requirement: Requirement, claims: Sequence[Claims], now: datetime) -> list[Finding]:
    subjects = _subjects(requirement, claims)
    if not subjects:
        sentence = f"There is no evidence of the kind {requirement.kind}."
        return [Finding(False, f"{requirement.path}.kind", None, requirement.kind, sentence)]
    others = [one for index, one in enumerate(claims) if index not in subjects]
    return [
        finding for index in subjects for finding in appraise(requirement, claims[index], others, now)
    ]
