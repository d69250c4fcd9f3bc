"""Is it acceptable? Claims of authentic evidence, compared with requirements; everything is looked at.

Two sets of rules. :func:`rules` are those that nobody can relax: they hold whatever a policy says.
:func:`appraise` compares with what a policy lists. Neither stops at the first thing that is wrong, and
neither reads a clock.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime

from strongroom.attest.evidence import Claims
from strongroom.attest.findings import Finding, all_ok, lookup
from strongroom.attest.requirements import Requirement, parse_requirement
from strongroom.attest.requirements_checks import identities
from strongroom.attest.requirements_devices import devices_of
from strongroom.attest.requirements_kinds import IDENTITY

__all__ = [
    "IDENTITY",
    "Finding",
    "Requirement",
    "all_ok",
    "appraise",
    "binding_rule",
    "crl_rules",
    "eviction_rule",
    "parse_requirement",
    "rules",
]


def rules(claims: Claims, path: str, now: datetime | None, *, test_roots: bool) -> list[Finding]:
    """What nobody can relax: debug, root, faults, validity.

    Args:
        claims: of one piece of evidence.
        path: names it in the findings: ``evidence[0]``.
        now: with a time zone; None where validity is not asked, as when a lease is renewed.
        test_roots: whether the server and the policy both take evidence under test roots.
    """
    found = [
        _debug(claims, path),
        Finding(
            not claims.test_root or test_roots,
            f"{path}.root",
            "test" if claims.test_root else "production",
            "test or production" if test_roots else "production",
            "The root is one for tests." if claims.test_root else "The root is one for production.",
        ),
        Finding(
            not claims.faults,
            f"{path}.faults",
            list(claims.faults),
            [],
            " ".join(claims.faults) if claims.faults else "No rule of the vendor is broken.",
        ),
    ]
    if now is not None:
        end = claims.not_after.isoformat(timespec="seconds")
        ok = now <= claims.not_after
        sentence = (
            f"What vouches for it holds until {end}." if ok else f"What vouches for it ended {end}."
        )
        found.append(
            Finding(
                ok, f"{path}.not_after", end, {"after": now.isoformat(timespec="seconds")}, sentence
            )
        )
    return found


def _debug(claims: Claims, path: str) -> Finding:
    ok = claims.debug is False and not _says_debug(claims)
    sentence = (
        "It is not in debug mode." if ok else "It runs in debug mode: others can read its memory."
    )
    return Finding(ok, f"{path}.debug", not ok, False, sentence)


def _says_debug(claims: Claims) -> bool:
    """The same again from the values, whatever the verifier made of them."""
    values = claims.values
    if claims.kind == "nitro":
        # The registers of an enclave in debug mode are zero, in a document with a valid signature.
        pcr0 = lookup(values, ("pcr", "0"))
        return not isinstance(pcr0, str) or not pcr0.strip("0")
    if claims.kind == "sgx":
        return _first_byte(values.get("attributes")) & 0x02 != 0
    # What stands behind a virtual TPM of Azure is one or the other.
    return _first_byte(values.get("td_attributes")) != 0 or lookup(values, ("policy", "debug")) is True


def _first_byte(attributes: object) -> int:
    if attributes is None:
        return 0
    try:
        return bytes.fromhex(str(attributes))[0]
    except (ValueError, IndexError):
        return 0xFF


def binding_rule(claims: Claims, path: str, expected: bytes | None) -> Finding:
    """Whether the evidence is bound to what was asked; evidence of which nobody expects anything is not."""
    ok = bool(expected) and hmac.compare_digest(claims.bound, expected or b"")
    sentence = (
        "It is bound to this request."
        if ok
        else "It is not bound to this request: it was made for another one, or by another machine."
    )
    wanted = None if expected is None else expected.hex()
    return Finding(ok, f"{path}.bound", claims.bound.hex(), wanted, sentence)


def crl_rules(claims: Claims, path: str, newest: Mapping[str, int]) -> list[Finding]:
    """Whether each revocation list is the newest that is known of its issuer: an older one is genuine
    too, and does not name what was revoked since.
    """
    found = []
    for issuer, number in claims.crls.items():
        known = newest.get(issuer)
        if known is None:
            continue
        sentence = f"The revocation list of {issuer} has the number {number:x}" + (
            "." if number >= known else f", and {known:x} was seen before: an old one was brought back."
        )
        expected = {"from": f"{known:x}"}
        found.append(Finding(number >= known, f"{path}.crls", f"{number:x}", expected, sentence))
    return found


def eviction_rule(claims: Claims, path: str, evicted: AbstractSet[str]) -> Finding:
    """Whether the machine is one that was taken out of service, by any of its names."""
    hit = sorted(evicted & set(identities(claims)))
    sentence = f"The machine {hit[0]} was evicted." if hit else "The machine is not evicted."
    return Finding(not hit, f"{path}.platform", list(identities(claims)), "not evicted", sentence)


def appraise(
    requirement: Requirement, claims: Claims, others: Sequence[Claims], now: datetime
) -> list[Finding]:
    """Compare claims with a requirement and with everything under its ``with``.

    Args:
        requirement: of a policy.
        claims: primary evidence, or an identity.
        others: secondary evidence and identities.
        now: with a time zone; deadlines are compared with it.
    """
    found = [_kind(requirement, claims)]
    if claims.kind == requirement.kind:
        found += [one for check in requirement.checks for one in check.findings(claims, now)]
    for companion in requirement.companions:
        found += _companion(companion, others, now)
    return found


def _kind(requirement: Requirement, claims: Claims) -> Finding:
    ok = claims.kind == requirement.kind
    sentence = f"The evidence is of the kind {claims.kind}" + (
        "." if ok else f", not {requirement.kind}."
    )
    return Finding(ok, f"{requirement.path}.kind", claims.kind, requirement.kind, sentence)


def _companion(requirement: Requirement, others: Sequence[Claims], now: datetime) -> list[Finding]:
    of_kind = [claims for claims in others if claims.kind == requirement.kind]
    if not of_kind:
        sentence = f"There is no evidence of the kind {requirement.kind}."
        return [Finding(False, f"{requirement.path}.kind", None, requirement.kind, sentence)]
    if requirement.kind == "nvidia":
        of_kind = [_together(of_kind)]
    # All evidence of a kind must be as required, so that a good piece does not excuse a bad one.
    return [one for claims in of_kind for one in appraise(requirement, claims, (), now)]


def _together(pieces: Sequence[Claims]) -> Claims:
    """All GPUs as one list, whether they came as one piece of evidence or as several."""
    devices = [device for claims in pieces for device in devices_of(claims)]
    return replace(pieces[0], values={**pieces[0].values, "devices": devices})
