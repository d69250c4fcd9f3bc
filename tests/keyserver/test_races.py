"""Several at once: threads, two stores, two processes. Whatever must happen once happens once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from stores import OWNER, Store, add_key, approvals, approve, grant, kek, policy, release, write

from strongroom.errors import AlreadyExists, InvalidPolicy, NotAuthorised, NotFound, UsageError


@pytest.fixture
def pair(database_url):
    """Two stores of one database, as two replicas have them."""
    with Store.create(database_url, kek()) as one, Store(database_url, kek()) as two:
        add_key(one)
        one.put_policy(policy(), OWNER)
        yield one, two


def at_once(*works):
    """Run all of them in threads, started together; their results."""
    barrier, results = threading.Barrier(len(works)), [None] * len(works)

    def run(index, work):
        barrier.wait(60)
        try:
            results[index] = work()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    return results


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def asking(ask, ready):
    """Four threads ask again and again, before and after; they have begun when this does."""
    stop, failed = threading.Event(), []

    def run():
        try:
            while not stop.is_set():
                ask()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: ready() or failed)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    assert failed == []


def trail(store):
    """All records; a thousand releases may come before a change that races with them."""
    records = []
    while True:
        page = store.audit(len(records), 1000)
        records += page
        if len(page) < 1000:  # others may be writing
            return records


def sequences(store, event):
    return [record["sequence"] for record in trail(store) if record["event"] == event]


def test_a_challenge_presented_by_many_at_once_is_used_once(pair):
    for _ in range(5):
        challenge = os.urandom(32)
        writes = [
            (store, write(store, grant(store), challenge=challenge, platform=f"p{index}"))
            for index, store in enumerate(pair * 8)
        ]
        outcomes = at_once(
            *(
                lambda store=store, one=one: store.commit_release(one).result(60)
                for store, one in writes
            )
        )
        assert Counter(one.challenge_used for one in outcomes) == {False: 1, True: 15}
    one, _ = pair
    assert Counter(record["event"] for record in trail(one))["release"] == 5
    assert one.verify()


def test_holders_are_counted_over_replicas(pair):
    writes = [
        (store, write(store, grant(store, holders=5), platform=f"p{index}"))
        for index, store in enumerate(pair * 10)
    ]
    outcomes = at_once(
        *(lambda store=store, one=one: store.commit_release(one).result(60) for store, one in writes)
    )
    assert sum(not one.refused for one in outcomes) == 5
    assert sum(node.leases for node in pair[0].nodes()) == 5


def test_versions_registered_at_once_are_all_different(pair):
    records = at_once(*(lambda store=store: add_key(store) for store in pair * 8))
    assert sorted(one.version for one in records) == list(range(2, 18))
    assert sum(one.current for one in pair[0].keys("m/x")) == 1


def test_one_version_registered_at_once_is_registered_once(pair):
    results = at_once(*(lambda store=store: add_key(store, version=5) for store in pair * 4))
    assert sum(isinstance(one, AlreadyExists) for one in results) == 7


def test_one_version_of_a_policy_is_put_in_once(pair):
    results = at_once(
        *(
            lambda store=store, index=index: store.put_policy(policy(2, subject=f"CN={index}"), OWNER)
            for index, store in enumerate(pair * 4)
        )
    )
    assert sum(isinstance(one, InvalidPolicy) for one in results) == 7
    assert len(pair[0].policy_history("p")) == 2


CHANGES = {
    "key.state": lambda store: store.set_state("m/x", 1, "revoked", OWNER, "leaked"),
    "policy.put": lambda store: store.put_policy(policy(2, subject="CN=another"), OWNER),
    "node.evicted": lambda store: store.evict("tdx:01", OWNER, "stolen"),
}


@pytest.mark.parametrize("event", CHANGES)
def test_no_release_is_granted_after_a_change_was_acknowledged(pair, event):
    """Releases that are decided race with a change: in the audit trail none of them comes after it."""
    one, two = pair
    revision = two.snapshot().revision
    granted = []

    def ask():
        outcome = release(two, grant(two), platform=os.urandom(4).hex(), revision=revision)
        granted.append(not outcome.stale)

    with asking(ask, lambda: len(granted) >= 20):
        CHANGES[event](one)
        (changed,) = sequences(one, event)[-1:]
    releases = sequences(one, "release")
    assert releases and max(releases) < changed
    assert sum(granted) == len(releases)
    assert sum(node.leases for node in one.nodes()) == (0 if event == "key.state" else len(releases))


def test_no_lease_is_renewed_after_a_revocation_was_acknowledged(pair):
    one, two = pair
    release(one, grant(one, lease="L"))
    answers = []

    def ask():
        (answer,) = two.renew(["L"], two.now())
        answers.append(answer.get("refused", ""))

    with asking(ask, lambda: len(answers) >= 20):
        CHANGES["key.state"](one)
        (revoked,) = sequences(one, "key.state")
        later = len(answers) + 8
        wait_for(lambda: len(answers) >= later)
    assert set(answers) == {"", "revoked"}
    assert set(answers[later:]) <= {"revoked"}
    renewed = [
        record["sequence"]
        for record in trail(one)
        if record["event"] == "lease.renewed" and record["details"]["leases"][0]["code"] == "renewed"
    ]
    assert len(renewed) == answers.count("")
    assert max(renewed) < revoked
    assert one.verify()


def test_an_approver_counts_once_at_whichever_replica(pair):
    one, two = pair
    old, new = policy(2, **approvals(2)), policy(3)
    one.put_policy(old, OWNER)
    two.put_policy(new, OWNER)
    results = at_once(*(lambda store=store: approve(store, new, old, "a") for store in pair * 4))
    assert sum(isinstance(each, UsageError) for each in results) == 7
    pending = two.policy_history("p")[-1]
    assert (pending.status, pending.approvals) == ("pending", ("a",))
    # With the second it is in force, and a third comes too late.
    results = at_once(
        lambda: approve(one, new, old, "b"),
        lambda: approve(two, new, old, "c"),
    )
    assert sorted(type(each).__name__ for each in results) == ["NotFound", "PolicyRecord"]
    done = one.policy_history("p")[-1]
    assert (done.status, len(done.approvals)) == ("active", 2)
    assert [each.version for each in two.snapshot().policies] == [3]
    assert one.verify()


def test_a_token_is_dropped_once_and_worthless_everywhere(pair):
    one, two = pair
    id, token = one.add_token("bob", "operator", None, OWNER)
    assert two.token(token).name == "bob"
    results = at_once(*(lambda store=store: store.drop_token(id, OWNER) for store in pair * 4))
    assert [each for each in results if each is None] == [None]
    assert sum(isinstance(each, NotFound) for each in results) == 7
    for store in pair:
        with pytest.raises(NotAuthorised):
            store.token(token)
    assert len(sequences(one, "token.dropped")) == 1


def test_snapshots_read_while_others_write_are_whole(pair):
    """A reader never sees half of a change, which would not have the server's signature."""
    one, two = pair
    stop = threading.Event()

    def change():
        index = 0
        while not stop.is_set():
            index += 1
            add_key(one, name=f"m/k{index}")
            one.evict(f"tdx:{index:x}", OWNER, "x")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = {two.snapshot().revision}
        while len(seen) < 10 and thread.is_alive():
            seen.add(two.snapshot().revision)
    finally:
        stop.set()
        thread.join(60)
    assert len(seen) == 10


def present(url, challenges, barrier, results):
    with Store(url, kek()) as store:
        revision = store.snapshot().revision
        barrier.wait(60)
        futures = []
        for challenge in challenges:
            one = write(store, challenge=challenge, platform=str(os.getpid()), revision=revision)
            futures.append(store.commit_release(one))
        results.put([not one.result(60).challenge_used for one in futures])


def test_two_processes_present_the_same_challenges(database_url):
    with Store.create(database_url, kek()) as store:
        add_key(store)
        challenges = [os.urandom(32) for _ in range(200)]
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(2), context.Queue()
        processes = [
            context.Process(target=present, args=(database_url, order, barrier, results))
            for order in (challenges, challenges[::-1])
        ]
        for process in processes:
            process.start()
        first, second = results.get(timeout=120), results.get(timeout=120)
        for process in processes:
            process.join(60)
        assert sum(first) + sum(second) == 200
        assert [a ^ b for a, b in zip(first, second[::-1], strict=True)] == [True] * 200
        assert store.verify().sequence == 2 + 400
