"""What the key server and its verification workers say to one another, as bytes.

A frame is a 32-bit size and a body. A request is JSON with the sizes of the pieces that follow it; an
answer is JSON alone, since a worker that hostile evidence has taken over must not be able to do more
than lie about that evidence: nothing of it is unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from strongroom import errors
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.roots import Issuer, Roots
from strongroom.errors import EvidenceError, MalformedEvidence, StrongroomError
from strongroom.format.encoding import dump_json, parse_json

__all__ = [
    "MAX_ANSWER_FRAME",
    "SIZE",
    "answer_frame",
    "error_frame",
    "frame",
    "parse_answer",
    "parse_request",
    "request_frame",
    "roots_from_json",
    "roots_to_json",
]

SIZE: Final = struct.Struct(">I")
MAX_ANSWER_FRAME: Final = 1 << 20
"""Bytes: the claims of nine pieces of evidence have some 30 KB."""

_KINDS: Final = {
    name: getattr(errors, name)
    for name in ("MalformedEvidence", "NotAuthentic", "MissingEndorsement", "EvidenceError")
} | {name: getattr(errors, name) for name in ("Unavailable", "StrongroomError")}


def frame(*parts: bytes) -> bytes:
    """The parts behind their common size."""
    return b"".join((SIZE.pack(sum(map(len, parts))), *parts))


def request_frame(evidence: Sequence[Evidence], now: datetime) -> bytes:
    """Ask for the claims of all pieces of evidence."""
    pieces = [piece for one in evidence for piece in (one.data, *one.endorsements)]
    head = dump_json(
        {
            "now": now.isoformat(),
            "evidence": [
                {"kind": one.kind, "sizes": [len(one.data), *map(len, one.endorsements)]}
                for one in evidence
            ],
        }
    )
    return frame(SIZE.pack(len(head)), head, *pieces)


def parse_request(body: bytes) -> tuple[list[Evidence], datetime]:
    """Undo :func:`request_frame`, without the size of the frame."""
    (size,) = SIZE.unpack_from(body)
    head = parse_json(body[SIZE.size : SIZE.size + size])
    position = SIZE.size + size
    evidence = []
    for one in head["evidence"]:
        pieces = []
        for length in one["sizes"]:
            pieces.append(body[position : position + length])
            position += length
        evidence.append(Evidence(one["kind"], pieces[0], tuple(pieces[1:])))
    return evidence, datetime.fromisoformat(head["now"])


def answer_frame(claims: Sequence[Claims], seconds: float) -> bytes:
    """The claims, and how long it took."""
    return frame(dump_json({"claims": [one.to_json() for one in claims], "seconds": seconds}))


def error_frame(error: StrongroomError) -> bytes:
    """Why there are none."""
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _KINDS), "")
    return frame(dump_json({"error": kind, "message": error.message, "hint": error.hint}))


def parse_answer(body: bytes) -> tuple[list[Claims], float]:
    """The claims, and how many seconds it took.

    Raises:
        EvidenceError, Unavailable: what the worker raised.
        MalformedEvidence: the worker answers nonsense.
    """
    try:
        members = parse_json(body)
        if "error" in members:
            kind = _KINDS.get(members["error"], EvidenceError)
            raise kind(str(members["message"]), hint=members["hint"] and str(members["hint"]))
        return [_claims(one) for one in members["claims"]], float(members["seconds"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MalformedEvidence("The evidence could not be verified.") from None


def _claims(members: dict[str, Any]) -> Claims:
    platform = members["platform"]
    not_after = datetime.fromisoformat(members["not_after"])
    if (
        not isinstance(members["values"], dict)
        or not isinstance(platform, str | None)
        or not_after.tzinfo is None
    ):
        raise ValueError
    return Claims(
        kind=str(members["kind"]),
        values=members["values"],
        bound=bytes.fromhex(members["bound"]),
        # Anything that is not plainly false is true.
        debug=members["debug"] is not False,
        platform=platform,
        not_after=not_after,
        test_root=members["test_root"] is not False,
        faults=tuple(map(str, members["faults"])),
        crls={str(issuer): int(number, 16) for issuer, number in members["crls"].items()},
    )


def roots_to_json(roots: Roots) -> dict[str, Any]:
    """What a worker is started with."""

    def text(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, dict):
            return {name: text(member) for name, member in value.items()}
        return [text(member) for member in value] if isinstance(value, list | tuple) else value

    found: dict[str, Any] = text(asdict(roots))
    return found


def roots_from_json(members: dict[str, Any]) -> Roots:
    """Undo :func:`roots_to_json`."""
    issuers = [
        Issuer(
            issuer=one["issuer"],
            audience=one["audience"],
            jwks=one["jwks"] and one["jwks"].encode(),
            root=one["root"] and one["root"].encode(),
            algorithms=tuple(one["algorithms"]),
        )
        for one in members["issuers"]
    ]
    return Roots(
        intel=members["intel"].encode(),
        amd={product: pem.encode() for product, pem in members["amd"].items()},
        nitro=members["nitro"].encode(),
        nvidia_device=members["nvidia_device"].encode(),
        nvidia_rim=members["nvidia_rim"].encode(),
        tpm=tuple(pem.encode() for pem in members["tpm"]),
        issuers=tuple(issuers),
        test=members["test"],
    )
