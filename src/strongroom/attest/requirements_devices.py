"""Requirements on several GPUs at once: how many there are, and what each of them must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from strongroom.attest.evidence import Claims
from strongroom.attest.findings import Finding, lookup
from strongroom.attest.requirements_checks import Check, Member, OneOf, one_of
from strongroom.attest.requirements_values import Leaf, integer

__all__ = ["MATCH", "Count", "DeviceCheck", "count", "device", "devices_of"]

MATCH: Final = "match"
_MAX_DEVICES: Final = 64


def devices_of(claims: Claims) -> Sequence[Mapping[str, Any]]:
    """The devices that evidence speaks of; none where it is not a list of objects."""
    found = claims.values.get("devices")
    if not isinstance(found, list | tuple) or not all(isinstance(one, Mapping) for one in found):
        return ()
    return found


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """Every device has one of the listed values."""

    check: OneOf

    @property
    def path(self) -> str:
        return self.check.path

    @property
    def listed(self) -> tuple[Any, ...]:
        """What each of them may be."""
        return self.check.listed

    @property
    def identifies(self) -> bool:
        return self.check.identifies

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        found = [self.check.compare(lookup(one, self.check.claim)) for one in devices_of(claims)]
        if not found:
            sentence = "The evidence speaks of no device."
            found = [Finding(False, self.path, None, list(self.check.listed), sentence)]
        return found


@dataclass(frozen=True, slots=True)
class Count:
    """There are exactly so many devices, and none is counted twice."""

    path: str
    wanted: int

    @property
    def identifies(self) -> bool:
        return True

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        found = devices_of(claims)
        names = {one["device"] for one in found if isinstance(one.get("device"), str)}
        if len(found) > 1 and len(names) != len(found):
            sentence = "The same device is counted twice, or one has no identity."
            return [Finding(False, self.path, len(found), self.wanted, sentence)]
        ok = len(found) == self.wanted
        many = "1 device is" if len(found) == 1 else f"{len(found)} devices are"
        sentence = f"{many} attested" + ("." if ok else f", not {self.wanted}.")
        return [Finding(ok, self.path, len(found), self.wanted, sentence)]


def device(leaf: Leaf, claim: str) -> Member:
    """A member that lists the values that ``claim`` may have, of every device."""
    member = one_of(leaf, claim)

    def read(value: object, path: str) -> tuple[Check, ...]:
        return tuple(DeviceCheck(one) for one in member(value, path) if isinstance(one, OneOf))

    return read


def count(value: object, path: str) -> tuple[Check, ...]:
    """Read the member ``count``."""
    return (Count(path, integer(1, _MAX_DEVICES)(value, path)),)
