"""Somebody who can write to the database, or has a copy of it, and has not the root key."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from stores import OWNER, Clock, Store, add_key, grant, kek, policy, release, sql

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    AuditBroken,
    HeaderTampered,
    InvalidKey,
    NotAuthorised,
    NotFound,
    UsageError,
)
from strongroom.release.audit import GENESIS, Head, record_hash, verify_chain


@pytest.fixture
def full(store):
    for _ in range(2):
        add_key(store)
    add_key(store, name="n/y", bundle=bytes(16))
    store.put_policy(policy(), OWNER)
    store.put_policy(policy(2), OWNER)
    store.evict("tdx:bad", OWNER, "stolen")
    store.set_state("m/x", 2, "revoked", OWNER, "leaked")
    release(store, grant(store))
    return store


def fresh(store):
    """As another process sees the database."""
    return Store(store.url, kek(), clock=store._clock)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE keys SET version = 9 WHERE name = 'n/y'",
        "UPDATE keys SET name = 'n/z' WHERE name = 'n/y'",
        "UPDATE keys SET epoch = 2 WHERE name = 'n/y'",
        "UPDATE keys SET state = 'deprecated' WHERE name = 'n/y'",
        "UPDATE keys SET bundle = (SELECT bundle FROM keys WHERE version = 2) WHERE name = 'n/y'",
        "UPDATE keys SET wrapped = (SELECT wrapped FROM keys WHERE version = 2) WHERE name = 'n/y'",
        "UPDATE keys SET wrapped = NULL WHERE name = 'n/y'",
    ],
)
def test_a_wrapped_key_opens_in_its_own_record_only(full, edit):
    sql(full.url, edit)
    with fresh(full) as store:
        (record,) = store.keys("n/z") or store.keys("n/y")
        with pytest.raises(HeaderTampered, match="does not open"):
            store.dek(record)
        with pytest.raises(HeaderTampered):
            store.set_state(record.name, record.version, "revoked", OWNER, "x")


def test_a_revoked_key_cannot_be_made_active_again(full):
    sql(full.url, "UPDATE keys SET state = 'active' WHERE name = 'm/x' AND version = 2")
    with fresh(full) as store:
        with pytest.raises(HeaderTampered, match="does not open"):
            store.dek(store.keys("m/x")[1])
        with pytest.raises(HeaderTampered):
            store.key("m/x", 2)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE keys SET current = (version = 2) WHERE name = 'm/x' AND version = 1",
        "UPDATE keys SET state = 'active', epoch = 1 WHERE name = 'm/x' AND version = 2",
        "DELETE FROM keys WHERE name = 'm/x' AND version = 2",
        "UPDATE policies SET status = 'superseded' WHERE version = 2",
        "DELETE FROM policies",
        "UPDATE policies SET digest = one.digest FROM policies AS one WHERE one.version = 1",
        "UPDATE policies SET document = one.document FROM policies AS one WHERE one.version = 1",
        "UPDATE policies SET document = '{}' WHERE version = 2",
        "UPDATE policies SET document = 'x' WHERE version = 2",
        "UPDATE policies SET needed = 9 WHERE version = 2",
        "UPDATE nodes SET evicted = (1 = 0)",
        "DELETE FROM nodes",
        "INSERT INTO nodes (platform, evicted) VALUES ('tdx:good', (1 = 1))",
        "INSERT INTO crls (issuer, number) VALUES ('CN=a', '7')",
        "UPDATE store SET revision = 5",
        "UPDATE store SET revision = 500",
        "UPDATE store SET state_sequence = 5",
        "UPDATE store SET state_signature = wrapped FROM (SELECT wrapped FROM secrets LIMIT 1) AS one",
        "UPDATE audit SET revision = NULL WHERE revision = 8",
        "UPDATE audit SET revision = 100 WHERE sequence = 1",
    ],
)
def test_whatever_decisions_rest_on_is_signed(full, edit):
    full.snapshot()
    sql(full.url, edit)
    with fresh(full) as store, pytest.raises(HeaderTampered, match="changed by somebody else"):
        store.snapshot()
    with fresh(full) as store, pytest.raises((HeaderTampered, AuditBroken)):
        store.verify()


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM crls",
        "UPDATE crls SET number = '6'",
        "UPDATE crls SET number = 'x'",
        "UPDATE crls SET issuer = 'CN=b'",
    ],
)
def test_the_newest_revocation_lists_are_signed(full, edit):
    full.crls_seen({"CN=a": 7})
    sql(full.url, edit)
    with fresh(full) as store, pytest.raises(HeaderTampered, match="changed by somebody else"):
        store.snapshot()


def test_a_record_put_back_as_it_was_is_found(full):
    """The wrapped key of before fits the record of before: the signed state does not."""
    (before,) = sql(
        full.url, "SELECT wrapped, epoch, state FROM keys WHERE name = 'm/x' AND version = 1"
    )
    full.set_state("m/x", 1, "revoked", OWNER, "leaked")
    edit = "UPDATE keys SET wrapped = ?, epoch = ?, state = ? WHERE name = 'm/x' AND version = 1"
    sql(full.url, edit, *before)
    with fresh(full) as store:
        with pytest.raises(HeaderTampered):
            store.snapshot()
        with pytest.raises(HeaderTampered):
            store.verify()


def test_a_record_put_back_while_the_server_runs_is_found(full):
    """The server has read the state before, and nobody has told it that there is another."""
    (before,) = sql(
        full.url, "SELECT wrapped, epoch, state FROM keys WHERE name = 'm/x' AND version = 1"
    )
    full.set_state("m/x", 1, "revoked", OWNER, "leaked")
    full.snapshot()
    edit = "UPDATE keys SET wrapped = ?, epoch = ?, state = ? WHERE name = 'm/x' AND version = 1"
    sql(full.url, edit, *before)
    with pytest.raises(HeaderTampered):
        full.key("m/x", 1)
    with pytest.raises(HeaderTampered):
        full.key("m/x")


def test_what_somebody_else_has_changed_is_not_signed_with_the_next_change(full):
    sql(full.url, "UPDATE nodes SET evicted = (1 = 0)")
    for change in (
        lambda: add_key(full),
        lambda: full.evict("tdx:other", OWNER, "x"),
        lambda: full.put_policy(policy(3), OWNER),
        lambda: full.rotate_kek(kek(2), OWNER),
    ):
        with pytest.raises(HeaderTampered, match="changed by somebody else"):
            change()


def test_policies_of_somebody_else_are_not_read(full):
    evil = policy(2, subject="CN=evil")
    sql(full.url, "UPDATE policies SET document = ? WHERE version = 2", json.dumps(evil))
    with fresh(full) as store:
        for read in (store.snapshot, store.policies, lambda: store.policy_history("p")):
            with pytest.raises(HeaderTampered):
                read()


def test_a_pending_policy_cannot_be_exchanged_before_its_last_approval(full):
    from test_store_policies import approvals, approve

    three, four = policy(3, **approvals(1)), policy(4)
    full.put_policy(three, OWNER)
    full.put_policy(four, OWNER)
    evil = policy(4, subject="CN=evil")
    sql(full.url, "UPDATE policies SET document = ? WHERE version = 4", json.dumps(evil))
    with pytest.raises(HeaderTampered):
        approve(full, four, three, "a")
    sql(full.url, "UPDATE policies SET document = ? WHERE version = 4", json.dumps(four))
    sql(full.url, "UPDATE policies SET needed = 0 WHERE version = 4")
    with pytest.raises(HeaderTampered):
        approve(full, four, three, "a")


def test_an_approval_put_in_behind_the_stores_back_does_not_count(full):
    from test_store_policies import approvals, approve

    three, four = policy(3, **approvals(2)), policy(4)
    full.put_policy(three, OWNER)
    full.put_policy(four, OWNER)
    forged = Ed25519PrivateKey.generate().sign(b"x")
    sql(
        full.url,
        "INSERT INTO approvals (number, approver, signature)"
        " SELECT number, 'b', ? FROM policies WHERE version = 4",
        forged,
    )
    with pytest.raises(NotAuthorised):
        approve(full, four, three, "a")
    assert {one.version for one in full.snapshot().policies} == {3}


@pytest.mark.parametrize("name", ["signing", "registration", "challenge", "tokens"])
def test_secrets_of_the_server_open_in_their_own_row_only(full, name):
    other = "challenge" if name != "challenge" else "tokens"
    sql(
        full.url,
        f"UPDATE secrets SET wrapped = (SELECT wrapped FROM secrets WHERE name = '{other}')"
        f" WHERE name = '{name}'",
    )
    with pytest.raises(HeaderTampered), fresh(full) as store:
        store.secret(name if name != "tokens" else "registration")
        store.verify()


def test_the_marker_of_a_store_for_tests_cannot_be_edited(tmp_path, database_url):
    with Store.create(database_url, kek(), test=True) as store:
        add_key(store)
    sql(database_url, "UPDATE store SET test = (1 = 0)")
    with pytest.raises(HeaderTampered):
        Store(database_url, kek())


def test_a_production_store_cannot_be_made_one_for_tests(full):
    sql(full.url, "UPDATE store SET test = (1 = 1)")
    with pytest.raises(HeaderTampered):
        Store(full.url, kek(), allow_test_roots=True)


def test_a_copy_opens_nothing_without_the_root_key(tmp_path):
    dek = SecretBytes(b"SECRETSECRETSECRETSECRETSECRET!!")
    with Store.create(f"sqlite:///{tmp_path}/k.db", kek()) as store:
        record = add_key(store, dek=dek)
        shutil.copytree(tmp_path, tmp_path / "copy")
        secret = store.secret("signing")
        signing = bytes(secret.buffer)
    for path in (tmp_path / "copy").iterdir():
        content = path.read_bytes()
        assert b"SECRETSECRET" not in content and signing not in content
    url = f"sqlite:///{tmp_path}/copy/k.db"
    with pytest.raises(InvalidKey, match="under the root key") as caught:
        Store(url, kek(2))
    assert "[kek]" in caught.value.hint
    # He writes the id of his own root key there.
    sql(url, "UPDATE store SET kek = ?", kek(2).id)
    with pytest.raises(HeaderTampered):
        Store(url, kek(2))
    with Store(f"sqlite:///{tmp_path}/copy/k.db".replace("copy/", ""), kek()) as store:
        assert store.dek(record) == dek


def test_a_key_does_not_open_in_another_store_under_the_same_root_key(tmp_path):
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in "ab"]
    for url in urls:
        with Store.create(url, kek()) as store:
            add_key(store)
    ((wrapped,),) = sql(urls[0], "SELECT wrapped FROM keys")
    sql(urls[1], "UPDATE keys SET wrapped = ?", wrapped)
    with Store(urls[1], kek()) as store, pytest.raises(HeaderTampered):
        store.dek(store.key("m/x"))


def test_every_byte_of_a_wrapped_key_counts(tmp_path):
    url = f"sqlite:///{tmp_path}/k.db"
    with Store.create(url, kek()) as store:
        record = add_key(store)
        ((wrapped,),) = sql(url, "SELECT wrapped FROM keys")
        for index in range(len(wrapped)):
            changed = bytearray(wrapped)
            changed[index] ^= 1
            sql(url, "UPDATE keys SET wrapped = ?", bytes(changed))
            with pytest.raises(HeaderTampered):
                store.dek(record)
        for size in range(len(wrapped)):
            sql(url, "UPDATE keys SET wrapped = ?", wrapped[:size])
            with pytest.raises(HeaderTampered):
                store.dek(record)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("UPDATE audit SET record = REPLACE(record, 'stolen', 'sold')", "changed"),
        ("UPDATE audit SET record = 'x' WHERE sequence = 3", "record 3 is no record"),
        ("UPDATE audit SET record = '[]' WHERE sequence = 3", "record 3 is no record"),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE sequence = 2) WHERE sequence = 3", "3"),
        ("DELETE FROM audit WHERE sequence = 3", "record 3 was left out"),
        ("DELETE FROM audit WHERE sequence = 1", "record 1 was left out"),
        ("UPDATE audit SET sequence = 99 WHERE sequence = 3", "record 3 was left out|99 is no record"),
    ],
)
def test_an_edited_audit_trail_is_found(full, edit, says):
    assert full.verify()
    sql(full.url, edit)
    with pytest.raises(AuditBroken, match=says):
        full.verify()


def forge(store, change):
    """Write all records anew, with hashes that fit, as somebody can who knows how it is done."""
    records, head = store.audit(limit=1000), GENESIS
    for record in records:
        change(record)
        record.pop("hash")
        record["previous"] = head.hash
        head = Head(record["sequence"], record_hash(record))
        text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        sql(
            store.url,
            "UPDATE audit SET record = ?, hash = ? WHERE sequence = ?",
            text,
            head.hash,
            head.sequence,
        )


def test_a_trail_computed_anew_is_found_by_the_anchor(database_url, tmp_path):
    anchor = tmp_path / "anchor"
    with Store.create(database_url, kek(), clock=Clock(), anchor=anchor) as store:
        store.url = database_url
        store.evict("tdx:bad", OWNER, "stolen")
        forge(store, lambda record: record["details"].pop("reason", None))
        verify_chain(store.audit())  # in itself it is whole
        with pytest.raises(AuditBroken, match="kept elsewhere"):
            store.verify()
    with pytest.raises(AuditBroken):
        Store(database_url, kek(), clock=Clock(), anchor=anchor)


def rolled_back(tmp_path, work):
    """A database of SQLite, put back as it was before ``work``."""
    place = tmp_path / "db"
    place.mkdir()
    url, anchor = f"sqlite:///{place}/k.db", tmp_path / "anchor"
    with Store.create(url, kek(), clock=Clock(), anchor=anchor) as store:
        add_key(store)
        release(store, grant(store))
    shutil.copytree(place, tmp_path / "backup")
    with Store(url, kek(), clock=Clock(), anchor=anchor) as store:
        work(store)
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place)
    return url, anchor


def test_a_database_that_was_rolled_back_does_not_open(tmp_path):
    url, anchor = rolled_back(
        tmp_path, lambda store: store.set_state("m/x", 1, "revoked", OWNER, "leaked")
    )
    with pytest.raises(AuditBroken, match=r"rolled back: its audit trail ends at record 3, .* 4"):
        Store(url, kek(), clock=Clock(), anchor=anchor)


def test_a_database_that_was_rolled_back_and_written_to_does_not_open(tmp_path):
    url, anchor = rolled_back(tmp_path, lambda store: release(store, grant(store)))
    with Store(url, kek(), clock=Clock()) as store:  # somebody runs it without the anchor
        for _ in range(5):
            release(store, grant(store))
    with pytest.raises(AuditBroken, match="record 4 was changed"):
        Store(url, kek(), clock=Clock(), anchor=anchor)


def test_a_restore_on_purpose_is_accepted_on_record(tmp_path):
    url, anchor = rolled_back(tmp_path, lambda store: release(store, grant(store)))
    head = Store.accept_head(url, kek(), anchor, OWNER, "disk lost", clock=Clock())
    with Store(url, kek(), clock=Clock(), anchor=anchor) as store:
        record = store.audit()[-1]
        assert (record["event"], record["sequence"]) == ("anchor.accepted", head.sequence)
        assert record["details"]["reason"] == "disk lost"
        assert record["details"]["before"]["sequence"] == 4
        release(store, grant(store))
        assert store.verify().sequence == head.sequence + 1


def test_an_anchor_goes_with_every_acknowledged_write(database_url, tmp_path):
    anchor = tmp_path / "anchor"
    with Store.create(database_url, kek(), clock=Clock(), anchor=anchor) as store:

        def kept():
            document = json.loads(anchor.read_bytes())
            return document["sequence"], document["hash"]

        add_key(store)
        assert kept() == store.audit_head()
        release(store, grant(store))
        assert kept() == store.audit_head()
        with Store(database_url, kek(), clock=Clock(), anchor=anchor) as replica:
            release(replica, grant(replica))
        assert kept() == store.audit_head()
        assert len(anchor.read_bytes()) == 256


def test_an_anchor_never_goes_back(tmp_path):
    from strongroom.keyserver.store.anchor import Anchor

    file = Anchor.create(tmp_path / "a", "s", Head(5, "5" * 64))
    file.advance(Head(4, "4" * 64))
    assert file.read() == Head(5, "5" * 64)
    file.advance(Head(6, "6" * 64))
    assert file.read() == Head(6, "6" * 64)
    file.close()


def test_a_missing_foreign_or_damaged_anchor_is_no_anchor(tmp_path):
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in "ab"]
    for url, name in zip(urls, "ab", strict=True):
        Store.create(url, kek(), clock=Clock(), anchor=tmp_path / name).close()
    with pytest.raises(NotFound) as caught:
        Store(urls[0], kek(), clock=Clock(), anchor=tmp_path / "c")
    assert "accept-head" in caught.value.hint
    with pytest.raises(AuditBroken, match="not the anchor of this database"):
        Store(urls[0], kek(), clock=Clock(), anchor=tmp_path / "b")
    with pytest.raises(AlreadyExists):
        Store.create(f"sqlite:///{tmp_path}/c.db", kek(), anchor=tmp_path / "b")
    for content in (b"", b"{}", b"x" * 256, b'{"v":1,"store":"s","sequence":"1","hash":1}'):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(AuditBroken):
            Store(urls[0], kek(), clock=Clock(), anchor=tmp_path / "a")
    Store.accept_head(urls[0], kek(), tmp_path / "a", OWNER, "damaged", clock=Clock())
    Store.accept_head(urls[1], kek(), tmp_path / "new", OWNER, "its first", clock=Clock())
    Store(urls[1], kek(), clock=Clock(), anchor=tmp_path / "new").close()


def test_tokens_cannot_be_made_or_raised_in_the_database(full, clock):
    _, auditor = full.add_token("ada", "auditor", None, OWNER)
    _, short = full.add_token("sam", "operator", full.now() + timedelta(seconds=1), OWNER)
    clock.move(seconds=1)
    sql(full.url, "UPDATE tokens SET role = 'owner'")
    sql(full.url, "UPDATE tokens SET expires = NULL")
    for token in (auditor, short):
        with pytest.raises(NotAuthorised):
            full.token(token)


def test_a_store_is_not_made_twice(full):
    with pytest.raises(AlreadyExists):
        Store.create(full.url, kek())
    with pytest.raises(UsageError, match="for production"):
        Store(full.url, kek(), allow_test_roots=True)
