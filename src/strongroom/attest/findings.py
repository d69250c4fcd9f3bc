"""What was looked at, claim by claim: the reasons of a decision, for records and for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["MISSING", "Finding", "all_ok", "expected_text", "lookup", "value_text"]

_SHOWN: Final = 8
"""Of an allow-list, so that a list of a thousand platforms does not fill a record of each release."""

_LENGTH: Final = 160
"""Characters of one value in a sentence: two digests of SHA-384 have 192, a fingerprint 128."""


class _Missing:
    """The evidence does not say it."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = _Missing()


class Finding(NamedTuple):
    """One thing that was compared. A tuple, since a release makes fifteen, and frozen dataclasses take twice
    as long to make.

    Attributes:
        ok: whether it is as it must be.
        path: the member of the policy, such as ``any[0].mr_td``, or ``evidence[0].debug`` for a rule
            that holds without a policy.
        found: what the evidence says, a JSON value; None where it says nothing.
        expected: what it must be, a JSON value.
        text: a sentence.
    """

    ok: bool
    path: str
    found: Any
    expected: Any
    text: str

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "ok": self.ok,
            "path": self.path,
            "found": self.found,
            "expected": self.expected,
            "text": self.text,
        }


def all_ok(findings: Iterable[Finding]) -> bool:
    """Whether each of them is; never for none at all, since then nothing was looked at."""
    oks = [finding.ok for finding in findings]
    return bool(oks) and all(oks)


def lookup(values: Any, claim: Iterable[str]) -> Any:
    """The value at a path of names; in a list, the number of an entry. ``MISSING`` if there is none."""
    for name in claim:
        if isinstance(values, Mapping):
            values = values.get(name, MISSING)
        elif isinstance(values, list | tuple) and name.isascii() and name.isdigit():
            values = values[int(name)] if int(name) < len(values) else MISSING
        else:
            return MISSING
    return MISSING if values is None else values


def value_text(value: Any) -> str:
    """A value of evidence in a sentence."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LENGTH else text[:_LENGTH] + "…"


def expected_text(listed: tuple[Any, ...]) -> str:
    """What was listed, in a sentence."""
    if len(listed) == 1:
        return value_text(listed[0])
    if len(listed) <= 3:
        return "one of " + ", ".join(map(value_text, listed))
    return f"one of the {len(listed)} that are listed"


def expected_json(listed: tuple[Any, ...]) -> Any:
    """What was listed, for a record; of long lists, how many."""
    if len(listed) == 1:
        return listed[0]
    return list(listed) if len(listed) <= _SHOWN else {"one_of": len(listed)}
