"""How up to date a platform must be: Intel's TCB status, AMD's version numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from strongroom.attest.evidence import Claims
from strongroom.attest.findings import Finding, expected_json, value_text
from strongroom.attest.requirements_checks import AtLeast, Check
from strongroom.attest.requirements_values import (
    choice,
    entries,
    integer,
    mapping,
    matches,
    moment,
    unknown_member,
)
from strongroom.errors import InvalidPolicy

__all__ = ["IntelTcb", "MinTcb", "Relaxation", "intel_tcb", "min_tcb"]

UP_TO_DATE: Final = "UpToDate"
RELAXABLE: Final = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What Intel calls a platform that is not as it should be, except Revoked, which nothing excuses."""

_ADVISORY: Final = matches(re.compile(r"INTEL-(?:SA|DOC)-\d{5}"), "an advisory such as INTEL-SA-00289")
_COMPONENTS: Final = ("bootloader", "tee", "snp", "microcode", "fmc")
_OF: Final = ("committed", "launch", "reported")


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A status that is taken until a moment, perhaps for known advisories alone."""

    status: str
    until: datetime
    advisories: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class IntelTcb:
    """The member ``tcb`` of SGX and TDX, and what holds where it is absent: UpToDate alone.

    With ``tdx_only``, evidence of a processor that has no such status is not asked for one: AMD's.
    """

    path: str
    relaxations: tuple[Relaxation, ...] = ()
    min_eval: int | None = None
    denied: tuple[str, ...] = ()
    tdx_only: bool = False

    @property
    def identifies(self) -> bool:
        return False

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        values = claims.values
        if self.tdx_only and "mr_td" not in values:
            return []
        advisories = values.get("advisories")
        # A list that is not there could hide the one that is denied.
        known = advisories if isinstance(advisories, list | tuple) else None
        found = [self._status(values.get("tcb_status"), known, now)]
        if self.min_eval is not None:
            check = AtLeast(f"{self.path}.min_eval", ("tcb_eval",), self.min_eval)
            found += check.findings(claims, now)
        if self.denied:
            found.append(self._denied(known))
        return found

    def _status(self, status: Any, advisories: Any, now: datetime) -> Finding:
        accepted = [UP_TO_DATE, *(one.status for one in self.relaxations)]
        text = f"The TCB status is {value_text(status)}"
        relaxed = next((one for one in self.relaxations if one.status == status), None)
        if status is None:
            ok, text = False, "The evidence does not say its TCB status."
        elif status == UP_TO_DATE:
            ok, text = True, f"{text}."
        elif relaxed is None:
            ok, text = False, f"{text}, which this policy does not accept."
        elif now >= relaxed.until:
            ok, text = False, f"{text}, which was accepted until {relaxed.until.isoformat()}."
        elif relaxed.advisories is not None and (
            advisories is None or not relaxed.advisories.issuperset(advisories)
        ):
            more = (
                "unknown"
                if advisories is None
                else ", ".join(sorted(map(value_text, set(advisories) - relaxed.advisories)))
            )
            ok, text = False, f"{text}, with advisories that are not accepted: {more}."
        else:
            ok, text = True, f"{text}, accepted until {relaxed.until.isoformat()}."
        return Finding(ok, f"{self.path}.status", status, accepted, text)

    def _denied(self, advisories: Any) -> Finding:
        path, expected = f"{self.path}.advisories_deny", {"none_of": expected_json(self.denied)}
        if advisories is None:
            sentence = "The evidence does not say which advisories concern the platform."
            return Finding(False, path, None, expected, sentence)
        hit = sorted(set(self.denied).intersection(map(str, advisories)))
        sentence = (
            f"The platform is concerned by {', '.join(hit)}."
            if hit
            else "No advisory that is denied concerns the platform."
        )
        return Finding(not hit, path, list(advisories), expected, sentence)


def _relaxation(value: object, path: str) -> Relaxation | None:
    if isinstance(value, str):
        if choice(UP_TO_DATE, *RELAXABLE)(value, path) != UP_TO_DATE:
            raise InvalidPolicy(
                path,
                "is accepted without a deadline",
                hint=f'Write {{"status": "{value}", "until": "2027-01-01T00:00:00Z"}}.',
            )
        return None
    members = mapping(value, path)
    for name in members:
        if name not in ("status", "until", "advisories"):
            raise unknown_member(name, ("status", "until", "advisories"), path)
    status = choice(*RELAXABLE)(members.get("status"), f"{path}.status")
    until = moment(members.get("until"), f"{path}.until")
    advisories = None
    if "advisories" in members:
        advisories = frozenset(entries(members["advisories"], f"{path}.advisories", _ADVISORY))
    return Relaxation(status, until, advisories)


def intel_tcb(value: object, path: str) -> tuple[Check, ...]:
    """Read the member ``tcb``."""
    members = mapping(value, path)
    known = ("status", "min_eval", "advisories_deny")
    for name in members:
        if name not in known:
            raise unknown_member(name, known, path)
    relaxations: tuple[Relaxation, ...] = ()
    if "status" in members:
        where = f"{path}.status"
        given = members["status"]
        if not isinstance(given, list):
            given = [given]
        if not given:
            raise InvalidPolicy(where, "is an empty list", hint="UpToDate is accepted in any case.")
        read = [_relaxation(one, f"{where}[{index}]") for index, one in enumerate(given)]
        relaxations = tuple(one for one in read if one is not None)
        names = [UP_TO_DATE if one is None else one.status for one in read]
        if len(set(names)) != len(names):
            raise InvalidPolicy(where, "lists the same twice")
    min_eval = None
    if "min_eval" in members:
        min_eval = integer(1, 1 << 31)(members["min_eval"], f"{path}.min_eval")
    denied: tuple[str, ...] = ()
    if "advisories_deny" in members:
        denied = entries(members["advisories_deny"], f"{path}.advisories_deny", _ADVISORY)
    return (IntelTcb(path, relaxations, min_eval, denied),)


@dataclass(frozen=True, slots=True)
class MinTcb:
    """The member ``min_tcb`` of SNP: version numbers of one of the TCBs of a report, each a minimum."""

    path: str
    of: str
    checks: tuple[AtLeast, ...]

    @property
    def identifies(self) -> bool:
        return False

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        return [finding for check in self.checks for finding in check.findings(claims, now)]


def min_tcb(value: object, path: str) -> tuple[Check, ...]:
    """Read the member ``min_tcb``."""
    members: Mapping[str, Any] = mapping(value, path)
    of = choice(*_OF)(members.get("of"), f"{path}.of")
    checks = []
    for name, minimum in members.items():
        if name == "of":
            continue
        if name not in _COMPONENTS:
            raise unknown_member(name, ("of", *_COMPONENTS), path)
        where = f"{path}.{name}"
        checks.append(AtLeast(where, ("tcb", of, name), integer(0, 255)(minimum, where)))
    if not checks:
        raise InvalidPolicy(path, "names no version number", hint="Such as snp and microcode.")
    return (MinTcb(path, of, tuple(checks)),)
