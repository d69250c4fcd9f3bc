"""What the key server keeps: keys under a root key, policies, leases, machines, tokens, audit trail."""

from strongroom.keyserver.store.records import (
    Actor,
    Grant,
    KeyRecord,
    NodeRecord,
    PolicyRecord,
    ReleaseOutcome,
    ReleaseWrite,
    Snapshot,
    TokenRecord,
)
from strongroom.keyserver.store.store import Store

__all__ = [
    "Actor",
    "Grant",
    "KeyRecord",
    "NodeRecord",
    "PolicyRecord",
    "ReleaseOutcome",
    "ReleaseWrite",
    "Snapshot",
    "Store",
    "TokenRecord",
]
