"""Claims in records, and back: a lease is renewed upon the claims of its release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.attest.evidence import Claims
from strongroom.errors import MalformedEvidence
from strongroom.release.messages import parse_time

__all__ = ["claims_from_json"]


def claims_from_json(record: Mapping[str, Any]) -> Claims:
    """Undo :meth:`.Claims.to_json`; of a record that the server has made itself.

    Raises:
        MalformedEvidence: it is something else.
    """
    try:
        if type(record["debug"]) is not bool or type(record["test_root"]) is not bool:
            raise TypeError
        return Claims(
            kind=str(record["kind"]),
            values=dict(record["values"]),
            bound=bytes.fromhex(record["bound"]),
            debug=record["debug"],
            platform=None if record["platform"] is None else str(record["platform"]),
            not_after=parse_time(record["not_after"], "The end of the claims"),
            test_root=record["test_root"],
            faults=tuple(map(str, record["faults"])),
            # Not yet in the records of schema 0001.
            crls={str(issuer): int(number, 16) for issuer, number in record.get("crls", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MalformedEvidence("The claims on record are not whole.") from None
