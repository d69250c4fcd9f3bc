"""Keys in the store: versions, states, and what becomes of the key itself."""

from __future__ import annotations

import gc
import pickle
import threading
from dataclasses import replace

import pytest
from stores import AUDITOR, BUNDLE, OWNER, add_key, grant, kek, policy, release, sql

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    HeaderTampered,
    NotAuthorised,
    NotFound,
    ReleaseDenied,
    Unavailable,
    UsageError,
)
from strongroom.keyserver.store import Actor, Store
from strongroom.keyserver.store.dek_cache import DekCache


def events(store):
    return [record["event"] for record in store.audit()]


def test_a_key_comes_back_as_it_went_in(store, clock):
    dek = SecretBytes.random(32)
    record = add_key(store, dek=dek, who="ünïcode")
    assert (record.name, record.version, record.bundle, record.state) == ("m/x", 1, BUNDLE, "active")
    assert record.current and record.created == clock.now and record.meta == {"who": "ünïcode"}
    assert store.dek(record) == dek
    assert store.key("m/x") == store.key("m/x", 1) == record
    assert store.keys() == store.keys("m/x") == [record]
    assert store.keys("m") == []
    with pytest.raises(NotFound, match="m/y"):
        store.key("m/y")
    with pytest.raises(NotFound, match="m/x@2"):
        store.key("m/x", 2)


def test_the_key_survives_a_restart(store, clock):
    dek = SecretBytes.random(32)
    add_key(store, dek=dek)
    store.close()
    with Store(store.url, kek(), clock=clock) as again:
        assert again.dek(again.key("m/x")) == dek


def test_the_key_is_a_copy_of_the_callers(store):
    dek = SecretBytes.random(32)
    record = add_key(store, dek=dek)
    for _ in range(2):
        with store.dek(record) as one:
            assert one == dek


def test_versions_only_rise(store):
    assert add_key(store).version == 1
    assert add_key(store).version == 2
    assert add_key(store, version=7).version == 7
    for version in (7, 6, 1):
        with pytest.raises(AlreadyExists):
            add_key(store, version=version)
    assert add_key(store).version == 8
    assert [one.version for one in store.keys("m/x")] == [1, 2, 7, 8]
    assert store.key("m/x").version == 1, "a new version waits for its rotation"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"name": ""},
        {"name": "m/x\n"},
        {"version": 0},
        {"version": True},
        {"version": 10**9 + 1},
        {"bundle": b"short"},
        {"dek": SecretBytes(b"k" * 31)},
        {"number": 1.5},
    ],
)
def test_what_is_no_key_is_refused_and_leaves_nothing(store, wrong):
    with pytest.raises(UsageError):
        add_key(store, **wrong)
    assert store.keys() == []
    assert events(store) == ["store.created"]


def test_rotation_makes_a_version_current_and_deprecates_older_ones(store):
    deks = [SecretBytes.random(32) for _ in range(3)]
    for dek in deks:
        add_key(store, dek=dek)
    assert store.rotate("m/x", 2, OWNER).version == 2
    states = {one.version: (one.state, one.current) for one in store.keys("m/x")}
    assert states == {1: ("deprecated", False), 2: ("active", True), 3: ("active", False)}
    assert store.rotate("m/x", None, OWNER).version == 3
    for record, dek in zip(store.keys("m/x"), deks, strict=True):
        assert store.dek(record) == dek, "deprecated keys are released"
    with pytest.raises(UsageError, match="deprecated"):
        store.rotate("m/x", 1, OWNER)
    with pytest.raises(NotFound):
        store.rotate("m/x", 9, OWNER)
    with pytest.raises(NotFound):
        store.rotate("m/y", None, OWNER)


def test_rotation_passes_over_what_is_not_active(store):
    for _ in range(3):
        add_key(store)
    store.set_state("m/x", 3, "revoked", OWNER, "leaked")
    assert store.rotate("m/x", None, OWNER).version == 2


@pytest.mark.parametrize("state", ["revoked", "destroyed"])
def test_what_is_revoked_or_destroyed_is_not_given(store, state):
    old = add_key(store)
    record = store.set_state("m/x", 1, state, OWNER, "leaked")
    assert (record.state, record.reason, record.epoch) == (state, "leaked", 2)
    with pytest.raises(ReleaseDenied) as caught:
        store.dek(record)
    assert caught.value.code == "revoked"
    # A release that was decided just before, and the key is at hand no more: nothing was tampered with.
    store._deks.clear()
    with pytest.raises(Unavailable, match="changed meanwhile"):
        store.dek(old)


