"""Releases: used challenges, holders, leases, renewals, machines, the clock."""

from __future__ import annotations

import os
from concurrent.futures import Future
from datetime import timedelta

import pytest
from stores import (
    OWNER,
    START,
    Clock,
    Store,
    add_key,
    claims,
    grant,
    kek,
    policy,
    release,
    sql,
    write,
)

from strongroom.errors import NotFound, Unavailable, UsageError
from strongroom.keyserver.store.releases import EndWrite, RenewWrite

# SHA-256 of "L", the first half.
ON_RECORD = "72dfcfb0c470ac255cde83fb8fe38de8"


@pytest.fixture
def ready(store):
    add_key(store)
    store.put_policy(policy(lease={"seconds": 600, "attest_again_after": 1500}), OWNER)
    return store


def codes(store, *ids, now=None):
    return [one.get("refused", "") for one in store.renew(ids, now or store.now())]


def records(store, event="release"):
    return [one for one in store.audit(limit=1000) if one["event"] == event]


def test_a_release_is_on_record_when_it_is_acknowledged(ready):
    outcome = release(ready, grant(ready, lease="L"), platform="tdx:01")
    assert not outcome.stale and not outcome.challenge_used and outcome.refused == {}
    (record,) = records(ready)
    assert record["platform"] == "tdx:01"
    assert record["details"]["keys"] == [{"name": "m/x", "code": "released", "lease": ON_RECORD}]
    (node,) = ready.nodes()
    assert (node.platform, node.leases, node.evicted, node.last_seen) == ("tdx:01", 1, False, START)


def test_no_record_tells_the_id_of_a_lease(ready):
    """Whoever knows it can renew the lease and end it, and records are for people who only read."""
    id = "a-lease-that-is-its-holders"
    release(ready, grant(ready, lease=id))
    assert codes(ready, id) == [""]
    ready.end_leases([id])
    assert codes(ready, id) == ["attest-again"]
    events = [one["event"] for one in ready.audit(limit=1000)]
    assert events[-3:] == ["release", "lease.renewed", "lease.ended"]
    assert id not in str(list(ready.audit(limit=1000)))


def test_a_challenge_is_used_once_also_where_all_is_refused(ready):
    challenge = os.urandom(32)
    assert not release(ready, challenge=challenge).challenge_used
    again = release(ready, grant(ready, lease="L"), challenge=challenge, platform="tdx:02")
    assert again.challenge_used
    assert codes(ready, "L") == ["attest-again"]
    assert [one["platform"] for one in records(ready, "release.replayed")] == ["tdx:02"]
    assert len(records(ready)) == 1


def test_a_challenge_twice_in_one_batch_is_used_once(ready):
    challenge = os.urandom(32)
    writes = [write(ready, challenge=challenge) for _ in range(5)] + [write(ready)]
    outcomes = ready._commit(writes)
    assert [one.challenge_used for one in outcomes] == [False, True, True, True, True, False]


def test_an_expired_challenge_is_no_good_even_if_nobody_has_used_it(ready, clock):
    late = write(ready, grant(ready, lease="L"))
    clock.move(seconds=60)
    assert ready.commit_release(late).result().challenge_used
    assert codes(ready, "L") == ["attest-again"]


def test_used_challenges_are_kept_long_after_they_have_expired(ready, clock):
    release(ready)
    for step, left in ((timedelta(minutes=59), 2), (timedelta(minutes=3), 2), (timedelta(hours=2), 1)):
        clock.now += step
        release(ready)
        assert sql(ready.url, "SELECT COUNT(*) FROM challenges") == [(left,)]


def test_a_decision_of_yesterday_writes_nothing(ready):
    old = write(ready, grant(ready, lease="L"))
    ready.put_policy(policy(2), OWNER)
    head = ready.audit_head()
    assert ready.commit_release(old).result().stale
    assert ready.audit_head() == head
    assert sql(ready.url, "SELECT COUNT(*) FROM challenges") == [(0,)]
    # The challenge is good still, for the decision of today.
    assert not release(ready, challenge=old.challenge).challenge_used


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.set_state("m/x", 1, "revoked", OWNER, "x"),
        lambda store: store.set_state("m/x", 1, "destroyed", OWNER, "x"),
        lambda store: (add_key(store), store.rotate("m/x", None, OWNER)),
        lambda store: store.put_policy(policy(2), OWNER),
        lambda store: store.evict("tdx:00", OWNER, "x"),
    ],
)
def test_whatever_an_administrator_changes_makes_decisions_stale(ready, change):
    old = write(ready, grant(ready))
    change(ready)
    assert ready.commit_release(old).result().stale


