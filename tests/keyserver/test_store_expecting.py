"""Releases written without a look at the database, by who has written last: nothing comes of a wrong belief."""

from __future__ import annotations

import secrets
from contextlib import closing, suppress

import pytest
from stores import OWNER, Clock, Store, add_key, grant, kek, policy, release, sql, write

from strongroom.errors import AuditBroken, StorageError, Unavailable
from strongroom.keyserver.store import database as database_module
from strongroom.keyserver.store import releases
from strongroom.keyserver.store.database import Database
from strongroom.keyserver.store.direct import Direct, Unexpected

_TURNS = releases._ALONE + 2


@pytest.fixture
def url(postgres):
    return postgres.emptied()


@pytest.fixture
def ready(url):
    """A store that has been alone for so long that it believes to be."""
    clock = Clock()
    with closing(Store.create(url, kek(), clock=clock, test=True)) as store:
        add_key(store)
        store.put_policy(policy(lease={"seconds": 600}), OWNER)
        for _ in range(_TURNS):
            assert release(store, grant(store)).refused == {}
        store.clock = clock
        yield store


@pytest.fixture
def ways(monkeypatch):
    """How each transaction has begun: read, believed, or believed what was wrong."""
    found = []
    begin = releases.ReleaseBook._write

    def watched(self, writes, expected=None):
        found.append("read" if expected is None else "believed")
        try:
            return begin(self, writes, expected)
        except Unexpected:
            found[-1] = "wrong"
            raise

    monkeypatch.setattr(releases.ReleaseBook, "_write", watched)
    return found


def count(store):
    return sum(one["event"] == "release" for one in store.audit(0, 1000))


def test_who_is_alone_reads_nothing(ready, ways, monkeypatch):
    gives = []
    send = Direct._send

    def watched(self, statement, rows):
        cursors = send(self, statement, rows)
        gives.append(len(cursors))
        return cursors

    monkeypatch.setattr(Direct, "_send", watched)
    assert release(ready, grant(ready)).refused == {}
    assert ways == ["believed"]
    assert gives == [1, 0, 0, 0, 0], "the comparison gives a row, for which nobody waits"
    assert count(ready) == _TURNS + 1
    assert ready.verify()


def test_a_challenge_is_used_once(ready, ways):
    challenge = secrets.token_bytes(32)
    assert not release(ready, grant(ready), challenge=challenge).challenge_used
    assert release(ready, grant(ready), challenge=challenge).challenge_used
    # It is no reason to believe less.
    assert not release(ready, grant(ready)).challenge_used
    assert ways == ["believed", "wrong", "read", "believed"]
    assert count(ready) == _TURNS + 2
    assert ready.verify()


def test_what_a_replica_has_written_is_seen(ready, url, ways):
    with closing(Store(url, kek(), clock=ready.clock, allow_test_roots=True)) as other:
        challenge = secrets.token_bytes(32)
        assert not release(other, grant(other), challenge=challenge).challenge_used
        ways.clear()
        assert release(ready, grant(ready), challenge=challenge).challenge_used
        assert ways == ["wrong", "read"]
        # Who takes turns with another reads.
        for store in (other, ready, other, ready):
            release(store, grant(store))
        assert ways == ["wrong", *["read"] * 5]
    assert count(ready) == _TURNS + 5
    assert ready.verify()


def test_whatever_an_administrator_changes_makes_decisions_stale(ready, url, ways):
    decided = write(ready, grant(ready))
    with closing(Store(url, kek(), clock=ready.clock, allow_test_roots=True)) as other:
        other.set_state("m/x", 1, "revoked", OWNER, "stolen")
    assert ready.commit_release(decided).result(60).stale
    assert ways == ["wrong", "read"]
    assert count(ready) == _TURNS


def test_what_it_has_written_over_itself_is_not_believed(ready, url, ways):
    """A database that was put back to just what the last release has left is older than what came after it."""
    decided = write(ready, grant(ready))
    state = sql(url, "SELECT revision, state_sequence, state_signature FROM store")[0]
    left = ready._written.last[0].sequence
    ready.evict("tdx:01", OWNER, "stolen")
    sql(url, "DELETE FROM audit WHERE sequence > ?", left)
    sql(url, "DELETE FROM nodes WHERE platform = ?", "tdx:01")
    sql(url, "UPDATE store SET revision = ?, state_sequence = ?, state_signature = ?", *state)
    with pytest.raises(AuditBroken, match="rolled back"):
        ready.commit_release(decided).result(60)
    assert ways == ["read"]