def test_a_revoked_key_can_come_back_and_a_destroyed_one_cannot(store):
    dek = SecretBytes.random(32)
    add_key(store, dek=dek)
    store.set_state("m/x", 1, "revoked", OWNER, "a mistake?")
    assert store.dek(store.set_state("m/x", 1, "active", OWNER, "a mistake")) == dek
    store.set_state("m/x", 1, "destroyed", OWNER, "the end")
    for state in ("active", "revoked", "destroyed"):
        with pytest.raises(UsageError, match="destroyed"):
            store.set_state("m/x", 1, state, OWNER, "no")
    assert sql(store.url, "SELECT wrapped FROM keys") == [(None,)]
    with pytest.raises(UsageError, match="no state"):
        store.set_state("m/x", 1, "gone", OWNER, "no")


def test_nothing_of_a_destroyed_key_is_left_in_the_files(tmp_path, clock):
    url = f"sqlite:///{tmp_path}/k.db"
    with Store.create(url, kek(), clock=clock) as store:
        add_key(store)
        ((wrapped,),) = sql(url, "SELECT wrapped FROM keys")
        assert any(wrapped in path.read_bytes() for path in tmp_path.iterdir())
        store.set_state("m/x", 1, "destroyed", OWNER, "the end")
        assert not any(wrapped in path.read_bytes() for path in tmp_path.iterdir())


def test_a_destroyed_key_ends_its_leases(store):
    add_key(store)
    release(store, grant(store, lease="L"))
    store.set_state("m/x", 1, "destroyed", OWNER, "the end")
    assert store.renew(["L"], store.now()) == [{"id": "L", "refused": "revoked"}]


@pytest.mark.parametrize("role", ["auditor", "", "root", "Owner"])
def test_only_who_may_write_writes(store, role):
    add_key(store)
    actor = Actor("eve", role, "token")
    before = store.audit_head()
    attempts = [
        lambda: add_key(store, actor=actor),
        lambda: store.set_state("m/x", 1, "revoked", actor, "x"),
        lambda: store.rotate("m/x", None, actor),
        lambda: store.put_policy(policy(), actor),
        lambda: store.approve_policy("p", 1, "a", b"", actor),
        lambda: store.evict("tdx:00", actor, "x"),
        lambda: store.admit("tdx:00", actor),
        lambda: store.add_token("t", "auditor", None, actor),
        lambda: store.drop_token("t", actor),
        lambda: store.rotate_kek(kek(2), actor),
        lambda: store.accept_clock(actor, "x"),
    ]
    for attempt in attempts:
        with pytest.raises(NotAuthorised):
            attempt()
    assert store.audit_head() == before
    assert AUDITOR.role == "auditor"


def test_every_change_is_on_record_with_who_and_what(store):
    add_key(store, note="n")
    add_key(store)
    store.rotate("m/x", None, OWNER)
    store.set_state("m/x", 1, "revoked", OWNER, "leaked")
    records = store.audit()
    assert [one["event"] for one in records] == [
        "store.created",
        "key.added",
        "key.added",
        "key.rotated",
        "key.state",
    ]
    assert all(one["actor"] == OWNER.to_json() for one in records[1:])
    assert records[1]["details"] == {
        "name": "m/x",
        "version": 1,
        "bundle": BUNDLE.hex(),
        "current": True,
        "meta": {"note": "n"},
    }
    assert records[3]["details"] == {"name": "m/x", "version": 2, "deprecated": [1]}
    assert records[4]["details"]["reason"] == "leaked"
    assert [one["revision"] for one in records] == [1, 2, 3, 4, 5]


def test_a_key_that_cannot_be_wrapped_leaves_nothing(database_url, clock):
    class Broken:
        def __init__(self):
            self.id, self.works = kek().id, True

        def wrap(self, secret, aad):
            if not self.works:
                raise Unavailable("The HSM does not answer.")
            return kek().wrap(secret, aad)

        def unwrap(self, wrapped, aad):
            if not self.works:
                raise Unavailable("The HSM does not answer.")
            return kek().unwrap(wrapped, aad)

    hsm = Broken()
    with Store.create(database_url, hsm, clock=clock) as store:
        record = add_key(store)
        hsm.works = False
        for attempt in (
            lambda: add_key(store),
            lambda: store.set_state("m/x", 1, "revoked", OWNER, "x"),
            lambda: store.dek(record),
        ):
            with pytest.raises(Unavailable, match="HSM"):
                attempt()
        assert store.keys() == [record]
        assert events(store) == ["store.created", "key.added"]
        hsm.works = True
        store.dek(record)


