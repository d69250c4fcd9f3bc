"""What is wrong with a policy, and what is right but perhaps not meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from strongroom.attest.requirements import Requirement
from strongroom.attest.requirements_devices import MATCH
from strongroom.attest.requirements_tcb import IntelTcb, MinTcb
from strongroom.attest.requirements_values import Problems
from strongroom.release.approvals import overlapping
from strongroom.release.policy import Policy

__all__ = ["Remark", "lint"]

_LONG_LEASE: Final = 86400
_LONG_ATTEST_AGAIN: Final = 7 * 86400
_LONG_RELAXATION: Final = timedelta(days=180)
"""Intel asks platforms to be recovered within months of an advisory."""

_WITH_PLATFORM: Final = frozenset({"sgx", "tdx", "snp", "azure-vtpm"})
_INTEL: Final = frozenset({"sgx", "tdx"})
_SNP: Final = frozenset({"snp", "azure-vtpm"})


@dataclass(frozen=True, slots=True)
class Remark:
    """One remark.

    Attributes:
        level: ``error``: a server does not take it; ``warning``: it should be meant.
        path: the member, such as ``any[0].tcb``.
        text: a sentence.
    """

    level: str
    path: str
    text: str

    def to_json(self) -> dict[str, str]:
        """For programs."""
        return {"level": self.level, "path": self.path, "text": self.text}


def lint(
    document: object, *, now: datetime | None = None, others: Sequence[Policy] = ()
) -> list[Remark]:
    """Everything that can be said of a document.

    Args:
        document: what JSON or TOML gives.
        now: with a time zone; None leaves out what depends on it.
        others: the policies beside which it would stand.
    """
    problems = Problems()
    policy = Policy.read(document, problems)
    if policy is None:
        return [Remark("error", *_said(error.path, error)) for error in problems.found]
    remarks = [Remark("error", path, text) for path, text in _conflicts(policy, others)]
    warnings = list(_document(policy, now))
    for requirement in policy.alternatives:
        warnings += _requirement(requirement, now)
    return remarks + [Remark("warning", path, text) for path, text in warnings]


_Said = tuple[str, str]


def _said(path: str, error: Any) -> _Said:
    hint = f" {error.hint}" if error.hint else ""
    return path, f"{path} {error.problem}.{hint}"


def _conflicts(policy: Policy, others: Sequence[Policy]) -> Iterator[_Said]:
    for other, entry in overlapping(policy, others):
        yield "keys", f"keys has {entry}, which the policy {other} guards already."


def _document(policy: Policy, now: datetime | None) -> Iterator[_Said]:
    if policy.test_roots:
        yield (
            "test_roots",
            (
                "EVIDENCE UNDER TEST ROOTS IS TAKEN: whoever has the keys of those roots, which are not "
                "secret, gets the keys of this policy. Never for a model of value."
            ),
        )
    if policy.shadow:
        yield "shadow", "The policy is evaluated and recorded, and not enforced."
    yield from _lease(policy)
    if now is not None and policy.not_after is not None and now >= policy.not_after:
        yield "not_after", "The policy has ended: it releases nothing."
    for index, entry in enumerate(policy.keys):
        rest = [one for one in policy.keys if one.endswith("/") and one != entry]
        if any(entry.startswith(one) for one in rest):
            yield f"keys[{index}]", f"{entry} is in another namespace of this policy already."
    if any(one.is_identity for one in policy.alternatives) and not all(
        one.is_identity for one in policy.alternatives
    ):
        for one in policy.alternatives:
            if one.is_identity:
                yield (
                    one.path,
                    (
                        f"Who has this {one.kind} identity gets the keys without a TEE: "
                        "it is a way around the other alternatives."
                    ),
                )


def _lease(policy: Policy) -> Iterator[_Said]:
    lease = policy.lease
    if lease.seconds > _LONG_LEASE:
        yield "lease.seconds", "A lease of more than a day: a revocation is felt that late."
    if lease.renew and lease.attest_again_after > _LONG_ATTEST_AGAIN:
        yield "lease.attest_again_after", "Evidence of more than a week is renewed upon."
    if lease.max_holders is None:
        yield "lease.max_holders", "Any number of machines may hold the keys at once."


def _requirement(one: Requirement, now: datetime | None) -> Iterator[_Said]:
    if one.kind in _WITH_PLATFORM and "platforms" not in one.listed and "ak" not in one.listed:
        yield (
            one.path,
            (
                "No platforms are listed: attestation keys that were taken out of one machine anywhere "
                "pass for any machine."
            ),
        )
    if one.kind == "tpm" and "ak" not in one.listed:
        yield one.path, "No ak is listed: the platform alone stands for the key that signs."
    if one.kind in _INTEL or "mr_td" in one.listed:
        yield from _tcb(one, now)
    elif one.kind in _SNP:
        yield from _firmware(one)
    if one.kind == "nvidia":
        yield from _gpus(one)
    for companion in one.companions:
        yield from _requirement(companion, now)


def _gpus(one: Requirement) -> Iterator[_Said]:
    for check in one.checks:
        if check.path.endswith(".measurements") and getattr(check, "listed", ()) != (MATCH,):
            yield check.path, "GPUs are taken whose measurements no reference of the vendor confirms."
    if "driver" not in one.listed:
        yield one.path, "No driver is listed: GPUs with old drivers are taken."


def _tcb(one: Requirement, now: datetime | None) -> Iterator[_Said]:
    tcb = one.check(IntelTcb)
    if tcb.min_eval is None:
        yield (
            tcb.path,
            (
                "No min_eval is listed: collateral from before the latest TCB recovery is taken "
                "for as long as Intel's dates allow."
            ),
        )
    for relaxation in tcb.relaxations:
        what = f"{relaxation.status} is accepted"
        path = f"{tcb.path}.status"
        if relaxation.advisories is None:
            yield path, f"{what} whatever the advisories are: list those that are understood."
        if now is not None and now >= relaxation.until:
            yield path, f"The deadline until which {what} has passed."
        elif now is not None and relaxation.until - now > _LONG_RELAXATION:
            yield path, f"{what} for more than half a year."


def _firmware(one: Requirement) -> Iterator[_Said]:
    minimum = one.check(MinTcb)
    if minimum is None:
        yield one.path, "No min_tcb is listed: firmware with known holes is taken."
        return
    if minimum.of == "reported":
        yield (
            minimum.path,
            "The reported TCB is what a host claims to run; committed is what it cannot go back behind.",
        )
    if "product" not in one.listed:
        yield one.path, "Version numbers differ from product to product: list product beside min_tcb."
    if "vmpl" not in one.listed:
        yield one.path, "No vmpl is listed: any privilege level of the guest may ask."
