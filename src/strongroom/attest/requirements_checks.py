"""Checks: one member of a requirement against claims, each with a finding for whatever it compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from strongroom.attest.evidence import Claims
from strongroom.attest.findings import (
    MISSING,
    Finding,
    expected_json,
    expected_text,
    lookup,
    value_text,
)
from strongroom.attest.requirements_values import (
    Leaf,
    entries,
    integer,
    mapping,
    text,
    unknown_member,
)
from strongroom.errors import InvalidPolicy

__all__ = [
    "AtLeast",
    "Check",
    "Member",
    "OneOf",
    "at_least",
    "identities",
    "includes",
    "members_of",
    "numbered",
    "one_of",
    "platforms",
    "token_claims",
]

_MAX_DEPTH: Final = 8
"""Of the claims of a token; the deepest in use, of Confidential Space, has four levels."""

_OF_THE_VERIFIER: Final = frozenset({"iss", "aud", "iat", "exp", "nbf", "jti", "nonce", "eat_nonce"})
"""Claims that say whose token it is and when it holds: they identify nobody, and change each time."""

_PLATFORM_CLAIMS: Final = ("ppid", "piid", "chip_id", "ak")
"""Claims that identify a machine, besides the one that its verifier has chosen as ``platform``."""


class Check(Protocol):
    """One member of a requirement; ``path`` is where it stands in the policy."""

    @property
    def path(self) -> str: ...

    @property
    def identifies(self) -> bool:
        """Whether it pins a value that not every machine has: some are zero unless somebody sets them."""
        ...

    def findings(self, claims: Claims, now: datetime) -> list[Finding]: ...


Member = Callable[[object, str], tuple[Check, ...]]
"""Reads one member of a requirement at a path; raises InvalidPolicy."""


def _key(value: Any) -> Any:
    # In Python True is 1 and 1.0 is 1; in a token they are three things.
    return (type(value), value)


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int)


def _blank(value: Any) -> bool:
    """All zero, or all ones as registers of a TPM that nobody has started: what everybody has."""
    return isinstance(value, str) and (not value.strip("0") or not value.strip("f"))


@dataclass(frozen=True, slots=True)
class OneOf:
    """The claim is one of those listed; with ``within``, it is a list that has one of them."""

    path: str
    claim: tuple[str, ...]
    listed: tuple[Any, ...]
    allowed: frozenset[Any]
    within: bool = False

    @property
    def identifies(self) -> bool:
        return not any(map(_blank, self.listed))

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        return [self.compare(lookup(claims.values, self.claim))]

    def compare(self, found: Any) -> Finding:
        name, wanted = ".".join(self.claim), expected_text(self.listed)
        if found is MISSING:
            return self._finding(False, None, f"The evidence does not say {name}; it must be {wanted}.")
        if self.within:
            has = found if isinstance(found, list | tuple) else [found]
            ok = any(_scalar(one) and _key(one) in self.allowed for one in has)
            verb = "has" if ok else "does not have"
            return self._finding(ok, found, f"{name} {verb} {wanted}.")
        ok = _scalar(found) and _key(found) in self.allowed
        tail = "." if ok else f", not {wanted}."
        return self._finding(ok, found, f"{name} is {value_text(found)}{tail}")

    def _finding(self, ok: bool, found: Any, sentence: str) -> Finding:
        return Finding(ok, self.path, found, expected_json(self.listed), sentence)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The claim is a number, and not below the minimum."""

    path: str
    claim: tuple[str, ...]
    minimum: int

    @property
    def identifies(self) -> bool:
        return True

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        found, name = lookup(claims.values, self.claim), ".".join(self.claim)
        if type(found) is not int:
            said = "does not say" if found is MISSING else "has no number for"
            sentence = f"The evidence {said} {name}; it must be at least {self.minimum}."
            return [self._finding(False, None if found is MISSING else found, sentence)]
        ok = found >= self.minimum
        tail = "." if ok else f", below {self.minimum}."
        return [self._finding(ok, found, f"{name} is {found}{tail}")]

    def _finding(self, ok: bool, found: Any, sentence: str) -> Finding:
        return Finding(ok, self.path, found, {"at_least": self.minimum}, sentence)