def test_holders_are_distinct_machines(ready):
    for platform in ("a", "b"):
        assert release(ready, grant(ready, holders=2), platform=platform).refused == {}
    refused = release(ready, grant(ready, holders=2, lease="L"), platform="c")
    assert refused.refused == {"L": "holders"}
    assert records(ready)[-1]["details"]["keys"] == [{"name": "m/x", "code": "holders"}]
    assert release(ready, grant(ready, holders=2), platform="a").refused == {}, "it holds it already"
    assert release(ready, grant(ready, holders=3), platform="c").refused == {}
    assert release(ready, grant(ready, holders=None), platform="d").refused == {}


def test_a_machine_with_two_versions_is_one_holder(ready):
    add_key(ready)
    for version in (1, 2):
        assert release(ready, grant(ready, version=version, holders=1), platform="a").refused == {}
    for version in (1, 2):
        assert release(ready, grant(ready, version=version, holders=1), platform="b").refused


def test_holders_in_one_batch_are_counted(ready):
    writes = [
        write(ready, grant(ready, holders=3, lease=f"L{index}"), platform=f"p{index}")
        for index in range(8)
    ]
    refused = [bool(one.refused) for one in ready._commit(writes)]
    assert refused == [False] * 3 + [True] * 5


@pytest.mark.parametrize("how", ["time", "given back", "evicted"])
def test_a_lease_that_has_ended_holds_nothing(ready, clock, how):
    release(ready, grant(ready, holders=1, lease="L"), platform="a")
    assert release(ready, grant(ready, holders=1), platform="b").refused
    if how == "time":
        clock.move(seconds=600)
    elif how == "given back":
        ready.end_leases(["L", "unknown"])
    else:
        ready.evict("a", OWNER, "x")
    assert release(ready, grant(ready, holders=1), platform="b").refused == {}


def test_what_has_ended_is_not_ended_again(ready):
    """Giving it back does not hide why it ended, and leaves no record each time."""
    release(ready, grant(ready, lease="L"), platform="a")
    ready.evict("a", OWNER, "x")
    for _ in range(2):
        ready.end_leases(["L"])
    assert codes(ready, "L") == ["evicted"]
    assert records(ready, "lease.ended") == []


def test_a_machine_that_asks_again_replaces_its_lease(ready):
    release(ready, grant(ready, lease="one"), platform="a")
    release(ready, grant(ready, lease="two"), platform="a")
    assert codes(ready, "one", "two") == ["attest-again", ""]
    assert ready.nodes()[0].leases == 1


def test_one_lease_id_twice_is_the_fault_of_one(ready):
    first = write(ready, grant(ready, lease="L"), platform="a")
    second = write(ready, grant(ready, lease="L"), platform="b")
    third = write(ready, grant(ready, lease="M"), platform="c")
    works = [(one, ready._writer.submit(one)) for one in (first, second, third)]
    outcomes = [future.exception(30) for _, future in works]
    assert outcomes[0] is None and outcomes[2] is None
    assert isinstance(outcomes[1], Unavailable)
    assert ready.verify()


def test_what_cannot_be_recorded_is_not_released(ready):
    bad = write(ready, grant(ready, lease="L"), audit={"score": 0.5})
    good = write(ready, grant(ready, lease="M"), platform="b")
    futures = [ready.commit_release(one) for one in (bad, good)]
    assert isinstance(futures[0].exception(30), UsageError)
    assert futures[1].result(60).refused == {}
    assert codes(ready, "L", "M") == ["attest-again", ""]
    # Its challenge was not used either.
    assert not release(ready, challenge=bad.challenge).challenge_used


def test_what_a_database_cannot_hold_is_the_fault_of_one(ready):
    # Anybody can give back leases: a NUL, which PostgreSQL refuses, must not hinder others.
    bad, good = EndWrite(("a\0",)), write(ready, grant(ready, lease="L"))
    futures = [Future(), Future()]
    ready._writer._write(list(zip((bad, good), futures, strict=True)))
    assert futures[1].result(60).refused == {}
    assert codes(ready, "L") == [""]
    try:
        assert codes(ready, "a\0") == ["attest-again"]
    except UsageError:
        assert ready.url.startswith("postgresql")


