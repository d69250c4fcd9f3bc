"""The tables, the same on SQLite and PostgreSQL. Times are microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

__all__ = [
    "approvals",
    "audit",
    "challenges",
    "crls",
    "keys",
    "leases",
    "metadata",
    "micros",
    "moment",
    "nodes",
    "policies",
    "secrets",
    "store",
    "tokens",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

metadata: Final = MetaData()

store: Final = Table(
    "store",
    metadata,
    Column("one", Integer, primary_key=True),  # always 1
    Column("id", String(32), nullable=False),
    Column("test", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("kek", String(300), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("state_sequence", BigInteger, nullable=False),
    Column("state_signature", LargeBinary, nullable=False),
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("bundle", LargeBinary, nullable=False),
    Column("state", String(20), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("current", Boolean, nullable=False),
    Column("wrapped", LargeBinary),
    Column("created", BigInteger, nullable=False),
    Column("meta", Text, nullable=False),
    Column("reason", Text),
)
Index(
    "one_current",
    keys.c.name,
    unique=True,
    sqlite_where=keys.c.current.is_(True),
    postgresql_where=keys.c.current.is_(True),
)

policies: Final = Table(
    "policies",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(200), nullable=False),
    Column("version", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("document", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("previous", String(64)),
    Column("needed", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)
Index(
    "one_of_a_version",
    policies.c.id,
    policies.c.version,
    unique=True,
    sqlite_where=text("status <> 'rejected'"),
    postgresql_where=text("status <> 'rejected'"),
)

approvals: Final = Table(
    "approvals",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("approver", String(200), primary_key=True),
    Column("signature", LargeBinary, nullable=False),
)

challenges: Final = Table(
    "challenges",
    metadata,
    Column("challenge", LargeBinary, primary_key=True),
    Column("expires", BigInteger, nullable=False, index=True),
)

leases: Final = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("platform", String(300), primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("attested", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False, index=True),
    Column("ended", String(20)),  # the code by which it ended before its time
    Column("policy_id", String(200), nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("claims", Text, nullable=False),
)
Index("leases_of_a_platform", leases.c.platform)
# All that counting holders reads: the rows themselves carry claims.
Index("holders", leases.c.name, leases.c.platform, leases.c.ended, leases.c.not_after)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("platform", String(300), primary_key=True),
    Column("evicted", Boolean, nullable=False),
    Column("reason", Text),
    Column("first_seen", BigInteger),
    Column("last_seen", BigInteger),
)

crls: Final = Table(
    "crls",
    metadata,
    Column("issuer", String(300), primary_key=True),
    Column("number", String(40), nullable=False),  # hexadecimal: it has up to 160 bits
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("mac", LargeBinary, nullable=False),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("revision", BigInteger),  # that came to be with this record, if one did
    Column("hash", String(64), nullable=False),
    Column("record", Text, nullable=False),
)
Index("revisions", audit.c.revision)


def micros(time: datetime) -> int:
    """For a column; exact, unlike ``timestamp()``."""
    return (time - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Undo :func:`micros`."""
    return _EPOCH + timedelta(microseconds=value)
