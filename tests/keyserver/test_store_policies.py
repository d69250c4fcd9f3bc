"""Policies in the store: versions, approvals, the snapshot that decisions rest on."""

from __future__ import annotations

import pytest
from stores import OWNER, add_key, approvals, approve, kek, policy

from strongroom.errors import InvalidPolicy, NotAuthorised, NotFound, UsageError
from strongroom.keyserver.store import Store
from strongroom.release.policy import Policy


def in_force(store):
    return {one.id: one.version for one in store.snapshot().policies}


def test_a_policy_is_in_force_at_once_and_in_the_history(store, clock):
    record = store.put_policy(policy(), OWNER)
    assert (record.id, record.version, record.status, record.needed) == ("p", 1, "active", 0)
    assert record.policy == policy() and record.author == "olga" and record.created == clock.now
    assert record.digest == Policy.parse(policy()).digest.hex()
    assert in_force(store) == {"p": 1}
    second = store.put_policy(policy(2), OWNER)
    assert second.previous == record.digest
    assert [(one.version, one.status) for one in store.policy_history("p")] == [
        (1, "superseded"),
        (2, "active"),
    ]
    assert [one.version for one in store.policies()] == [2]
    with pytest.raises(NotFound):
        store.policy_history("q")


def test_versions_rise_by_one(store):
    store.put_policy(policy(5), OWNER)  # kept in a repository, say
    for version in (1, 4, 5, 7):
        with pytest.raises(InvalidPolicy, match="in force") as caught:
            store.put_policy(policy(version), OWNER)
        assert caught.value.path == "version"
    store.put_policy(policy(6), OWNER)
    assert in_force(store) == {"p": 6}


@pytest.mark.parametrize("broken", [{"any": []}, {"keys": ["*"]}, {"unknown": 1}, {"id": "../p"}])
def test_what_is_no_policy_leaves_nothing(store, broken):
    before = store.audit_head()
    with pytest.raises(InvalidPolicy):
        store.put_policy(policy() | broken, OWNER)
    assert store.audit_head() == before and store.policies() == []


def test_two_policies_never_share_a_key(store):
    store.put_policy(policy(keys=["m/x"]), OWNER)
    with pytest.raises(InvalidPolicy, match="policy p is about"):
        store.put_policy(policy(id="q", keys=["m/"]), OWNER)
    store.put_policy(policy(id="q", keys=["m/"], shadow=True), OWNER)
    snapshot = store.snapshot()
    assert [one.id for one in snapshot.policies] == ["p"]
    assert [one.id for one in snapshot.shadows] == ["q"]


def test_a_policy_for_test_roots_needs_a_store_for_tests(store, tmp_path):
    with pytest.raises(InvalidPolicy, match="test_roots"):
        store.put_policy(policy(test_roots=True), OWNER)
    with Store.create(f"sqlite:///{tmp_path}/t.db", kek(), test=True) as other:
        other.put_policy(policy(test_roots=True), OWNER)


def test_m_of_n_must_approve(store):
    one, two = policy(1, **approvals(2)), policy(2, subject="CN=other")
    store.put_policy(one, OWNER)
    pending = store.put_policy(two, OWNER)
    assert (pending.status, pending.needed, pending.approvals) == ("pending", 2, ())
    assert in_force(store) == {"p": 1}
    assert approve(store, two, one, "a").status == "pending"
    assert in_force(store) == {"p": 1}
    done = approve(store, two, one, "c")
    assert (done.status, done.approvals) == ("active", ("a", "c"))
    assert in_force(store) == {"p": 2}
    # The new version asks nobody.
    assert store.put_policy(policy(3), OWNER).status == "active"


def test_no_approval_but_the_real_ones_counts(store):
    one, two = policy(1, **approvals(2)), policy(2)
    store.put_policy(one, OWNER)
    store.put_policy(two, OWNER)
    approve(store, two, one, "a")
    with pytest.raises(UsageError, match="already"):
        approve(store, two, one, "a")
    with pytest.raises(NotAuthorised):
        approve(store, two, one, "b", key="a")
    with pytest.raises(NotAuthorised):
        approve(store, two, policy(1), "b")  # on top of something else
    with pytest.raises(NotAuthorised):
        approve(store, two, one, "d", key="a")
    with pytest.raises(NotAuthorised):
        store.approve_policy("p", 2, "b", b"", OWNER)
    other = policy(2, subject="CN=other")
    with pytest.raises(NotAuthorised):
        approve(store, other, one, "b")  # signed for another content
    with pytest.raises(NotFound):
        approve(store, policy(3), one, "b")
    assert in_force(store) == {"p": 1}
    assert approve(store, two, one, "b").status == "active"
    with pytest.raises(NotFound):
        approve(store, two, one, "c")


def test_who_may_approve_is_for_the_version_in_force(store):
    one = policy(1, **approvals(1, "a"))
    two = policy(2, **approvals(1, "b"))
    store.put_policy(one, OWNER)
    store.put_policy(two, OWNER)
    with pytest.raises(NotAuthorised):
        approve(store, two, one, "b")
    assert approve(store, two, one, "a").status == "active"


def test_a_pending_version_is_replaced_with_its_approvals(store):
    one = policy(1, **approvals(2))
    wrong, right = policy(2, subject="CN=wrong"), policy(2, subject="CN=right")
    store.put_policy(one, OWNER)
    store.put_policy(wrong, OWNER)
    approve(store, wrong, one, "a")
    assert store.put_policy(right, OWNER).approvals == ()
    with pytest.raises(NotAuthorised):
        approve(store, wrong, one, "b")
    approve(store, right, one, "b")
    assert approve(store, right, one, "a").status == "active"
    assert [one.status for one in store.policy_history("p")] == ["superseded", "rejected", "active"]


def test_a_pending_version_cannot_take_keys_of_another_policy(store):
    one, two = policy(1, keys=["m/x"], **approvals(1)), policy(2, keys=["n/"])
    store.put_policy(one, OWNER)
    store.put_policy(two, OWNER)
    store.put_policy(policy(id="q", keys=["n/y"]), OWNER)
    with pytest.raises(InvalidPolicy, match="policy q is about"):
        approve(store, two, one, "a")
    assert in_force(store) == {"p": 1, "q": 1}


def test_the_snapshot_is_read_anew_when_something_has_changed(store, clock):
    store.put_policy(policy(), OWNER)
    first = store.snapshot()
    assert store.snapshot() is first
    with Store(store.url, kek(), clock=clock) as replica:
        replica.evict("tdx:00", OWNER, "x")
        replica.add_token("t", "auditor", None, OWNER)
    second = store.snapshot()
    assert second.revision == first.revision + 1 and second.evicted == {"tdx:00"}
    add_key(store)
    assert store.snapshot().revision == second.revision + 1
    store.admit("tdx:00", OWNER)
    assert store.snapshot().evicted == set()


def test_the_whole_document_is_on_record(store):
    store.put_policy(policy(description="prödüction"), OWNER)
    record = store.audit()[-1]
    assert record["event"] == "policy.put"
    assert record["details"]["policy"] == policy(description="prödüction")
    assert record["details"]["status"] == "active"
