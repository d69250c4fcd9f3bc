"""Opening: URLs, schemas, roots for tests, another root key."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
import threading

import pytest
from sqlalchemy import inspect
from stores import OWNER, Clock, Store, add_key, grant, kek, policy, release, sql

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    HeaderTampered,
    InvalidKey,
    NotFound,
    StorageError,
    Unavailable,
    UnsupportedVersion,
    UsageError,
)
from strongroom.keyserver.store.database import Database
from strongroom.keyserver.store.schema import migrate
from strongroom.keyserver.store.tables import metadata


@pytest.mark.parametrize(
    "url",
    ["", "x", "mysql://u:hunter2@h/d", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true"],
)
def test_other_databases_are_refused(url):
    with pytest.raises(UsageError) as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_not_made_by_opening(tmp_path):
    with pytest.raises(NotFound):
        Store(f"sqlite:///{tmp_path}/k.db", kek())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_no_store(database_url, tmp_path):
    if database_url.startswith("sqlite"):
        (tmp_path / "keyserver.db").touch()
    with pytest.raises(UsageError, match="no key store"):
        Store(database_url, kek())


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "k.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(StorageError, match="SQLITE_NOTADB") as caught:
        Store(f"sqlite:///{tmp_path}/k.db", kek())
    assert "restore a backup" in caught.value.hint


def test_files_of_sqlite_are_readable_by_their_owner_alone(tmp_path):
    with Store.create(f"sqlite:///{tmp_path}/k.db", kek()) as store:
        add_key(store)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["k.db", "k.db-wal", "k.db-shm"], 0o600)


def test_sqlite_writes_through_to_the_disk(tmp_path):
    with Store.create(f"sqlite:///{tmp_path}/k.db", kek()) as store:
        for kind in (store._database.reading, store._database.writing):
            with kind() as connection:
                found = {
                    name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "secure_delete")
                }
            assert found == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_postgresql_waits_for_the_disk(postgres):
    with Store.create(postgres.emptied(), kek()) as store, store._database.writing() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    url = postgres.database("careless")
    sql(url, "ALTER DATABASE careless SET synchronous_commit = off")
    with Store.create(url, kek()) as store, store._database.writing() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_a_database_that_is_away_or_forgets_is_refused_and_comes_back():
    from postgres import Postgres

    server = Postgres()
    try:
        url = server.database()
        with Store.create(url, kek(), clock=Clock()) as store:
            add_key(store)
            revision = store.snapshot().revision
            server.stop()
            for attempt in (
                store.snapshot,
                lambda: add_key(store),
                lambda: release(store, grant(store), revision=revision),
            ):
                with pytest.raises(Unavailable) as caught:
                    attempt()
                assert "INSERT" not in str(caught.value)
            server.start(fsync="off")
            with pytest.raises(UsageError, match="fsync off"):
                Store(url, kek())
            server.stop()
            server.start()
            assert release(store, grant(store)).refused == {}
            assert store.verify().sequence == 3
    finally:
        server.close()


def test_errors_of_the_database_show_no_values(store, caplog):
    add_key(store)
    sql(store.url, "DROP TABLE leases")
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(StorageError) as caught:
            release(store, grant(store, lease="SECRET-LEASE"))
        assert "SECRET-LEASE" not in str(caught.value) + repr(caught.value.__context__) + caplog.text
    finally:
        with store._database.engine.begin() as connection:
            metadata.tables["leases"].create(connection)


def test_migrations_make_what_the_tables_say(database_url):
    """Column by column, index by index, compared by Alembic itself."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    database = Database(database_url, create=True)
    migrate(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        for table in metadata.tables:
            keys = inspect(connection).get_pk_constraint(table)["constrained_columns"]
            assert keys == [column.name for column in metadata.tables[table].primary_key]
    database.close()


def test_text_and_numbers_are_the_same_on_both(store, clock):
    """Case, order, great numbers, and text that is none of ASCII."""
    for name in ("m/x", "M/x", "m/X", "m/x.1", "m/x-1", "m/x_1"):
        add_key(store, name=name, bundle=bytes(range(240, 256)), note="\x00\U0001f511'\"")
    assert [one.name for one in store.keys(None)] == ["M/x", "m/X", "m/x", "m/x-1", "m/x.1", "m/x_1"]
    assert store.key("M/x").name == "M/x"
    assert store.key("m/x").meta == {"note": "\x00\U0001f511'\""}
    assert store.key("m/x").bundle == bytes(range(240, 256))
    add_key(store, version=10**9)
    with pytest.raises(UsageError):
        add_key(store)
    clock.now = clock.now.replace(year=9998, microsecond=123457)
    store.evict("P", OWNER, "x")
    store.evict("p", OWNER, "x")
    assert [one.platform for one in store.nodes()] == ["P", "p"]
    assert store.audit()[-1]["time"] == "9998-03-01T12:00:00.123457Z"
    assert store.verify()


def test_a_newer_schema_is_refused(database_url):
    Store.create(database_url, kek()).close()
    ((head,),) = sql(database_url, "SELECT version_num FROM alembic_version")
    sql(database_url, "UPDATE alembic_version SET version_num = '9999'")
    try:
        with pytest.raises(UnsupportedVersion, match="9999"):
            Store(database_url, kek())
    finally:
        sql(database_url, "UPDATE alembic_version SET version_num = ?", head)


def test_a_database_of_the_first_schema_is_upgraded_and_is_what_was_signed(database_url):
    with Store.create(database_url, kek()) as store:
        add_key(store)
    sql(database_url, "DROP TABLE crls")
    sql(database_url, "UPDATE alembic_version SET version_num = '0001'")
    with Store(database_url, kek()) as store:
        store.check()
        store.crls_seen({"CN=somebody": 2**159})
        assert store.snapshot().newest_crls == {"CN=somebody": 2**159}
        assert store.key("m/x").version == 1


@pytest.mark.parametrize("table", ["keys", "customers"])
def test_tables_of_somebody_else_are_refused(tmp_path, table):
    url = f"sqlite:///{tmp_path}/k.db"
    sql(url, f"CREATE TABLE {table} (x INTEGER)")
    with pytest.raises(UsageError, match="somebody else"):
        Store.create(url, kek())
    assert sql(url, f"SELECT * FROM {table}") == []


def test_a_failed_migration_leaves_nothing(tmp_path, monkeypatch):
    from strongroom.keyserver.store import schema

    url = f"sqlite:///{tmp_path}/k.db"
    database = Database(url, create=True)
    upgrade = schema._upgrade

    def fails(*arguments):
        upgrade(*arguments)
        raise RuntimeError

    monkeypatch.setattr(schema, "_upgrade", fails)
    with pytest.raises(RuntimeError):
        migrate(database)
    monkeypatch.undo()
    with database.reading() as connection:
        assert inspect(connection).get_table_names() == []
    migrate(database)
    database.close()


def upgrade_here(url, barrier, results):
    try:
        database = Database(url)
        barrier.wait(60)
        migrate(database)
        database.close()
        results.put("")
    except Exception as error:
        results.put(repr(error))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_replicas_that_start_at_once_upgrade_once(kind, tmp_path, request):
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/k.db"
        (tmp_path / "k.db").touch()
    else:
        url = request.getfixturevalue("postgres").database()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=upgrade_here, args=(url, barrier, results)) for _ in range(2)]
    for one in processes:
        one.start()
    assert [results.get(timeout=60) for _ in processes] == ["", ""]
    for one in processes:
        one.join(60)
    Store.create(url, kek()).close()


