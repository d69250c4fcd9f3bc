"""What goes into the store and comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from strongroom.release.policy import Policy

__all__ = [
    "ROLES",
    "STATES",
    "Actor",
    "Grant",
    "KeyRecord",
    "NodeRecord",
    "PolicyRecord",
    "ReleaseOutcome",
    "ReleaseWrite",
    "Snapshot",
    "TokenRecord",
    "lease_on_record",
]

ROLES: Final = ("auditor", "operator", "owner")

STATES: Final = ("active", "deprecated", "revoked", "destroyed")
"""Of a version of a key; ``destroyed`` is for ever, since the key itself is erased."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something; ``kind`` says how he was recognised: token, mtls, local."""

    name: str
    role: str
    kind: str

    def to_json(self) -> dict[str, Any]:
        """For audit records."""
        return {"name": self.name, "role": self.role, "kind": self.kind}


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A version of a key; the key itself is not in it.

    Attributes:
        name: of the key.
        version: from 1 on.
        bundle: of the sealed model that the key opens, 16 bytes.
        state: one of :data:`STATES`.
        current: it is what ``current`` means.
        created: when it was registered.
        epoch: counts changes of the state; the wrapped key is bound to it.
        meta: of whoever registered it.
        reason: that was given for the last change of the state.
    """

    name: str
    version: int
    bundle: bytes
    state: str
    current: bool
    created: datetime
    epoch: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A version of a policy.

    Attributes:
        id: of the policy.
        version: of it.
        status: active, pending, superseded or rejected.
        policy: the document.
        digest: SHA-256 of its canonical form, hexadecimal.
        approvals: who has approved it.
        needed: how many must.
        created: when it was put here.
        author: who put it here.
        previous: digest of the version in force when it was put here, or None.
        signature: of the server over all that, base64url.
    """

    id: str
    version: int
    status: str
    policy: Mapping[str, Any]
    digest: str
    approvals: tuple[str, ...]
    needed: int
    created: datetime
    author: str
    previous: str | None
    signature: str


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A machine to which keys were released, or that was evicted.

    Attributes:
        platform: its name, ``kind:hex``.
        evicted: it gets no keys.
        reason: of the eviction.
        leases: that it holds now.
        first_seen: of its first release, or None.
        last_seen: of its last release or renewal, or None.
    """

    platform: str
    evicted: bool
    reason: str | None
    leases: int
    first_seen: datetime | None
    last_seen: datetime | None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of a token of an administrator; ``expires`` None means never."""

    id: str
    name: str
    role: str
    created: datetime
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision needs and that seldom changes, by administrators nearly always.

    Attributes:
        revision: counts their changes; a release is committed at the revision it was decided at.
        policies: in force.
        shadows: in force, evaluated and recorded only.
        evicted: platforms.
        newest_crls: issuer → number of the newest of its revocation lists that was seen.
    """

    revision: int
    policies: tuple[Policy, ...]
    shadows: tuple[Policy, ...]
    evicted: frozenset[str]
    newest_crls: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """A key that shall be released.

    Attributes:
        lease_id: new and random.
        name: of the key.
        version: of the key.
        not_after: end of the lease.
        max_holders: distinct platforms with a lease on any version of the key; None has no bound.
        policy_id: of the policy that allows it.
        policy_version: of it.
        claims: upon which it is allowed, :meth:`.Claims.to_json`; a renewal judges them anew.
        holder: the machine by the name that its policy knows it by; None takes the platform of the write.
            Keys of one request may be under policies about different names of who asks.
    """

    lease_id: str
    name: str
    version: int
    not_after: datetime
    max_holders: int | None
    policy_id: str
    policy_version: int
    claims: Sequence[Mapping[str, Any]]
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseWrite:
    """A decision that shall become a fact.

    Attributes:
        challenge: that the request was made with.
        challenge_expires: when it does.
        revision: of the snapshot that the decision rests on.
        platform: who asks.
        grants: keys to be released; none where everything is refused.
        audit: details of the record. Where its list ``keys`` has the lease of a grant that is refused
            after all, the record says so instead.
    """

    challenge: bytes
    challenge_expires: datetime
    revision: int
    platform: str
    grants: Sequence[Grant]
    audit: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """What became of a :class:`ReleaseWrite`.

    Attributes:
        stale: nothing was written, since an administrator has changed something: decide again.
        challenge_used: nothing was granted, since the challenge was used before or has expired.
        refused: lease → code, of grants that were refused after all; the others are granted.
    """

    stale: bool = False
    challenge_used: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


def lease_on_record(id: str) -> str:
    """What audit records call a lease: who knows its id can renew it and give it back, and auditors only read."""
    return hashlib.sha256(id.encode()).hexdigest()[:32]
