"""Policies as text: strict JSON, or TOML, which people find easier to write."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime, time
from typing import Any

from strongroom.errors import InvalidPolicy
from strongroom.format.encoding import parse_json
from strongroom.release.limits import MAX_POLICY

__all__ = ["read_policy"]


def read_policy(data: bytes, *, toml: bool = False) -> dict[str, Any]:
    """The document in a file, for :meth:`.Policy.parse`.

    Args:
        data: the file. In JSON no name stands twice; in TOML the parser sees to that.
        toml: whether it is TOML; times of TOML become text.

    Raises:
        InvalidPolicy: it is neither.
    """
    # White space of a person's indentation counts; the canonical form has its own limit.
    if len(data) > 2 * MAX_POLICY:
        raise InvalidPolicy("the document", f"has more than {2 * MAX_POLICY} bytes")
    try:
        return _read_toml(data) if toml else parse_json(data)
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise InvalidPolicy("the document", problem) from None
    except RecursionError:
        raise InvalidPolicy("the document", "is nested too deeply") from None


def _read_toml(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not TOML ({str(error)[:200]})") from None
    found: dict[str, Any] = _plain(document)
    return found


def _plain(value: Any) -> Any:
    """TOML's times as text; one without a zone is nobody's time, and is refused where it is read."""
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date | time):
        return value.isoformat()
    return value
