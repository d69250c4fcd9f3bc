"""Canonical base64url and strict JSON: one spelling for every value."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from strongroom.errors import Malformed
from strongroom.format.limits import MAX_JSON_DEPTH

__all__ = ["b64url", "dump_json", "load_json", "unb64url"]

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")


def b64url(data: bytes) -> str:
    """RFC 4648 §5 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64url(text: object, field: str, size: int | None = None) -> bytes:
    """Undo :func:`b64url`; ``size`` is the number of bytes expected.

    Raises:
        Malformed: not a string, not base64url, padded, not canonical, or of another size.
    """
    if not isinstance(text, str) or not _ALPHABET.fullmatch(text):
        raise Malformed(field, "is not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise Malformed(field, "is not base64url") from None
    if b64url(data) != text:
        raise Malformed(field, "is not canonical base64url")
    if size is not None and len(data) != size:
        raise Malformed(field, f"has {len(data)} bytes, not {size}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("has a duplicate key")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")


def _check_depth(value: object, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise RecursionError
    for member in value.values() if isinstance(value, dict) else value:
        _check_depth(member, left - 1)


def load_json(data: bytes, field: str) -> dict[str, Any]:
    """Parse a JSON object: UTF-8 without BOM, no duplicate keys, no NaN, no number above what a
    double holds, no lone surrogates, at most 32 levels.

    Raises:
        Malformed: anything else.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check_depth(value, MAX_JSON_DEPTH)
        # A lone surrogate and 1e999 can be said in JSON and not be written again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError:
        raise Malformed(field, "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Malformed(field, f"is not JSON ({error.msg} at {error.pos})") from None
    except ValueError as error:
        raise Malformed(field, str(error).split(";")[0]) from None
    except RecursionError:
        raise Malformed(field, "is nested too deeply") from None
    if not isinstance(value, dict):
        raise Malformed(field, "is not a JSON object")
    return value


def dump_json(value: dict[str, Any]) -> bytes:
    """Compact UTF-8; members in the order given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")