def test_a_store_for_tests_says_so_for_ever(database_url):
    with Store.create(database_url, kek(), test=True) as store:
        assert store.test
        add_key(store)
        release(store, grant(store))
        assert all(record["test"] is True for record in store.audit())
    with pytest.raises(UsageError, match="made for tests"):
        Store(database_url, kek())
    with Store(database_url, kek(), allow_test_roots=True) as store:
        assert store.test


def test_a_store_for_production_takes_no_roots_for_tests(store):
    assert not store.test
    assert all("test" not in record for record in store.audit())
    with pytest.raises(UsageError, match="one for production"):
        Store(store.url, kek(), allow_test_roots=True)


def test_keys_move_to_another_root_key(store, clock):
    deks = {}
    for index in range(5):
        deks[f"m/k{index}"] = SecretBytes.random(32)
        add_key(store, name=f"m/k{index}", dek=deks[f"m/k{index}"])
    store.set_state("m/k4", 1, "destroyed", OWNER, "x")
    store.put_policy(policy(), OWNER)
    _, token = store.add_token("bob", "owner", None, OWNER)
    signing = store.secret("signing")
    before = sql(store.url, "SELECT name, wrapped FROM keys ORDER BY name")
    with Store(store.url, kek(), clock=clock) as replica:
        assert store.rotate_kek(kek(2), OWNER) == 4
        # A replica that still has the old one does not go on.
        for attempt in (
            lambda: add_key(replica),
            lambda: replica.dek(replica.key("m/k0")),
            lambda: release(replica, grant(replica)),
        ):
            with pytest.raises(Unavailable, match="another root key"):
                attempt()
    assert all(store.dek(store.key(name)) == dek for name, dek in list(deks.items())[:4])
    assert store.verify()
    store.close()
    with pytest.raises(InvalidKey):
        Store(store.url, kek(), clock=clock)
    with Store(store.url, kek(2), clock=clock) as again:
        assert all(again.dek(again.key(name)) == dek for name, dek in list(deks.items())[:4])
        assert again.secret("signing") == signing
        assert again.token(token).name == "bob"
        after = sql(store.url, "SELECT name, wrapped FROM keys ORDER BY name")
        assert all(one != other for one, other in zip(before, after, strict=True) if one[1])
        record = again.audit()[-1]
        assert record["event"] == "store.rewrapped"
        assert record["details"] == {"before": kek().id, "kek": kek(2).id, "keys": 4}
        with pytest.raises(UsageError):
            again.rotate_kek(kek(2), OWNER)


