"""Approvals of a policy change: m of n people sign the new version, as the version in force says.

What is signed names the key server, and the version that it follows by digest: an approval cannot be
used for another change or at another server, a staging server for instance, and an approved version cannot
be put in a second time on top of something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from strongroom.errors import InvalidPolicy, NotAuthorised
from strongroom.format.encoding import b64url, canonical_json
from strongroom.release.policy import Policy

__all__ = [
    "check_successor",
    "overlapping",
    "policy_for",
    "policy_statement",
    "verify_approval",
    "verify_approvals",
]

_STATEMENT: Final = b"strongroom/v1/policy\x00"


def policy_statement(policy: Policy, previous: Policy | None, server_key: bytes) -> bytes:
    """What an approver signs with Ed25519.

    Args:
        policy: the version that is to come into force.
        previous: the one in force, or None for the first of its id.
        server_key: the signing key of the server, 32 bytes, as its profile has it.
    """
    statement = {
        "v": 1,
        "server": b64url(server_key),
        "id": policy.id,
        "version": policy.version,
        "policy": b64url(policy.digest),
        "previous": None if previous is None else b64url(previous.digest),
    }
    return _STATEMENT + canonical_json(statement)


def check_successor(policy: Policy, previous: Policy | None) -> None:
    """Whether ``policy`` can follow ``previous``: the version rises, so that an old one cannot return.

    Raises:
        InvalidPolicy: it cannot.
    """
    if previous is None:
        return
    if policy.id != previous.id:
        raise InvalidPolicy("id", f"is not {previous.id}, which it would follow")
    if policy.version <= previous.version:
        raise InvalidPolicy(
            "version",
            f"is {policy.version}, and {previous.version} is in force",
            hint="Versions only rise: give the old content a new version to return to it.",
        )


def verify_approval(
    policy: Policy, previous: Policy, name: str, signature: bytes, server_key: bytes
) -> None:
    """Whether ``signature`` is an approval of ``policy`` by an approver of the version in force.

    Raises:
        NotAuthorised: it is not; whatever the new version says of its approvers does not count.
    """
    key = None if previous.approvals is None else previous.approvals.approvers.get(name)
    try:
        if key is None:
            raise InvalidSignature
        public = Ed25519PublicKey.from_public_bytes(key)
        public.verify(signature, policy_statement(policy, previous, server_key))
    except InvalidSignature:
        raise NotAuthorised(
            f"This is no approval of {policy.id} version {policy.version} by {name}.",
            hint="An approver of the version in force signs the statement of the new one.",
        ) from None


def verify_approvals(
    policy: Policy, previous: Policy | None, signatures: Mapping[str, bytes], server_key: bytes
) -> tuple[str, ...]:
    """The names of those who have approved, once they are enough.

    Args:
        policy: the version that is to come into force.
        previous: the one in force; its approvals are asked for, not those of the new one.
        signatures: approver → signature of :func:`policy_statement`.
        server_key: the signing key of the server.

    Raises:
        InvalidPolicy: it cannot follow the version in force.
        NotAuthorised: there are too few, or one of them is none.
    """
    check_successor(policy, previous)
    if previous is None or previous.approvals is None:
        return ()
    for name, signature in signatures.items():
        verify_approval(policy, previous, name, signature, server_key)
    if len(signatures) < previous.approvals.needed:
        raise NotAuthorised(
            f"{len(signatures)} of {previous.approvals.needed} approvals are there for "
            f"{policy.id} version {policy.version}."
        )
    return tuple(sorted(signatures))


def overlapping(policy: Policy, others: Iterable[Policy]) -> list[tuple[str, str]]:
    """Keys of ``policy`` that another enforced policy is about too: (id of the other, entry).

    Two enforced policies never share a key: otherwise a new one could give away what an older one
    guards, without the approvals of that one. A server refuses the change.
    """
    found = []
    for other in others:
        if other.id == policy.id or other.shadow or policy.shadow:
            continue
        found += [(other.id, entry) for entry in policy.keys if _meets(entry, other)]
    return found


def _meets(entry: str, other: Policy) -> bool:
    if not entry.endswith("/"):
        return other.covers(entry)
    # The namespace "a/" has the key "a/b" and the namespace "a/b/", and is in itself; it has no key "a".
    return any(
        one.startswith(entry) or (one.endswith("/") and entry.startswith(one)) for one in other.keys
    )


def policy_for(policies: Sequence[Policy], name: str) -> Policy | None:
    """The enforced policy about a key; None if there is none, or more than one, which is a fault."""
    found = [policy for policy in policies if not policy.shadow and policy.covers(name)]
    return found[0] if len(found) == 1 else None
