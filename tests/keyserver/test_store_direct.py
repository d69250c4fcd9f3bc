"""Transactions on the driver itself: as safe as the others."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from stores import sql

from strongroom.errors import StorageError, UsageError
from strongroom.keyserver.store.database import Database
from strongroom.keyserver.store.schema import migrate
from strongroom.keyserver.store.tables import challenges, nodes

INSERT = insert(challenges)
INSERT_AND_SAY = insert(challenges).returning(challenges.c.expires)
SELECT = select(challenges.c.challenge, challenges.c.expires).where(
    challenges.c.expires == bindparam("when")
)
COUNT = select(func.count()).select_from(challenges)
UPDATE = update(challenges).where(challenges.c.expires > bindparam("when")).values(expires=7)
DELETE = delete(challenges).where(challenges.c.expires == bindparam("when"))
INSERT_NODES = insert(nodes)


@pytest.fixture
def database(database_url):
    with closing(Database(database_url, create=True)) as made:
        migrate(made)
        yield made


def rows(*numbers):
    return [{"challenge": bytes([number]), "expires": number} for number in numbers]


def count(database):
    with database.reading() as connection:
        return connection.execute(COUNT).scalar_one()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 16, 17, 37, 128])
def test_all_rows_are_written_once(database, size):
    with database.direct() as connection:
        assert connection.execute(INSERT, rows(*range(size))) == []
        assert connection.execute(COUNT) == [(size,)]
    with database.direct() as connection:
        found = connection.execute(INSERT_AND_SAY, rows(*range(128, 128 + size)))
        assert sorted(found) == [(number,) for number in range(128, 128 + size)]
    assert count(database) == 2 * size


def test_statements_run_for_each_row_and_keep_their_own_values(database):
    with database.direct() as connection:
        connection.execute(INSERT, rows(1, 2, 3))
        wanted = [{"when": 2}, {"when": 9}, {"when": 1}]
        assert connection.execute(SELECT, wanted) == [(b"\2", 2), (b"\1", 1)]
        assert connection.execute(UPDATE, [{"when": 2}]) == []
        assert connection.execute(DELETE, [{"when": 1}, {"when": 2}]) == []
    with database.reading() as connection:
        assert [tuple(row) for row in connection.execute(select(challenges))] == [(b"\3", 7)]


def test_a_parameter_that_is_missing_is_no_null(database):
    with pytest.raises(KeyError), database.direct() as connection:
        connection.execute(SELECT, [{"wen": 2}])


def test_an_error_that_nobody_has_waited_for_undoes_all(database):
    for _ in range(2):
        with pytest.raises(IntegrityError), database.direct() as connection:
            connection.execute(INSERT, rows(1, 2))
            connection.execute(INSERT, rows(3, 2))
            connection.execute(INSERT, rows(4))
    assert count(database) == 0


def test_whatever_is_raised_undoes_all_and_lets_the_next_one_in(database, caplog):
    for _ in range(3):
        with pytest.raises(UsageError), database.direct() as connection:
            connection.execute(INSERT, rows(1))
            raise UsageError("x")
    with database.direct() as connection:
        connection.execute(INSERT, rows(1))
    with database.writing() as connection:
        assert connection.execute(COUNT).scalar_one() == 1
    assert caplog.text == ""


def test_connections_come_back_as_they_were(database):
    with database.direct() as connection:
        used = connection._connection
    with database.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is used
        assert database.sqlite or raw.autocommit is False
    with pytest.raises(UsageError), database.writing() as connection:
        connection.execute(INSERT, rows(1))
        raise UsageError("x")
    assert count(database) == 0


def test_it_waits_for_the_disk(database):
    question = "PRAGMA synchronous" if database.sqlite else "SHOW synchronous_commit"
    with database.direct() as connection:
        assert connection._connection.execute(question).fetchone() in [(2,), ("on",)]


@pytest.mark.parametrize("read", [False, True], ids=["at the commit", "while reading"])
def test_a_connection_that_breaks_undoes_all(postgres, read):
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    url = postgres.emptied()
    with closing(Database(url)) as database:
        migrate(database)
        with pytest.raises(StorageError), database.direct() as connection:
            connection.execute(INSERT, rows(1))
            assert connection.execute(COUNT) == [(1,)]
            sql(url, kill + " AND pid <> pg_backend_pid()")
            if read:
                connection.execute(COUNT)
        assert count(database) == 0
        with database.direct() as connection:
            connection.execute(INSERT, rows(1))
        assert count(database) == 1


@pytest.mark.parametrize("kind", ["direct", "writing"])
def test_it_is_alone_in_the_database(database, database_url, kind):
    order = []
    with closing(Database(database_url)) as other:

        def follow():
            with getattr(other, kind)() as connection:
                ((found,),) = connection.execute(COUNT)
                order.append(found)

        thread = threading.Thread(target=follow)
        with database.direct() as connection:
            assert connection.execute(COUNT) == [(0,)]
            thread.start()
            thread.join(0.3)
            order.append("first")
            connection.execute(INSERT, rows(1))
        thread.join(60)
    assert order == ["first", 1]


def test_what_cannot_be_held_is_said_without_its_words(database):
    platform = "hunter2\0"
    row = {"platform": platform, "evicted": False, "first_seen": None, "last_seen": 2**62}
    if database.sqlite:
        row["evicted"] = None
    with pytest.raises((UsageError, IntegrityError)) as caught, database.direct() as connection:
        connection.execute(INSERT_NODES, [row])
    assert "hunter2" not in str(caught.value) + repr(caught.value.__context__)


def test_a_closed_database_stays_closed(database):
    database.close()
    with pytest.raises(StorageError, match="closed"), database.direct():
        pass