def test_text_of_machines_is_kept_as_it_is(ready):
    strange = "jwt:ü\u2028'\"; DROP TABLE leases;--\U0001f511"
    release(ready, grant(ready, lease="L", said=claims("CN=node\x00'")), platform=strange)
    assert records(ready)[-1]["platform"] == strange
    assert ready.nodes()[0].platform == strange
    assert ready.verify()


def test_a_renewal_lasts_from_now_on(ready, clock):
    release(ready, grant(ready, lease="L"))
    clock.move(seconds=400)
    (result,) = ready.renew(["L"], clock.now)
    assert result == {
        "id": "L",
        "not_after": "2026-03-01T12:16:40.000Z",
        "renew_after": "2026-03-01T12:11:40.000Z",
    }
    clock.move(seconds=599)
    assert codes(ready, "L") == [""]
    (first, second) = records(ready, "lease.renewed")
    assert first["details"]["leases"] == [
        {"lease": ON_RECORD, "key": "m/x@1", "code": "renewed", "policy": "p", "policy_version": 1}
    ]
    assert second["platforms"] == ["mtls:00"]


def test_a_lease_that_has_run_out_is_not_renewed(ready, clock):
    release(ready, grant(ready, lease="L"))
    clock.move(seconds=600)
    assert codes(ready, "L") == ["expired"]
    clock.move(days=2)
    release(ready)  # and it is forgotten
    assert codes(ready, "L") == ["attest-again"]


def test_a_machine_must_attest_again_however_often_it_renews(ready, clock):
    release(ready, grant(ready, lease="L"))
    for _ in range(2):
        clock.move(seconds=500)
        assert codes(ready, "L") == [""]
    clock.move(seconds=500)
    assert codes(ready, "L") == ["attest-again"]


def test_claims_are_judged_by_the_policy_of_today(ready):
    release(ready, grant(ready, lease="L"))
    assert codes(ready, "L") == [""]
    ready.put_policy(policy(2, subject="CN=other"), OWNER)
    assert codes(ready, "L") == ["policy"]
    (reason,) = records(ready, "lease.renewed")[-1]["details"]["leases"][0]["reasons"]
    assert reason["found"] == "CN=node" and "CN=other" in reason["expected"]
    ready.put_policy(policy(3, keys=["n/"]), OWNER)
    assert codes(ready, "L") == ["no-policy"]
    ready.put_policy(policy(4, lease={"renew": False}), OWNER)
    assert codes(ready, "L") == ["attest-again"]
    ready.put_policy(policy(5, not_after="2026-03-01T11:00:00Z"), OWNER)
    assert codes(ready, "L") == ["expired"]


def test_a_renewal_never_outlasts_policy_or_evidence(ready, clock):
    ready.put_policy(policy(2, not_after="2026-03-01T12:04:00Z"), OWNER)
    release(ready, grant(ready, lease="L"), platform="a")
    release(
        ready,
        grant(ready, lease="M", said=claims(not_after="2026-03-01T12:03:00+00:00")),
        platform="b",
    )
    found = ready.renew(["L", "M"], clock.now)
    assert [one["not_after"] for one in found] == [
        "2026-03-01T12:04:00.000Z",
        "2026-03-01T12:03:00.000Z",
    ]
    clock.move(seconds=180)
    assert codes(ready, "M") == ["expired"]


@pytest.mark.parametrize("end", ["given back", "expired"])
def test_a_lease_that_ends_while_its_renewal_is_decided_is_not_renewed(ready, clock, end):
    release(ready, grant(ready, lease="L"))
    later = clock.now + timedelta(hours=1)
    renewal = RenewWrite(ready.snapshot().revision, {"L": later}, [{"lease": "L"}])
    if end == "given back":
        assert ready._commit([EndWrite(["L"]), renewal])[1] is False
        assert codes(ready, "L") == ["attest-again"]
    else:
        clock.move(seconds=600)
        assert ready._commit([renewal]) == [False]
        assert codes(ready, "L") == ["expired"]


def test_evicted_revoked_and_given_back_leases_say_so(ready):
    for name in "abc":
        release(ready, grant(ready, lease=name), platform=name)
    ready.evict("a", OWNER, "stolen")
    assert codes(ready, "a", "b") == ["evicted", ""]
    ready.admit("a", OWNER)
    assert codes(ready, "a") == ["evicted"], "what has ended does not come back"
    ready.end_leases(["c"])
    assert codes(ready, "c") == ["attest-again"]
    ready.set_state("m/x", 1, "revoked", OWNER, "leaked")
    assert codes(ready, "b") == ["revoked"]
    assert len(records(ready, "lease.ended")) == 1


