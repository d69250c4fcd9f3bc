"""The audit trail: records in a hash chain, and the check that nobody has touched it.

A record is canonical JSON with its number and the hash of the record before it; its hash is SHA-256 of a
domain, then those bytes. Whoever can write to the database can compute a whole chain anew: what he cannot
do is make it lead through a head that somebody has kept elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.errors import AuditBroken
from strongroom.format.encoding import canonical_json

__all__ = ["GENESIS", "Head", "hash_of", "record_hash", "verify_chain"]

_DOMAIN: Final = b"strongroom/v1/audit\x00"
_NEEDED: Final = frozenset({"v", "store", "sequence", "previous", "time", "event", "details", "hash"})


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """A place in the chain: the number of a record and its hash, lower-case hexadecimal."""

    sequence: int
    hash: str


GENESIS: Final = Head(0, "0" * 64)
"""Before the first record."""


def record_hash(record: Mapping[str, Any]) -> str:
    """The hash of a record, which is not itself part of what is hashed.

    Raises:
        ValueError: the record has no canonical form.
    """
    return hash_of(canonical_json({name: value for name, value in record.items() if name != "hash"}))


def hash_of(content: bytes) -> str:
    """The hash of a record in canonical form, without its hash."""
    return hashlib.sha256(_DOMAIN + content).hexdigest()


def verify_chain(
    records: Iterable[Mapping[str, Any]], start: Head = GENESIS, known: Iterable[Head] = ()
) -> Head:
    """Check records, in order, and return where they end.

    Args:
        records: each with its ``hash``, from the one after ``start`` on.
        start: where the records before them ended.
        known: heads that were kept elsewhere, an anchor or signed heads: the chain must lead through
            every one that is later than ``start``.

    Raises:
        AuditBroken: a record was changed, left out, added or cut off; says which.
    """
    kept: dict[int, str] = {}
    for head in known:
        if kept.setdefault(head.sequence, head.hash) != head.hash:
            raise AuditBroken(f"Two heads that were kept disagree about record {head.sequence}.")
    at, store, time = start, None, ""
    _compare(kept, at)
    for record in records:
        at = _next(record, at)
        if store not in (None, record["store"]):
            raise _broken(at.sequence, "is of another store")
        store = record["store"]
        # Times of one fixed form: the order of the text is the order of time.
        if str(record["time"]) < time and record["event"] != "clock.accepted":
            raise _broken(at.sequence, "is older than the one before it")
        time = str(record["time"])
        _compare(kept, at)
    last = max(kept, default=0)
    if last > at.sequence:
        raise AuditBroken(
            f"The audit trail was cut: it ends at record {at.sequence}, and record {last} is known.",
            hint=_HINT,
        )
    return at


_HINT: Final = "Records were lost or tampered with: compare with a backup and with exported records."


def _broken(sequence: int, problem: str) -> AuditBroken:
    return AuditBroken(f"The audit trail is broken: record {sequence} {problem}.", hint=_HINT)


def _next(record: Mapping[str, Any], at: Head) -> Head:
    expected = at.sequence + 1
    sequence = record.get("sequence")
    if type(sequence) is not int or not set(record) >= _NEEDED:
        raise _broken(expected, "is no record")
    if sequence > expected:
        raise _broken(expected, f"was left out: after {at.sequence} comes {sequence}")
    if sequence < expected:
        raise _broken(expected, f"was added: after {at.sequence} comes {sequence}")
    try:
        found = record_hash(record)
    except ValueError:
        found = ""
    if not hmac.compare_digest(found, str(record["hash"])):
        raise _broken(sequence, "was changed: it does not have its hash")
    if not hmac.compare_digest(at.hash, str(record["previous"])):
        raise _broken(sequence, f"does not follow record {at.sequence}: one of them was exchanged")
    return Head(sequence, found)


def _compare(kept: Mapping[int, str], at: Head) -> None:
    if at.sequence in kept and not hmac.compare_digest(kept[at.sequence], at.hash):
        raise _broken(at.sequence, "was changed: its hash is not the one that was kept elsewhere")
