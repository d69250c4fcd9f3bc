"""Audit records for people: what happened in a line, and why it was refused below it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["record_lines"]

_LONG: Final = 100
"""Characters of a value; what is longer is shown by its beginning, and whole with ``--json``."""


def record_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The lines for one record; the first one begins with its number."""
    details = record.get("details")
    details = details if isinstance(details, Mapping) else {}
    parts = [str(record.get(name)) for name in ("sequence", "time", "event")]
    parts += _who(record)
    keys = details.get("keys")
    if not isinstance(keys, list):
        yield "  ".join([*parts, *_pairs(details)])
        return
    # A release: what became of each key, and the machine that asked.
    yield "  ".join([*parts, *_evidence(details), *_pairs(details, ("door", "source", "problem"))])
    for key in keys:
        yield from _key_lines(key if isinstance(key, Mapping) else {})


def _who(record: Mapping[str, Any]) -> list[str]:
    actor, platform = record.get("actor"), record.get("platform")
    found = [f"by {actor.get('name')} ({actor.get('role')})"] if isinstance(actor, Mapping) else []
    found += [str(platform)] if platform is not None else []
    return [*found, "TEST"] if record.get("test") is True else found


def _evidence(details: Mapping[str, Any]) -> list[str]:
    pieces = details.get("evidence")
    kinds = [str(one.get("kind")) for one in pieces or () if isinstance(one, Mapping)]
    return [f"evidence={','.join(kinds) or 'none'}"]


def _key_lines(key: Mapping[str, Any]) -> Iterator[str]:
    name = f"{key.get('name')}@{key.get('version')}"
    policy = (
        f", policy {key['policy']} version {key.get('policy_version')}" if key.get("policy") else ""
    )
    if key.get("code") == "released":
        yield f"    {name}: released version {key.get('released')}{policy}, lease {key.get('lease')}"
    else:
        yield f"    {name}: refused ({key.get('code')}){policy}"
    reasons = key.get("reasons")
    for reason in reasons if isinstance(reasons, list) else ():
        if isinstance(reason, Mapping):
            yield f"        {reason.get('path')}: {reason.get('text')}"


def _pairs(details: Mapping[str, Any], names: tuple[str, ...] | None = None) -> list[str]:
    return [
        f"{name}={_short(value)}"
        for name, value in details.items()
        if (names is None or name in names) and value not in (None, {}, [])
    ]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else text[:_LONG] + "…"
