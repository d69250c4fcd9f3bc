"""What administrators have made of the store, as one digest that the server signs.

Keys are bound to their records by how they are wrapped. Policies, evictions, the newest revocation
lists, which version is current, and a record put back as it once was are not: so every change signs all
of it, together with the number of its audit record. Somebody who can write to the database can put back an old state only with an old
audit trail, which the anchor shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, select, update

from strongroom.errors import HeaderTampered
from strongroom.format.encoding import canonical_json
from strongroom.keyserver.store.tables import audit, crls, keys, nodes, policies, store

__all__ = ["State", "read_crls", "sign_state", "state_changed", "verify_state"]

_DOMAIN: Final = b"strongroom/v1/state\x00"


def state_changed() -> HeaderTampered:
    """What is said of a database whose contents are not those that the server has signed."""
    return HeaderTampered(
        "The database was changed by somebody else: it does not hold what the server has signed.",
        hint="Restore a backup, and find out who can write to the database.",
    )


@dataclass(frozen=True, slots=True)
class State:
    """What the server has signed.

    Attributes:
        revision: of it.
        keys: name and version → bundle, state, epoch, and whether it is the current one.
    """

    revision: int
    keys: Mapping[tuple[str, int], tuple[bytes, str, int, bool]]


def read_crls(connection: Connection) -> dict[str, int]:
    """Issuer → number of the newest of its revocation lists that was seen."""
    return {one.issuer: int(one.number, 16) for one in connection.execute(select(crls))}


def _read(connection: Connection) -> tuple[bytes, Mapping[tuple[str, int], Any]]:
    """The digest of the state as it is, and the keys in it."""
    query = select(
        keys.c.name, keys.c.version, keys.c.bundle, keys.c.state, keys.c.epoch, keys.c.current
    )
    found = {
        (name, version): (bytes(bundle), state, epoch, bool(current))
        for name, version, bundle, state, epoch, current in connection.execute(query)
    }
    in_force = connection.execute(
        select(policies.c.id, policies.c.version, policies.c.digest).where(
            policies.c.status == "active"
        )
    )
    evicted = connection.execute(select(nodes.c.platform).where(nodes.c.evicted.is_(True)))
    newest_crls = read_crls(connection)
    # Sorted here: databases sort text in orders of their own.
    content = {
        "keys": [[*name, bundle.hex(), *rest] for name, (bundle, *rest) in sorted(found.items())],
        "policies": sorted(list(row) for row in in_force),
        "evicted": sorted(evicted.scalars()),
        # As it was before there were any, where there are none.
        **(
            {"crls": {one: f"{number:x}" for one, number in newest_crls.items()}} if newest_crls else {}
        ),
    }
    # As canonical JSON, without its check of every value: 10,000 keys take 50 ms and not 150.
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest(), found


def _statement(store_id: str, revision: int, sequence: int, digest: bytes) -> bytes:
    return _DOMAIN + canonical_json(
        {"store": store_id, "revision": revision, "sequence": sequence, "state": digest.hex()}
    )


def sign_state(
    connection: Connection, store_id: str, revision: int, sequence: int, key: Ed25519PrivateKey
) -> None:
    """Sign the state as it is now.

    Args:
        connection: in the writing transaction that has changed it.
        store_id: of the store.
        revision: of this state.
        sequence: of the audit record of the change.
        key: of the server.
    """
    digest, _ = _read(connection)
    signature = key.sign(_statement(store_id, revision, sequence, digest))
    connection.execute(
        update(store).values(revision=revision, state_sequence=sequence, state_signature=signature)
    )


def verify_state(connection: Connection, key: Ed25519PrivateKey) -> State:
    """The state, once it is what the server has signed last.

    Raises:
        HeaderTampered: it is not.
    """
    row = connection.execute(select(store)).one()
    last = connection.execute(
        select(audit.c.sequence, audit.c.revision)
        .where(audit.c.revision.is_not(None))
        .order_by(audit.c.revision.desc())
        .limit(1)
    ).first()
    try:
        if last is None or tuple(last) != (row.state_sequence, row.revision):
            raise InvalidSignature
        digest, found = _read(connection)
        statement = _statement(row.id, row.revision, row.state_sequence, digest)
        key.public_key().verify(row.state_signature, statement)
    except (InvalidSignature, ValueError, TypeError):
        raise state_changed() from None
    return State(row.revision, found)
