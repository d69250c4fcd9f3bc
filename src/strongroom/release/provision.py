"""What a policy says of Gramine's secret provisioning: which key, in which form, under which name.

Clients of Gramine name no key. They show a quote, and say which server they mean (SNI): an entry that
answers to that name, in a policy that allows the machine, gives its key; and where two would, none does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from strongroom.attest.requirements_values import choice, entries, mapping, matches, unknown_member
from strongroom.errors import InvalidPolicy, UsageError
from strongroom.release.names import KeyName

__all__ = ["FORMS", "Provision", "parse_provisions"]

FORMS: Final = ("wrap-key", "wrap-key-hex", "key", "text")
"""The wrap key of the model's files in Gramine's format, as 16 bytes or as text; the model's key, as 32
bytes or as text."""

_MEMBERS: Final = ("key", "form", "names")
_MOST: Final = 64
_NAME: Final = matches(re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"), "a host in lower case")


@dataclass(frozen=True, slots=True)
class Provision:
    """One entry.

    Attributes:
        key: that is given; without a version, the current one.
        form: one of :data:`FORMS`.
        names: of the server, to which it answers; none answers to any.
    """

    key: KeyName
    form: str
    names: frozenset[str] = frozenset()

    def answers(self, name: str | None) -> bool:
        """Whether a client that asked for ``name``, or for none, is meant."""
        return not self.names or name in self.names


def _provision(value: object, path: str) -> Provision:
    members = mapping(value, path)
    for name in members:
        if name not in _MEMBERS:
            raise unknown_member(name, _MEMBERS, path)
    for name in ("key", "form"):
        if name not in members:
            raise InvalidPolicy(f"{path}.{name}", "is missing")
    given = members["key"]
    try:
        key = KeyName.parse(given if isinstance(given, str) else "")
    except UsageError as error:
        raise InvalidPolicy(f"{path}.key", "names no key", hint=error.hint) from None
    names = entries(members["names"], f"{path}.names", _NAME) if "names" in members else ()
    return Provision(key, choice(*FORMS)(members["form"], f"{path}.form"), frozenset(names))


def parse_provisions(value: object, path: str) -> tuple[Provision, ...]:
    """Read the member ``gramine``.

    Raises:
        InvalidPolicy: it is no list of entries, or two of them answer to the same name.
    """
    if not isinstance(value, list) or not value:
        raise InvalidPolicy(path, "is not a list of entries, or is empty")
    if len(value) > _MOST:
        raise InvalidPolicy(path, f"has more than {_MOST} entries")
    read = tuple(_provision(one, f"{path}[{index}]") for index, one in enumerate(value))
    _check_apart(read, path)
    return read


def _check_apart(read: Sequence[Provision], path: str) -> None:
    """Entries of one policy ask the same of a machine: the name alone tells them apart."""
    for (first, one), (second, other) in itertools.combinations(enumerate(read), 2):
        if not one.names or not other.names or one.names & other.names:
            raise InvalidPolicy(
                f"{path}[{second}].names",
                f"answers to a name that {path}[{first}] answers to",
                hint="A client gets one key: give each entry names of its own.",
            )
