"""The messages of the protocol: JSON on the wire, checked once, here."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCES
from strongroom.crypto.derive import BUNDLE_SIZE
from strongroom.crypto.hpke import KEMS
from strongroom.errors import UsageError
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.limits import CHALLENGE_SIZE, MAX_KEYS
from strongroom.release.names import KeyName, check_name, check_version

__all__ = ["Challenge", "ReleaseRequest", "parse_time", "time_text"]


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: object, what: str) -> datetime:
    """A moment of RFC 3339.

    Raises:
        UsageError: it is none, or has no time zone.
    """
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the first day of the year 1 may be none in UTC
        pass
    raise UsageError(f"{what} is not a time as in 2026-03-01T12:00:00Z.")


def _members(
    value: object, what: str, needed: AbstractSet[str], optional: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not an object.")
    if missing := sorted(needed - set(value)):
        raise UsageError(f"{what} lacks {', '.join(missing)}.")
    if unknown := sorted(set(value) - needed - optional):
        raise UsageError(f"{what} has unknown members: {', '.join(unknown)}.")
    return value


def _bytes(value: object, what: str, size: int) -> bytes:
    try:
        data = unb64url_text(value)
    except ValueError as error:
        raise UsageError(f"{what} {error}.") from None
    if len(data) != size:
        raise UsageError(f"{what} has {len(data)} bytes, not {size}.")
    return data


@dataclass(frozen=True, slots=True)
class Challenge:
    """A server's challenge: good once, until ``expires``."""

    challenge: bytes
    server_id: str
    expires: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "challenge": b64url(self.challenge),
            "server_id": self.server_id,
            "expires": time_text(self.expires),
        }

    @classmethod
    def from_json(cls, value: object) -> Challenge:
        """Undo :meth:`to_json`.

        Raises:
            UsageError: it is something else.
        """
        members = _members(value, "The challenge", {"challenge", "server_id", "expires"})
        server_id = members["server_id"]
        if not isinstance(server_id, str) or not 0 < len(server_id) <= 200:
            raise UsageError("The server's id is not a short text.")
        return cls(
            _bytes(members["challenge"], "The challenge", CHALLENGE_SIZE),
            server_id,
            parse_time(members["expires"], "The end of the challenge"),
        )


def _wanted(value: object, index: int) -> WantedKey:
    what = f"keys[{index}]"
    members = _members(value, what, {"name", "version", "bundle"})
    version = members["version"]
    return WantedKey(
        KeyName(check_name(members["name"]), None if version == "current" else check_version(version)),
        _bytes(members["bundle"], f"{what}.bundle", BUNDLE_SIZE),
    )


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """What an attester sends: a challenge, a one-time key, what it wants, and evidence.

    Evidence may be absent where an identity without a TEE (mTLS, a token of the transport) is enough
    for the policies of all keys. The first piece is primary, the others are secondary.
    """

    challenge: bytes
    suite: str
    public_key: bytes
    keys: Sequence[WantedKey]
    evidence: Sequence[Evidence] = field(default=())

    def binding(self, server_id: str) -> Binding:
        """What the evidence must be bound to when it is asked of this server."""
        return Binding(self.challenge, server_id, self.suite, self.public_key, self.keys)

    def to_json(self) -> dict[str, Any]:
        return {
            "challenge": b64url(self.challenge),
            "recipient": {"suite": self.suite, "public_key": b64url(self.public_key)},
            "keys": [key.to_json() for key in self.keys],
            "evidence": [evidence.to_json() for evidence in self.evidence],
        }

    @classmethod
    def from_json(cls, value: object) -> ReleaseRequest:
        """Undo :meth:`to_json`.

        Raises:
            UsageError, MalformedEvidence: it is something else, or above a limit.
        """
        members = _members(value, "The request", {"challenge", "recipient", "keys"}, {"evidence"})
        recipient = _members(members["recipient"], "recipient", {"suite", "public_key"})
        kem = KEMS.get(recipient["suite"]) if isinstance(recipient["suite"], str) else None
        if kem is None:
            raise UsageError(
                "The suite of the recipient is not known.", hint="Known: " + ", ".join(KEMS)
            )
        public_key = _bytes(recipient["public_key"], "recipient.public_key", kem.public_size)
        keys, evidence = members["keys"], members.get("evidence", [])
        if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
            raise UsageError(f"keys is a list of one to {MAX_KEYS} keys.")
        if not isinstance(evidence, list) or len(evidence) > MAX_EVIDENCES:
            raise UsageError(f"evidence is a list of at most {MAX_EVIDENCES} pieces.")
        wanted = tuple(_wanted(key, index) for index, key in enumerate(keys))
        if len({(one.key, one.bundle) for one in wanted}) != len(wanted):
            raise UsageError("A key is asked for twice.")
        return cls(
            _bytes(members["challenge"], "The challenge", CHALLENGE_SIZE),
            kem.alg,
            public_key,
            wanted,
            tuple(map(Evidence.from_json, evidence)),
        )
