"""Policies: which machine may have which keys, and on what terms. Declarative, default deny, no code.

A document has ``id``, ``version``, ``keys`` and ``any``, a list of alternatives of which one must hold in
full; the other members narrow further. What is not known, empty, a wildcard, or longer than a limit is
refused when the document is read, with the path of the member.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from strongroom.attest.requirements import Requirement, parse_requirement
from strongroom.attest.requirements_values import (
    Problems,
    boolean,
    description,
    entries,
    integer,
    mapping,
    moment,
    unknown_member,
)
from strongroom.errors import InvalidPolicy, UsageError
from strongroom.format.encoding import canonical_json
from strongroom.release.limits import MAX_POLICY
from strongroom.release.names import check_name
from strongroom.release.policy_terms import (
    Approvals,
    LeaseTerms,
    Versions,
    parse_approvals,
    parse_bundles,
    parse_lease,
    parse_versions,
)
from strongroom.release.provision import Provision, parse_provisions

__all__ = ["Policy"]

_MAX_VERSION: Final = 10**9
_MAX_ALTERNATIVES: Final = 64
"""Alternatives of one policy: each costs some 50 µs in every decision."""

_NEEDED: Final = ("id", "version", "keys", "any")


def _id(value: object, path: str) -> str:
    try:
        return check_name(value)
    except UsageError as error:
        raise InvalidPolicy(path, "cannot name a policy", hint=error.hint) from None


def _key_entry(value: object, path: str) -> str:
    if isinstance(value, str) and any(char in value for char in "*?[{"):
        raise InvalidPolicy(
            path, "has a wildcard", hint='Write "models/llama/" for all keys whose names begin so.'
        )
    try:
        check_name(value.removesuffix("/") if isinstance(value, str) else value)
    except UsageError as error:
        raise InvalidPolicy(path, "names no key and no namespace", hint=error.hint) from None
    return str(value)


def _keys(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidPolicy(path, "is not a list")
    return entries(value, path, _key_entry)


def _window(document: Mapping[str, Any], problems: Problems) -> tuple[datetime | None, datetime | None]:
    ends: list[datetime | None] = []
    for name in ("not_before", "not_after"):
        ends.append(None)
        with problems.collected():
            if name in document:
                ends[-1] = moment(document[name], name)
    start, end = ends
    if start is not None and end is not None and start >= end:
        problems.found.append(InvalidPolicy("not_after", "is not later than not_before"))
    return start, end


def _alternatives(value: object, path: str, problems: Problems) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidPolicy(path, "is not a list of requirements, or is empty")
    if len(value) > _MAX_ALTERNATIVES:
        raise InvalidPolicy(path, f"has more than {_MAX_ALTERNATIVES} entries")
    read = []
    for index, one in enumerate(value):
        with problems.collected():
            read.append(parse_requirement(one, f"{path}[{index}]", problems))
    return tuple(one for one in read if one is not None)


_SIMPLE: Final[Mapping[str, Callable[[object, str], Any]]] = {
    "id": _id,
    "version": integer(1, _MAX_VERSION),
    "keys": _keys,
    "description": description,
    "shadow": boolean,
    "test_roots": boolean,
    "lease": parse_lease,
    "versions": parse_versions,
    "revoked_bundles": parse_bundles,
    "approvals": parse_approvals,
    "gramine": parse_provisions,
}
_KNOWN: Final = (*_SIMPLE, "any", "not_before", "not_after")


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a policy.

    Attributes:
        id: its name; the versions of one id follow each other.
        version: a number that only rises.
        keys: names of keys, and namespaces that end in ``/``.
        alternatives: one of them must hold in full.
        lease: the terms on which keys are given.
        versions: which versions of a key may be given.
        revoked_bundles: sealed models whose keys are not given any more.
        not_before: when it begins to release, or None.
        not_after: when it stops, or None.
        shadow: evaluated and recorded, and not enforced.
        test_roots: takes evidence under roots for tests, where the server does so too.
        approvals: who must approve the version that follows this one; None asks nobody.
        gramine: what clients of Gramine are given, who name no key.
        digest: SHA-256 of the canonical JSON of the document.
    """

    id: str
    version: int
    keys: tuple[str, ...]
    alternatives: tuple[Requirement, ...]
    lease: LeaseTerms
    versions: Versions
    revoked_bundles: frozenset[bytes]
    not_before: datetime | None
    not_after: datetime | None
    shadow: bool
    test_roots: bool
    approvals: Approvals | None
    gramine: tuple[Provision, ...]
    digest: bytes
    _canonical: bytes = field(repr=False)
    _entries: frozenset[str] = field(repr=False)

    @classmethod
    def parse(cls, document: object) -> Policy:
        """Read a document: what JSON or TOML gives.

        Raises:
            InvalidPolicy: it breaks a rule; the first that was found.
        """
        problems = Problems()
        policy = cls.read(document, problems)
        problems.raise_first()
        assert policy is not None
        return policy

    @classmethod
    def read(cls, document: object, problems: Problems) -> Policy | None:
        """As :meth:`parse`, with everything that is wrong collected; None if something is."""
        try:
            return cls._read(mapping(document, "the document"), problems)
        except InvalidPolicy as error:
            problems.found.append(error)
            return None

    @classmethod
    def _read(cls, document: Mapping[str, Any], problems: Problems) -> Policy | None:
        canonical = _canonical(document)
        found: dict[str, Any] = {}
        for name in _NEEDED:
            if name not in document:
                problems.found.append(InvalidPolicy(name, "is missing"))
        for name, value in document.items():
            with problems.collected():
                if name in _SIMPLE:
                    found[name] = _SIMPLE[name](value, name)
                elif name == "any":
                    found["any"] = _alternatives(value, name, problems)
                elif name not in _KNOWN:
                    raise unknown_member(name, _KNOWN, "")
        not_before, not_after = _window(document, problems)
        if problems.found:
            return None
        policy = cls(
            id=found["id"],
            version=found["version"],
            keys=found["keys"],
            alternatives=found["any"],
            lease=found.get("lease", LeaseTerms()),
            versions=found.get("versions", Versions()),
            revoked_bundles=found.get("revoked_bundles", frozenset()),
            not_before=not_before,
            not_after=not_after,
            shadow=found.get("shadow", False),
            test_roots=found.get("test_roots", False),
            approvals=found.get("approvals"),
            gramine=found.get("gramine", ()),
            digest=hashlib.sha256(canonical).digest(),
            _canonical=canonical,
            _entries=frozenset(found["keys"]),
        )
        policy._check_gramine()
        return policy

    def _check_gramine(self) -> None:
        if self.gramine and not any(one.kind == "sgx" for one in self.alternatives):
            raise InvalidPolicy("gramine", "is for enclaves, and no alternative is about sgx")
        for index, one in enumerate(self.gramine):
            if not self.covers(one.key.name):
                raise InvalidPolicy(f"gramine[{index}].key", "is not among the keys of the policy")

    def covers(self, name: str) -> bool:
        """Whether it is about the key of this name: listed, or in a namespace that is."""
        if name in self._entries:
            return True
        at = name.find("/")
        while at >= 0:
            if name[: at + 1] in self._entries:
                return True
            at = name.find("/", at + 1)
        return False

    def to_json(self) -> dict[str, Any]:
        """The document, as it was read."""
        document: dict[str, Any] = json.loads(self._canonical)
        return document


def _canonical(document: Mapping[str, Any]) -> bytes:
    try:
        canonical = canonical_json(dict(document))
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else "is nested too deeply"
        raise InvalidPolicy("the document", problem) from None
    if len(canonical) > MAX_POLICY:
        raise InvalidPolicy("the document", f"has more than {MAX_POLICY} bytes")
    return canonical
