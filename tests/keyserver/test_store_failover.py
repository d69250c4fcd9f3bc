"""A PostgreSQL that fails, hangs or comes back older, under servers that run: nothing lost, nothing given wrongly."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import closing

import psycopg
import pytest
from postgres import Postgres, binaries
from sqlalchemy import literal_column, make_url, select
from stores import OWNER, Store, add_key, grant, kek, policy, release, sql

from strongroom.errors import AuditBroken, StorageError, Unavailable
from strongroom.keyserver.store import database as database_module
from strongroom.keyserver.store.database import Database

_ASK = select(literal_column("1"))
_STEPS = 8
_PATIENCE = 120.0


@pytest.fixture(scope="module")
def server():
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with closing(Postgres()) as made:
        yield made
        made.stop(signal.SIGQUIT)  # Nobody needs what it would write out.


def command(server, *statements):
    with psycopg.connect(server._conninfo("postgres"), autocommit=True) as connection:
        for one in statements:
            connection.execute(one)


def connected(name):
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"


def answered(ask):
    """What comes of it, once connections that broke are forgotten."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except StorageError:
            assert time.monotonic() < deadline


class Replica:
    """Threads that release keys and register them by one store, and what was acknowledged to them."""

    def __init__(self, store, number):
        self.store, self.number = store, number
        self.stop = threading.Event()
        self.releases, self.keys, self.failed, self.wrong = [], [], 0, []
        works = [self.release] * 4 + [self.register]
        self.threads = [threading.Thread(target=self.run, args=(work,), daemon=True) for work in works]
        for one in self.threads:
            one.start()

    def run(self, work):
        index = 0
        while not self.stop.is_set():
            index += 1
            try:
                work(f"{self.number}-{threading.get_ident()}-{index}")
            except Unavailable:
                self.failed += 1
            except BaseException as error:
                self.wrong.append(error)
                return

    def release(self, name):
        outcome = release(self.store, grant(self.store), platform=name)
        if not outcome.stale:
            assert (outcome.challenge_used, dict(outcome.refused)) == (False, {})
            self.releases.append(name)

    def register(self, name):
        # Each makes the releases stale that are being decided: on a slow machine there would be no others.
        known = len(self.releases)
        while len(self.releases) < known + 4 and not self.stop.wait(0.1):
            pass
        add_key(self.store, name=f"keys/{name}")
        self.keys.append(f"keys/{name}")

    def end(self):
        self.stop.set()
        for one in self.threads:
            one.join(_PATIENCE)


def progress(replicas, count):
    """Wait until each has been acknowledged so many releases more."""
    wanted = [len(one.releases) + count for one in replicas]
    deadline = time.monotonic() + _PATIENCE
    while any(len(one.releases) < many for one, many in zip(replicas, wanted, strict=True)):
        assert [one.wrong for one in replicas] == [[], []]
        assert time.monotonic() < deadline, "releases do not go on"
        time.sleep(0.01)


def test_nothing_acknowledged_is_lost_when_connections_are_cut_and_the_database_crashes(
    server, tmp_path
):
    """Cut at any moment, also amid a commit: what was acknowledged by either replica is there, whole."""
    chance = random.Random()
    url = server.database()
    name = make_url(url).database
    anchors = [tmp_path / "one", tmp_path / "two"]
    with Store.create(url, kek(), anchor=anchors[0]) as store:
        add_key(store)
        store.put_policy(policy(), OWNER)
    Store.accept_head(url, kek(), anchors[1], OWNER, "second replica")
    with (
        Store(url, kek(), anchor=anchors[0]) as one,
        Store(url, kek(), anchor=anchors[1]) as two,
    ):
        replicas = [Replica(one, 1), Replica(two, 2)]
        try:
            for step in range(_STEPS):
                progress(replicas, 5)
                time.sleep(chance.uniform(0, 0.05))
                if step % 4 == 3:
                    server.stop(signal.SIGQUIT)
                    server.start()
                else:
                    command(server, connected(name))
        finally:
            for each in replicas:
                each.end()
        assert [each.wrong for each in replicas] == [[], []]
        released = [each for replica in replicas for each in replica.releases]
        assert sum(replica.failed for replica in replicas)
        answered(one.verify)
        records, after = [], 0
        while page := one.audit(after, 1000):
            records += page
            after = page[-1]["sequence"]
        on_record = [record["platform"] for record in records if record["event"] == "release"]
        assert set(released) <= set(on_record)
        # By half or twice there is nothing, whatever was acknowledged.
        leases = [platform for (platform,) in sql(url, "SELECT platform FROM leases")]
        assert sorted(on_record) == sorted(leases)
        assert sql(url, "SELECT count(*) FROM challenges") == [(len(on_record),)]
        added = [record["details"]["name"] for record in records if record["event"] == "key.added"]
        known = [key.name for key in two.keys(None)]
        assert {name for replica in replicas for name in replica.keys} <= set(known)
        assert sorted(added) == sorted(known)