def test_ids_that_nobody_knows_leave_no_record(ready):
    head = ready.audit_head()
    assert codes(ready, "x", "y") == ["attest-again"] * 2
    ready.end_leases(["x"])
    assert ready.audit_head() == head


def test_claims_under_roots_for_tests_are_not_renewed_in_production(ready):
    said = claims() | {"test_root": True}
    release(ready, grant(ready, lease="L", said=said))
    assert [one["refused"] for one in ready.renew(["L"], ready.now(), True)] == ["evidence"]


def test_claims_on_record_that_are_not_whole_are_not_renewed(ready):
    release(ready, grant(ready, lease="L"))
    sql(ready.url, "UPDATE leases SET claims = ?", '[{"kind": "mtls"}]')
    assert codes(ready, "L") == ["attest-again"]


def test_a_renewal_that_meets_a_change_is_decided_again(ready):
    from strongroom.release.decision import renew

    release(ready, grant(ready, lease="L"))
    changes = []

    def judge(*arguments):
        if not changes:
            changes.append(ready.put_policy(policy(2, subject="CN=other"), OWNER))
        return renew(*arguments)

    assert ready.renew(["L"], ready.now(), False, judge) == [{"id": "L", "refused": "policy"}]

    def restless(*arguments):
        ready.evict(f"tdx:{len(changes)}", OWNER, "x")
        changes.append(0)
        return renew(*arguments)

    with pytest.raises(Unavailable):
        ready.renew(["L"], ready.now(), False, restless)


def test_machines_are_evicted_once_and_for_all(ready):
    ready.evict("tdx:ff", OWNER, "never seen")
    (node,) = ready.nodes()
    assert (node.platform, node.evicted, node.reason, node.last_seen) == (
        "tdx:ff",
        True,
        "never seen",
        None,
    )
    assert ready.snapshot().evicted == {"tdx:ff"}
    ready.admit("tdx:ff", OWNER)
    with pytest.raises(NotFound):
        ready.admit("tdx:ff", OWNER)
    for junk in ("", "x\n", "x" * 301):
        with pytest.raises(UsageError):
            ready.evict(junk, OWNER, "x")


def test_a_clock_set_back_stops_releases_and_says_so(ready, clock):
    release(ready, grant(ready, lease="L"))
    clock.move(seconds=-29)
    release(ready)
    clock.move(seconds=-2)
    for attempt in (
        lambda: release(ready),
        lambda: ready.renew(["L"], START),
        lambda: ready.end_leases(["L"]),
        ready.check,  # what balancers ask
    ):
        with pytest.raises(Unavailable, match="31 seconds behind"):
            attempt()
    clock.now = START
    release(ready)
    ready.check()


def test_a_replica_with_another_clock_is_stopped_too(ready):
    release(ready)
    behind = Clock(START - timedelta(minutes=5))
    with Store(ready.url, kek(), clock=behind) as replica, pytest.raises(Unavailable, match="behind"):
        release(replica, revision=ready.snapshot().revision)


def test_times_of_records_never_fall_but_where_a_clock_was_accepted(ready, clock):
    clock.move(days=3650)  # a clock that was ahead
    release(ready)
    clock.now = START + timedelta(minutes=1)
    ready.evict("x", OWNER, "administrators can still act")
    with pytest.raises(Unavailable):
        release(ready)
    ready.accept_clock(OWNER, "the clock was ahead")
    release(ready)
    assert ready.verify()
    times = [one["time"] for one in ready.audit()][-4:]
    assert times[0] == times[1] > times[2] == times[3]


def test_nothing_is_written_once_the_store_is_closed(ready):
    ready.close()
    for attempt in (
        lambda: ready.commit_release(write(ready, revision=0)),
        lambda: add_key(ready),
        ready.snapshot,
    ):
        with pytest.raises(Unavailable, match="closed"):
            attempt()


def test_what_waits_is_written_before_the_store_closes(ready, clock):
    futures = [ready.commit_release(write(ready)) for _ in range(300)]
    ready.close()
    assert not any(one.result(0).challenge_used for one in futures)
    with Store(ready.url, kek(), clock=clock) as again:
        assert len(records(again)) == 300
