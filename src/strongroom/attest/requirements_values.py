"""The values that a requirement can list, read strictly: one spelling, no wildcards, nothing empty."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from strongroom.errors import InvalidPolicy

__all__ = [
    "MAX_LIST",
    "Leaf",
    "Problems",
    "boolean",
    "choice",
    "description",
    "entries",
    "hexadecimal",
    "integer",
    "mapping",
    "matches",
    "moment",
    "text",
    "true",
    "unknown_member",
]

MAX_LIST: Final = 4096
"""Entries of one list: the platforms of a large fleet."""

_MAX_TEXT: Final = 500
_HEX: Final = re.compile(r"[0-9a-f]+")
_WILDCARDS: Final = frozenset({"any", "all", "ignore"})
"""Words that other systems take for "do not check"; as values they are an accident at best."""

Leaf = Callable[[object, str], Any]
"""Reads one value at a path; raises InvalidPolicy."""


class Problems:
    """Collects what is wrong with a document, so that all of it can be said at once."""

    def __init__(self) -> None:
        self.found: list[InvalidPolicy] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an InvalidPolicy of the block, and go on behind it."""
        try:
            yield
        except InvalidPolicy as error:
            self.found.append(error)

    def raise_first(self) -> None:
        """Raise the first that was found.

        Raises:
            InvalidPolicy: if there was one.
        """
        if self.found:
            raise self.found[0]


def mapping(value: object, path: str) -> Mapping[str, Any]:
    """An object that is not empty."""
    if not isinstance(value, Mapping):
        raise InvalidPolicy(path, "is not an object")
    if not value:
        raise InvalidPolicy(path, "is empty")
    return value


def unknown_member(name: object, known: Collection[str], path: str) -> InvalidPolicy:
    """The error for a member that nobody knows, with what may have been meant."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}?" if close else "Known are: " + ", ".join(sorted(known)) + "."
    return InvalidPolicy(f"{path}.{name}" if path else str(name), "is not a known member", hint=hint)


def entries(value: object, path: str, leaf: Leaf) -> tuple[Any, ...]:
    """One value, or a list of values of which any will do.

    Raises:
        InvalidPolicy: the list is empty, too long, or names something twice.
    """
    if not isinstance(value, list):
        return (leaf(value, path),)
    if not value:
        raise InvalidPolicy(
            path, "is an empty list", hint="Leave the member out, or list what is allowed."
        )
    if len(value) > MAX_LIST:
        raise InvalidPolicy(path, f"has more than {MAX_LIST} entries")
    read = tuple(leaf(entry, f"{path}[{index}]") for index, entry in enumerate(value))
    if len(set(map(_key, read))) != len(read):
        raise InvalidPolicy(path, "lists the same twice")
    return read


def _key(value: Any) -> tuple[type, Any]:
    return type(value), value


def matches(pattern: re.Pattern[str], what: str) -> Leaf:
    """A text that is all of ``pattern``."""

    def read(value: object, path: str) -> str:
        found = text(value, path)
        if not pattern.fullmatch(found):
            raise InvalidPolicy(path, f"is not {what}")
        return found

    return read


def description(value: object, path: str) -> str:
    """A text for people, which nothing is compared with."""
    if not isinstance(value, str):
        raise InvalidPolicy(path, "is not a text")
    if not value or len(value) > _MAX_TEXT or not value.isprintable():
        raise InvalidPolicy(path, f"is not a text of 1 to {_MAX_TEXT} printable characters")
    return value


def text(value: object, path: str) -> str:
    """A text, compared as it stands."""
    value = description(value, path)
    if "*" in value or value.lower() in _WILDCARDS:
        raise InvalidPolicy(
            path,
            "is a wildcard",
            hint="Leave a member out if it must not be compared, or list the values.",
        )
    return value


def hexadecimal(*sizes: int) -> Leaf:
    """Bytes in lower-case hexadecimal, of one of the sizes."""

    def read(value: object, path: str) -> str:
        found = text(value, path)
        if not _HEX.fullmatch(found):
            lower = _HEX.fullmatch(found.lower()) is not None
            raise InvalidPolicy(
                path,
                "has upper-case letters" if lower else "is not hexadecimal",
                hint="Write hexadecimal digits in lower case, without 0x, colons or spaces.",
            )
        if len(found) not in [size * 2 for size in sizes]:
            wanted = " or ".join(str(size * 2) for size in sizes)
            raise InvalidPolicy(path, f"has {len(found)} hexadecimal digits, not {wanted}")
        return found

    return read


def integer(least: int, most: int) -> Leaf:
    """A whole number within bounds."""

    def read(value: object, path: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise InvalidPolicy(path, f"is not a whole number from {least} to {most}")
        return value

    return read


def boolean(value: object, path: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidPolicy(path, "is neither true nor false")
    return value


def true(value: object, path: str) -> bool:
    """True: a member that can only be demanded."""
    if value is not True:
        raise InvalidPolicy(path, "is not true", hint="Leave it out where it must not be compared.")
    return True


def choice(*names: str) -> Leaf:
    """One of a few words."""

    def read(value: object, path: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise InvalidPolicy(path, "is not one of " + ", ".join(names))
        return value

    return read


def moment(value: object, path: str) -> datetime:
    """A moment of RFC 3339, with its time zone."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None or len(str(value)) < len("2026-03-01T12:00Z"):
        raise InvalidPolicy(path, "is not a time as in 2026-03-01T12:00:00Z")
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise InvalidPolicy(path, "is not a time as in 2026-03-01T12:00:00Z") from None
