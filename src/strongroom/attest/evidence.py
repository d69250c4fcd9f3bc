"""Evidence as it travels, and what verifying it gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from strongroom.attest.limits import MAX_ENDORSEMENT_COUNT, MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.errors import MalformedEvidence
from strongroom.format.encoding import b64url, canonical_json, unb64url_text

__all__ = ["Claims", "Evidence", "digest_of"]

_MEMBERS: Final = {"kind", "data", "endorsements"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an attester sends of itself. Nothing of it is trusted until :func:`verify` has looked at it.

    Attributes:
        kind: one of :data:`strongroom.attest.registry.KINDS`.
        data: the bytes of the quote, report, document or token; JSON for kinds of several parts.
        endorsements: what vouches for the keys behind it, where the attester has it: certificates,
            CRLs, Intel's collateral. Each is authenticated by a root of the verifier, or is not used.
    """

    kind: str
    data: bytes = field(repr=False)
    endorsements: Sequence[bytes] = field(default=(), repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 over kind ‖ 0x00 ‖ data: what primary evidence vouches for secondary evidence with.

        No identity: many quotes can be changed in places and still verify.
        """
        return hashlib.sha256(self.kind.encode() + b"\x00" + self.data).digest()

    def to_json(self) -> dict[str, Any]:
        """The form of the wire and of evidence files."""
        members: dict[str, Any] = {"kind": self.kind, "data": b64url(self.data)}
        if self.endorsements:
            members["endorsements"] = [b64url(one) for one in self.endorsements]
        return members

    @classmethod
    def from_json(cls, members: object) -> Evidence:
        """Undo :meth:`to_json`.

        Raises:
            MalformedEvidence: it is something else, or larger than the limits.
        """
        if not isinstance(members, dict) or not {"kind", "data"} <= set(members) <= _MEMBERS:
            raise MalformedEvidence("Evidence is an object with kind, data and perhaps endorsements.")
        endorsements = members.get("endorsements", [])
        if not isinstance(endorsements, list) or len(endorsements) > MAX_ENDORSEMENT_COUNT:
            raise MalformedEvidence(
                f"Evidence has a list of at most {MAX_ENDORSEMENT_COUNT} endorsements."
            )
        kind = members["kind"]
        if not isinstance(kind, str) or not re.fullmatch(r"[!-~]{1,40}", kind):
            raise MalformedEvidence("The kind of the evidence is not a short text.")
        texts = [members["data"], *endorsements]
        if not all(isinstance(text, str) for text in texts):
            raise MalformedEvidence("The data of evidence and endorsements are base64url.")
        # Measured as text, so that nothing large is decoded.
        if len(texts[0]) > MAX_EVIDENCE * 4 // 3 + 4:
            raise MalformedEvidence(f"Evidence has more than {MAX_EVIDENCE} bytes.")
        if sum(map(len, texts[1:])) > MAX_ENDORSEMENTS * 4 // 3 + 4:
            raise MalformedEvidence(f"Endorsements have more than {MAX_ENDORSEMENTS} bytes.")
        try:
            data, *rest = map(unb64url_text, texts)
        except ValueError:
            raise MalformedEvidence("The data of evidence and endorsements are base64url.") from None
        return cls(kind, data, tuple(rest))


@dataclass(frozen=True, slots=True)
class Claims:
    """What authentic evidence says. To be authentic is not to be acceptable: see :mod:`.appraise`.

    Attributes:
        kind: of the evidence.
        values: what policies name, JSON values; hexadecimal text, lower case, for bytes.
        bound: what the evidence is bound to: report data, nonce or user data, as it stands there.
        debug: somebody outside can look into the machine.
        platform: identifies the machine, ``kind:hex``; None where evidence does not say.
        not_after: until when the endorsements, the evidence itself for tokens, hold. With a time zone.
        test_root: it was verified with a root that is for tests.
        faults: rules that nobody can relax and that this evidence breaks, besides debug; in words.
        crls: revocation lists that it was checked against: who issued it → its number.
    """

    kind: str
    values: Mapping[str, Any]
    bound: bytes
    debug: bool
    platform: str | None
    not_after: datetime
    test_root: bool = False
    faults: Sequence[str] = ()
    crls: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical claims: the identity of the evidence in audit records."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For records and for people."""
        return {
            "kind": self.kind,
            "values": dict(self.values),
            "bound": self.bound.hex(),
            "debug": self.debug,
            "platform": self.platform,
            "not_after": self.not_after.isoformat(timespec="seconds"),
            "test_root": self.test_root,
            "faults": list(self.faults),
            # They have up to 160 bits, and numbers in JSON 53.
            "crls": {issuer: f"{number:x}" for issuer, number in self.crls.items()},
        }


def digest_of(members: Mapping[str, Any]) -> bytes:
    """:attr:`Claims.digest` of claims that are in their form for records already."""
    return hashlib.sha256(canonical_json(members)).digest()
