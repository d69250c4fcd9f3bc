"""Stores for tests: a root key that costs nothing, a clock that is set, and short ways to write."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import make_url

from strongroom.crypto.secret import SecretBytes
from strongroom.format.encoding import b64url
from strongroom.keyserver.keks.envelope import HeldKek
from strongroom.keyserver.store import Actor, Grant, ReleaseWrite, Store
from strongroom.release.approvals import policy_statement
from strongroom.release.policy import Policy

OWNER = Actor("olga", "owner", "local")
AUDITOR = Actor("ada", "auditor", "token")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUNDLE = bytes(range(16))
NOT_AFTER = "2030-01-01T00:00:00+00:00"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now

    def move(self, **delta):
        self.now += timedelta(**delta)


def kek(byte=1):
    return HeldKek("test", SecretBytes(bytes([byte]) * 32))


def policy(version=1, id="p", keys=("m/",), subject="CN=node", **members):
    return {
        "id": id,
        "version": version,
        "keys": list(keys),
        "any": [{"kind": "mtls", "subject": [subject]}],
        **members,
    }


def claims(subject="CN=node", not_after=NOT_AFTER, platform=None):
    return {
        "kind": "mtls",
        "values": {"subject": subject, "sha256": "ab" * 32},
        "bound": "",
        "debug": False,
        "platform": platform,
        "not_after": not_after,
        "test_root": False,
        "faults": [],
    }


def add_key(store, name="m/x", version=None, bundle=BUNDLE, dek=None, actor=OWNER, **meta):
    return store.add_key(name, version, bundle, dek or SecretBytes.random(32), actor, meta)


def grant(store, name="m/x", version=1, lease=None, seconds=600, holders=None, said=None):
    return Grant(
        lease_id=lease or secrets.token_urlsafe(16),
        name=name,
        version=version,
        not_after=store.now() + timedelta(seconds=seconds),
        max_holders=holders,
        policy_id="p",
        policy_version=1,
        claims=[said or claims()],
    )


APPROVERS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 32) for name in "abc"}


def approvals(needed=2, names="abc"):
    keys = {name: b64url(APPROVERS[name].public_key().public_bytes_raw()) for name in names}
    return {"approvals": {"needed": needed, "approvers": keys}}


def signing_key(store):
    seed = store.secret("signing")
    return Ed25519PrivateKey.from_private_bytes(seed.buffer).public_key().public_bytes_raw()


def approve(store, new, old, name, key=None):
    statement = policy_statement(Policy.parse(new), Policy.parse(old), signing_key(store))
    signature = APPROVERS[key or name].sign(statement)
    return store.approve_policy(new["id"], new["version"], name, signature, OWNER)


def write(store, *grants, platform="mtls:00", challenge=None, expires=60, revision=None, audit=None):
    said = {
        "source": "192.0.2.1",
        "keys": [{"name": one.name, "code": "released", "lease": one.lease_id} for one in grants],
    }
    return ReleaseWrite(
        challenge=challenge or secrets.token_bytes(32),
        challenge_expires=store.now() + timedelta(seconds=expires),
        revision=store.snapshot().revision if revision is None else revision,
        platform=platform,
        grants=grants,
        audit=said if audit is None else audit,
    )


def release(store, *grants, **options):
    return store.commit_release(write(store, *grants, **options)).result(60)


def sql(url, statement, *values):
    """As somebody who can write to the database, behind the store's back."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()
    info = f"host={parsed.query['host']} user=postgres dbname={parsed.database}"
    with psycopg.connect(info) as connection:
        cursor = connection.execute(statement.replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []


__all__ = [
    "AUDITOR",
    "BUNDLE",
    "NOT_AFTER",
    "OWNER",
    "START",
    "Clock",
    "Store",
    "add_key",
    "approvals",
    "approve",
    "claims",
    "grant",
    "kek",
    "policy",
    "release",
    "sql",
    "write",
]