def test_an_hsm_is_asked_once_for_a_fleet(database_url, clock):
    class Counting:
        def __init__(self):
            self.id, self.calls = kek().id, []

        def wrap(self, secret, aad):
            return kek().wrap(secret, aad)

        def unwrap(self, wrapped, aad):
            self.calls.append(aad)
            return kek().unwrap(wrapped, aad)

    hsm = Counting()
    with Store.create(database_url, hsm, clock=clock) as store:
        record = add_key(store)
        del hsm.calls[:]
        threads = [threading.Thread(target=store.dek, args=(record,)) for _ in range(20)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(hsm.calls) == 1


def test_a_key_at_hand_is_wiped_after_seconds():
    now = [0.0]
    cache = DekCache(5, lambda: now[0])
    made = SecretBytes(b"k" * 32)
    assert cache.get(b"n", lambda: made) == made
    now[0] = 4.9
    assert cache.get(b"n", lambda: pytest.fail("it is at hand")) == made
    now[0] = 5.0
    with pytest.raises(ZeroDivisionError):
        cache.get(b"n", lambda: 1 / 0)
    assert bytes(made.buffer) == bytes(32)
    cache.clear()


def test_a_key_at_hand_is_used_where_it_is_and_another_is_made_for_it():
    cache = DekCache()
    made = SecretBytes(b"k" * 32)
    seen = []
    assert cache.use(b"n", lambda: made, lambda dek: seen.append(dek) or bytes(dek.buffer)) == b"k" * 32
    # A copy, which is wiped.
    assert seen[0] is not made
    assert bytes(made.buffer) == b"k" * 32
    assert bytes(seen[0].buffer) == bytes(32)
    assert cache.use(b"n", lambda: pytest.fail("it is at hand"), lambda dek: dek) is made
    with pytest.raises(ZeroDivisionError):
        cache.use(b"n", lambda: pytest.fail("it is at hand"), lambda dek: 1 / 0)
    cache.clear()
    assert cache.use(b"n", lambda: SecretBytes(b"j" * 32), lambda dek: bytes(dek.buffer)) == b"j" * 32
    cache.clear()


def test_keys_at_hand_are_wiped_though_nobody_asks_again():
    cache = DekCache(0.05)
    made = SecretBytes(b"k" * 32)
    cache.get(b"n", lambda: made)
    while (timer := cache._timer) is not None:
        timer.join(60)
    assert bytes(made.buffer) == bytes(32)


def test_keys_at_hand_are_bounded_and_wiped_at_the_end(store):
    cache = DekCache()
    made = [SecretBytes(b"k" * 32) for _ in range(300)]
    for index, one in enumerate(made):
        cache.get(str(index).encode(), lambda one=one: one)
    assert sum(bytes(one.buffer) == b"k" * 32 for one in made) == 256
    cache.clear()
    assert all(bytes(one.buffer) == bytes(32) for one in made)


def test_closing_wipes_the_secrets_of_the_server(store):
    kept = store._secret("signing")
    assert bytes(kept.buffer) != bytes(32)
    store.close()
    assert bytes(kept.buffer) == bytes(32)


def test_secrets_of_the_server_are_made_once_and_differ(store, clock):
    found = {name: store.secret(name) for name in ("signing", "registration", "challenge")}
    assert len({bytes(one.buffer) for one in found.values()}) == 3
    assert all(len(one) == 32 for one in found.values())
    with Store(store.url, kek(), clock=clock) as again:
        assert all(again.secret(name) == one for name, one in found.items())
    with pytest.raises(UsageError):
        store.secret("root")


def test_no_record_shows_a_key(store):
    dek = SecretBytes(b"SECRETSECRETSECRETSECRETSECRET!!")
    record = add_key(store, dek=dek)
    shown = repr(record) + str(store.audit()) + repr(store.__dict__)
    assert "SECRETSECRET" not in shown
    assert pickle.loads(pickle.dumps(record)) == record
    with pytest.raises(HeaderTampered) as caught:
        store.dek(replace(record, bundle=bytes(16)))
    assert "SECRET" not in repr(caught.value.__context__)
    gc.collect()
