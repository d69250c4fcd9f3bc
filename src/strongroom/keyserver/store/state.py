"""What administrators have made of the store, as one digest that the server signs.

Keys are bound to their records by how they are wrapped. Policies, evictions, which version is current,
and a record put back as it once was are not: so every change signs all of it, together with the number
of its audit record. Somebody who can write to the database can put back an old state only with an old
audit trail, which the anchor shows.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, func, select, update

from strongroom.errors import HeaderTampered
from strongroom.format.encoding import canonical_json
from strongroom.keyserver.store.tables import audit, keys, nodes, policies, store

__all__ = ["sign_state", "state_changed", "verify_state"]

_DOMAIN: Final = b"strongroom/v1/state\x00"


def state_changed() -> HeaderTampered:
    """What is said of a database whose contents are not those that the server has signed."""
    return HeaderTampered(
        "The database was changed by somebody else: it does not hold what the server has signed.",
        hint="Restore a backup, and find out who can write to the database.",
    )


def _digest(connection: Connection) -> bytes:
    found = hashlib.sha256()
    tables: tuple[tuple[str, Any], ...] = (
        (
            "keys",
            select(
                keys.c.name,
                keys.c.version,
                func.lower(func.hex(keys.c.bundle))
                if connection.dialect.name == "sqlite"
                else func.encode(keys.c.bundle, "hex"),
                keys.c.state,
                keys.c.epoch,
                keys.c.current,
            ),
        ),
        (
            "policies",
            select(policies.c.id, policies.c.version, policies.c.digest).where(
                policies.c.status == "active"
            ),
        ),
        ("evicted", select(nodes.c.platform).where(nodes.c.evicted.is_(True))),
    )
    for name, query in tables:
        # Sorted here: databases sort text in orders of their own.
        rows = sorted(tuple(row) for row in connection.execute(query))
        found.update(canonical_json([name, [list(row) for row in rows]]))
    return found.digest()


def _statement(connection: Connection, store_id: str, revision: int, sequence: int) -> bytes:
    return _DOMAIN + canonical_json(
        {
            "store": store_id,
            "revision": revision,
            "sequence": sequence,
            "state": _digest(connection).hex(),
        }
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
    signature = key.sign(_statement(connection, store_id, revision, sequence))
    connection.execute(
        update(store).values(revision=revision, state_sequence=sequence, state_signature=signature)
    )


def verify_state(connection: Connection, key: Ed25519PrivateKey) -> int:
    """The revision of the state, once it is what the server has signed last.

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
        statement = _statement(connection, row.id, row.revision, row.state_sequence)
        key.public_key().verify(row.state_signature, statement)
    except (InvalidSignature, ValueError, TypeError):
        raise state_changed() from None
    return int(row.revision)