def test_holders_are_counted(ready, ways):
    codes = [
        release(ready, grant(ready, holders=2, lease=name), platform=f"mtls:{name}").refused
        for name in ("aa", "bb", "cc")
    ]
    # Somebody holds it already.
    assert codes == [{}, {"bb": "holders"}, {"cc": "holders"}]
    assert ways == ["believed"] * 3


def test_a_wrong_belief_is_nothing_for_the_log(ready, url, ways, caplog):
    sql(url, "UPDATE audit SET time = time + 1 WHERE sequence = (SELECT max(sequence) FROM audit)")
    # Counting holders waits for an answer in the midst of the transaction.
    assert release(ready, grant(ready, holders=2)).refused == {}
    assert ways == ["wrong", "read"]
    assert caplog.text == ""


def test_one_lease_id_twice_is_the_fault_of_one(ready):
    assert release(ready, grant(ready, lease="L"), platform="mtls:aa").refused == {}
    with pytest.raises(Unavailable):
        release(ready, grant(ready, lease="L"), platform="mtls:bb")
    assert release(ready, grant(ready), platform="mtls:bb").refused == {}
    assert ready.verify()


def test_a_clock_set_back_stops_releases(ready, ways):
    ready.clock.move(seconds=-31)
    with pytest.raises(Unavailable, match="clock"):
        release(ready, grant(ready))
    ready.clock.move(seconds=32)
    assert release(ready, grant(ready)).refused == {}
    assert ways == ["believed", "read"]
    assert ready.verify()


def test_a_clock_that_an_owner_accepts_is_accepted_by_who_believes(ready, url, ways):
    ready.clock.move(hours=-3)
    for _ in range(2):
        with pytest.raises(Unavailable, match="clock"):
            release(ready, grant(ready))
    with closing(Store(url, kek(), clock=ready.clock, allow_test_roots=True)) as other:
        other.accept_clock(OWNER, "it was ahead")
    assert release(ready, grant(ready)).refused == {}
    assert ways == ["believed", "read", "read"]


def test_a_database_under_another_root_key_gets_no_release(ready, url, ways):
    sql(url, "UPDATE store SET kek = 'other'")
    with pytest.raises(Unavailable, match="root key"):
        release(ready, grant(ready))
    assert ways == ["wrong", "read"]
    assert count(ready) == _TURNS


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE store SET revision = revision + 1",
        "UPDATE audit SET hash = 'x' WHERE sequence = (SELECT max(sequence) FROM audit)",
        "UPDATE audit SET time = time + 1 WHERE sequence = (SELECT max(sequence) FROM audit)",
        "DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)",
        "DELETE FROM audit",
    ],
    ids=["revision", "hash", "time", "last", "all"],
)
def test_all_that_is_believed_is_compared(ready, url, ways, change):
    sql(url, change)
    # Some of it looks like a database that was put back.
    with suppress(AuditBroken):
        release(ready, grant(ready), revision=ready._written.revision)
    assert ways[0] == "wrong"


def test_the_connection_is_kept(ready, ways, caplog):
    with ready._database.direct() as connection:
        used = connection._connection
    challenge = secrets.token_bytes(32)
    for _ in range(2):
        release(ready, grant(ready), challenge=challenge)
    with ready._database.direct() as connection:
        assert connection._connection is used
        assert connection._connection.autocommit
    assert "wrong" in ways
    assert caplog.text == ""


def test_connections_that_broke_are_found_after_a_failure(url, monkeypatch):
    monkeypatch.setattr(database_module, "_TRUSTED_SECONDS", 3600.0)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with closing(Database(url)) as database:
        with database.reading(), database.reading():
            pass  # two connections in the pool
        sql(url, kill)
        with pytest.raises(StorageError), database.direct():
            pass
        for _ in range(3):
            with database.direct() as connection:
                assert connection._connection.execute("SELECT 1").fetchone() == (1,)