def identities(claims: Claims) -> tuple[str, ...]:
    """Every name of the machine that the evidence proves: ``ppid:…``, ``chip_id:…``, ``ak:…``, and those of its GPUs."""
    names = [] if claims.platform is None else [claims.platform]
    for claim in _PLATFORM_CLAIMS:
        value = claims.values.get(claim)
        # A chip id that is masked is all zero, and everybody's.
        if isinstance(value, str) and value.strip("0"):
            names.append(f"{claim}:{value}")
    devices = claims.values.get("devices")
    if isinstance(devices, list | tuple):
        gpus = (one.get("device") for one in devices if isinstance(one, Mapping))
        names += [f"device:{gpu}" for gpu in gpus if isinstance(gpu, str)]
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Platforms:
    """The machine is one of those listed, by any of its names."""

    path: str
    listed: tuple[str, ...]
    allowed: frozenset[str]

    @property
    def identifies(self) -> bool:
        return True

    def findings(self, claims: Claims, now: datetime) -> list[Finding]:
        names = identities(claims)
        ok = not self.allowed.isdisjoint(names)
        if not names:
            sentence = "The evidence does not say which machine it is from; only some may have the key."
        elif ok:
            sentence = f"The machine {value_text(names[0])} is listed."
        else:
            sentence = f"The machine {value_text(names[0])} is not {expected_text(self.listed)}."
        return [Finding(ok, self.path, list(names), expected_json(self.listed), sentence)]


def _listed(path: str, claim: tuple[str, ...], values: tuple[Any, ...], within: bool = False) -> OneOf:
    return OneOf(path, claim, values, frozenset(map(_key, values)), within)


def one_of(leaf: Leaf, *claim: str) -> Member:
    """A member that lists the values that ``claim`` may have."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        return (_listed(path, claim, entries(value, path, leaf)),)

    return read


def includes(leaf: Leaf, *claim: str) -> Member:
    """A member that lists values of which the list in ``claim`` must have one."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        return (_listed(path, claim, entries(value, path, leaf), within=True),)

    return read


def at_least(most: int, *claim: str) -> Member:
    """A member that is the minimum of ``claim``."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        return (AtLeast(path, claim, integer(0, most)(value, path)),)

    return read


def members_of(table: Mapping[str, Member]) -> Member:
    """An object whose members are read by the table."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        checks: list[Check] = []
        for name, member in sorted(mapping(value, path).items()):
            if name not in table:
                raise unknown_member(name, table, path)
            checks += table[name](member, f"{path}.{name}")
        return tuple(checks)

    return read


def numbered(leaf: Leaf, count: int, claim_of: Callable[[str], tuple[str, ...]]) -> Member:
    """An object of registers by number: ``{"0": …, "7": …}``."""
    return members_of({str(index): one_of(leaf, *claim_of(str(index))) for index in range(count)})


def platforms(leaf: Leaf) -> Member:
    """The member ``platforms``."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        listed = entries(value, path, leaf)
        return (Platforms(path, listed, frozenset(listed)),)

    return read


def _token_leaf(value: object, path: str) -> Any:
    if isinstance(value, str):
        return text(value, path)
    if isinstance(value, bool) or type(value) is int:
        return value
    raise InvalidPolicy(path, "is not a text, a whole number, true or false")


def token_claims(*, within: bool) -> Member:
    """An object that mirrors the claims of a token, down to the values that they must have."""

    def read(value: object, path: str) -> tuple[Check, ...]:
        return tuple(_descend(value, path, ("claims",)))

    def _descend(value: object, path: str, claim: tuple[str, ...]) -> list[Check]:
        if not isinstance(value, Mapping):
            return [_listed(path, claim, entries(value, path, _token_leaf), within)]
        if len(claim) > _MAX_DEPTH:
            raise InvalidPolicy(path, "is nested too deeply")
        checks: list[Check] = []
        for name, member in sorted(mapping(value, path).items()):
            if len(claim) == 1 and name in _OF_THE_VERIFIER:
                raise InvalidPolicy(f"{path}.{name}", "is for the verifier of tokens to check")
            if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not name:
                raise InvalidPolicy(path, "has a name that is not printable ASCII")
            checks += _descend(member, f"{path}.{name}", (*claim, name))
        return checks

    def read_object(value: object, path: str) -> tuple[Check, ...]:
        mapping(value, path)
        return read(value, path)

    return read_object
