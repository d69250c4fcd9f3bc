"""Requirements: what a policy wants of evidence of one kind. Read strictly, then compared with claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.requirements_checks import Check
from strongroom.attest.requirements_kinds import IDENTITY, KINDS, Kind
from strongroom.attest.requirements_values import Problems, description, mapping, unknown_member
from strongroom.errors import InvalidPolicy

__all__ = ["SECONDARY", "Requirement", "parse_requirement"]

SECONDARY: Final = frozenset({"nvidia", "tpm"}) | IDENTITY
"""Kinds that can stand under ``with``: what primary evidence vouches for, and who asks."""

_COMMON: Final = ("kind", "description", "with")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One alternative of a policy, or one entry of its ``with``.

    Attributes:
        path: where it stands in the policy: ``any[0]``.
        kind: of the evidence that it is about.
        checks: all of which must hold.
        companions: requirements on secondary evidence and identities, all of which must hold too.
        listed: names of the members that it lists.
    """

    path: str
    kind: str
    checks: tuple[Check, ...]
    companions: tuple[Requirement, ...]
    listed: frozenset[str]

    @property
    def is_identity(self) -> bool:
        """Whether it asks who asks, and not what machine it is."""
        return self.kind in IDENTITY

    def check(self, kind: type[Any]) -> Any:
        """The first check of a class, or None."""
        return next((one for one in self.checks if isinstance(one, kind)), None)


def parse_requirement(
    value: object, path: str, problems: Problems, *, companion_of: str | None = None
) -> Requirement | None:
    """Read a requirement.

    Args:
        value: the object of the document.
        path: where it stands.
        problems: collects what is wrong with its members.
        companion_of: the kind of the requirement under whose ``with`` it stands.

    Returns:
        The requirement, or None if something is wrong with it, which ``problems`` then has.

    Raises:
        InvalidPolicy: it is not even an object of a known kind.
    """
    members = mapping(value, path)
    name = members.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        raise InvalidPolicy(
            f"{path}.kind", "is not a known kind", hint="Known are: " + ", ".join(KINDS) + "."
        )
    _check_place(name, path, companion_of)
    before = len(problems.found)
    checks: list[Check] = []
    companions: tuple[Requirement, ...] = ()
    # In the order of the table, so that findings stand in one order however the document is written.
    order = {one: index for index, one in enumerate((*kind.members, *_COMMON))}
    for member in sorted(members, key=lambda one: order.get(one, len(order))):
        given, where = members[member], f"{path}.{member}"
        with problems.collected():
            if member in kind.members:
                checks += kind.members[member](given, where)
            elif member == "with":
                companions = _companions(given, where, problems, name, companion_of)
            elif member == "description":
                description(given, where)
            elif member != "kind":
                raise unknown_member(member, (*kind.members, *_COMMON), path)
    listed = frozenset(members) - set(_COMMON)
    if len(problems.found) == before:
        with problems.collected():
            _check_identity(path, name, kind, checks)
            _check_relaxed(path, members)
    if len(problems.found) != before:
        return None
    for member, implied in kind.implied.items():
        if member not in listed:
            checks += implied(f"{path}.{member}")
    return Requirement(path, name, tuple(checks), companions, listed)


def _check_place(kind: str, path: str, companion_of: str | None) -> None:
    if companion_of is None:
        if kind == "nvidia":
            raise InvalidPolicy(
                f"{path}.kind",
                "cannot stand alone: evidence of a GPU can be relayed from another machine",
                hint='Put it under "with" of the CPU that vouches for it.',
            )
        return
    if kind not in SECONDARY:
        raise InvalidPolicy(
            f"{path}.kind", "cannot be secondary", hint="Can be: " + ", ".join(sorted(SECONDARY)) + "."
        )
    if companion_of in IDENTITY and kind not in IDENTITY:
        raise InvalidPolicy(
            f"{path}.kind",
            f"is evidence that nothing vouches for: {companion_of} says who asks, not what machine it is",
        )


def _companions(
    value: object, path: str, problems: Problems, kind: str, companion_of: str | None
) -> tuple[Requirement, ...]:
    if companion_of is not None:
        raise InvalidPolicy(path, "stands under another with")
    if not isinstance(value, list) or not value:
        raise InvalidPolicy(path, "is not a list of requirements, or is empty")
    if len(value) > len(SECONDARY):
        raise InvalidPolicy(path, f"has more than {len(SECONDARY)} entries")
    read: list[Requirement] = []
    for index, one in enumerate(value):
        with problems.collected():
            requirement = parse_requirement(one, f"{path}[{index}]", problems, companion_of=kind)
            if requirement is not None:
                read.append(requirement)
    kinds = [one.kind for one in read]
    if kind in kinds or len(set(kinds)) != len(kinds):
        raise InvalidPolicy(
            path, "has a kind twice", hint="One requirement is about all evidence of its kind."
        )
    return tuple(read)


def _check_identity(path: str, name: str, kind: Kind, checks: list[Check]) -> None:
    """Refuse a requirement that every machine, or every program, could meet."""
    listed, identifying = set[str](), set[str]()
    for check in checks:
        names = _prefixes(check.path.removeprefix(f"{path}."))
        listed |= names
        if check.identifies:
            identifying |= names
    if any(identifying.issuperset(needed) for needed in kind.needs):
        return
    wanted = ", or ".join(" and ".join(needed) for needed in kind.needs)
    zero = any(listed.issuperset(needed) for needed in kind.needs)
    raise InvalidPolicy(
        path,
        "lists only values that everybody has until somebody sets them"
        if zero
        else "identifies nothing",
        hint=f"A requirement on {name} lists {wanted}.",
    )


def _prefixes(path: str) -> set[str]:
    """``pcr.8`` → ``pcr`` and ``pcr.8``."""
    parts = path.split(".")
    return {".".join(parts[: end + 1]) for end in range(len(parts))}


def _check_relaxed(path: str, members: Mapping[str, Any]) -> None:
    """A GPU that no reference vouches for is pinned by its versions at least."""
    given = members.get("measurements", "match")
    if given not in ("match", ["match"]) and not {"driver", "vbios"} <= set(members):
        raise InvalidPolicy(
            f"{path}.measurements",
            "accepts more than match without listing driver and vbios",
        )