def test_a_move_that_is_interrupted_has_not_happened_and_can_be_done_again(store):
    class Failing:
        def __init__(self, calls):
            self.id, self.left = kek(2).id, calls

        def wrap(self, secret, aad):
            self.left -= 1
            if self.left < 0:
                raise Unavailable("The HSM does not answer.")
            return kek(2).wrap(secret, aad)

        def unwrap(self, wrapped, aad):
            return kek(2).unwrap(wrapped, aad)

    for index in range(3):
        add_key(store, name=f"m/k{index}")
    before = sql(store.url, "SELECT * FROM keys ORDER BY name"), sql(store.url, "SELECT * FROM secrets")
    for calls in range(7):  # 4 secrets and 3 keys
        with pytest.raises(Unavailable):
            store.rotate_kek(Failing(calls), OWNER)
    assert before == (
        sql(store.url, "SELECT * FROM keys ORDER BY name"),
        sql(store.url, "SELECT * FROM secrets"),
    )
    assert store.rotate_kek(Failing(7), OWNER) == 3
    assert store.verify()


def test_keys_that_change_while_others_are_moved_are_moved_as_they_are(store, clock):
    class Slow:
        """Somebody registers and revokes keys while the first ones are being wrapped."""

        def __init__(self, meanwhile):
            self.id, self.meanwhile = kek(2).id, meanwhile

        def wrap(self, secret, aad):
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:
                thread = threading.Thread(target=meanwhile)
                thread.start()
                thread.join(60)
            return kek(2).wrap(secret, aad)

        def unwrap(self, wrapped, aad):
            return kek(2).unwrap(wrapped, aad)

    dek = SecretBytes.random(32)
    add_key(store, name="m/a")
    add_key(store, name="m/b")

    def meanwhile():
        add_key(store, name="m/c", dek=dek)
        store.set_state("m/a", 1, "revoked", OWNER, "x")
        store.set_state("m/b", 1, "destroyed", OWNER, "x")

    assert store.rotate_kek(Slow(meanwhile), OWNER) == 2
    assert store.dek(store.key("m/c")) == dek
    assert store.verify()


def test_a_changed_record_is_not_moved(store):
    add_key(store)
    sql(store.url, "UPDATE keys SET epoch = 5")
    with pytest.raises(HeaderTampered):
        store.rotate_kek(kek(2), OWNER)


def test_nothing_of_the_old_wrapping_is_left_in_the_files(tmp_path):
    url = f"sqlite:///{tmp_path}/k.db"
    with Store.create(url, kek()) as store:
        add_key(store)
        old = [
            bytes(row[0])
            for row in sql(url, "SELECT wrapped FROM keys UNION SELECT wrapped FROM secrets")
        ]
        store.rotate_kek(kek(2), OWNER)
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert not any(one in content for one in old)


def test_a_full_disk_is_said_and_nothing_is_acknowledged(tmp_path):
    url = f"sqlite:///{tmp_path}/k.db"
    with Store.create(url, kek(), clock=Clock()) as store:
        add_key(store)
        with store._database.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        store._database.engine.dispose()

        from sqlalchemy import event

        @event.listens_for(store._database.engine, "connect")
        def bounded(connection, record):
            connection.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(StorageError, match="SQLITE_FULL"):
            for _ in range(200):
                release(store, grant(store), platform=os.urandom(8).hex())
    with Store(url, kek(), clock=Clock()) as store:
        assert store.verify()