@pytest.fixture
def rolled_back(server, tmp_path):
    """Two replicas under which the database is changed for a copy from before a revocation."""
    url = server.database()
    name = make_url(url).database
    with (
        Store.create(url, kek(), anchor=tmp_path / "anchor") as one,
        Store(url, kek()) as two,
    ):
        add_key(one)
        one.put_policy(policy(), OWNER)
        for store in (one, two):
            release(store, grant(store))
            store._database.engine.dispose()
        command(server, f"CREATE DATABASE {name}_copy TEMPLATE {name}")
        one.set_state("m/x", 1, "revoked", OWNER, "stolen")
        for store in (one, two):
            release(store, grant(store))
        command(
            server,
            f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false",
            connected(name),
            f"ALTER DATABASE {name} RENAME TO {name}_new",
            f"ALTER DATABASE {name}_copy RENAME TO {name}",
        )
        yield one, two
    with pytest.raises(AuditBroken, match="rolled back"):
        Store(url, kek(), anchor=tmp_path / "anchor")


def test_a_server_that_runs_takes_no_older_database(rolled_back):
    """As after a failover to a copy that lags: a revocation is not undone by it."""
    for store in rolled_back:
        for ask in (
            lambda store=store: release(store, grant(store)),
            lambda store=store: add_key(store),
            lambda store=store: store.evict("tdx:01", OWNER, "x"),
            store.check,
        ):
            with pytest.raises(AuditBroken, match="rolled back"):
                answered(ask)
    one, _ = rolled_back
    events = [record["event"] for record in answered(one.audit)]
    assert "key.state" not in events
    assert events[-1] == "release", "nothing was added to it"


@pytest.fixture
def pair(postgres):
    url = postgres.emptied()
    with Store.create(url, kek()) as one, Store(url, kek()) as two:
        add_key(one)
        one.put_policy(policy(), OWNER)
        one.url = url
        yield one, two


def test_a_trail_that_ends_otherwise_is_another_one(pair):
    one, _ = pair
    release(one, grant(one))
    sequence, _ = one.audit_head()
    sql(one.url, "UPDATE audit SET hash = 'x' WHERE sequence = ?", sequence)
    with pytest.raises(AuditBroken, match="rolled back"):
        release(one, grant(one))
    with pytest.raises(AuditBroken, match="rolled back"):
        one.check()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_default_of_the_database_changes_nothing(server, isolation):
    """What waits for the lock sees what was written before, or two would write the same record."""
    url = server.database()
    name = make_url(url).database
    sql(url, f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    with Store.create(url, kek()) as one, Store(url, kek()) as two:
        add_key(one)
        one.put_policy(policy(), OWNER)
        replicas = [Replica(one, 1), Replica(two, 2)]
        try:
            progress(replicas, 20)
        finally:
            for each in replicas:
                each.end()
        assert [(each.wrong, each.failed) for each in replicas] == [([], 0)] * 2
        assert one.verify()


@pytest.mark.parametrize("kind", ["direct", "writing"])
def test_a_replica_that_hangs_does_not_hang_the_others(postgres, monkeypatch, kind):
    impatient = (*database_module._SESSION, "lock_timeout = '200ms'")
    monkeypatch.setattr(database_module, "_SESSION", impatient)
    url = postgres.emptied()
    with closing(Database(url)) as other, closing(Database(url)) as here:
        with other.direct() as connection:
            connection.execute(_ASK)
            with pytest.raises(StorageError, match="55P03"), getattr(here, kind)() as waiting:
                waiting.execute(_ASK)
        with getattr(here, kind)() as connection:
            assert list(connection.execute(_ASK)) == [(1,)]


def test_the_dead_are_not_waited_for(postgres):
    url = postgres.emptied()
    with closing(Database(url + "&keepalives_idle=77")) as database, database.reading() as connection:
        for name, value in (("synchronous_commit", "on"), ("lock_timeout", "15s")):
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
        said = connection.connection.dbapi_connection.info.get_parameters()
    # The URL has the last word.
    assert (said["keepalives_idle"], said["keepalives_count"]) == ("77", "3")
    assert int(said["tcp_user_timeout"]) == 20_000
