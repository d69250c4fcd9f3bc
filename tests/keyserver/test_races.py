"""Several at once: threads, two stores, two processes. Whatever must happen once happens once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter

import pytest
from stores import OWNER, Store, add_key, grant, kek, policy, release, write

from strongroom.errors import AlreadyExists, InvalidPolicy


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
    assert Counter(record["event"] for record in one.audit(limit=1000))["release"] == 5
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


def test_no_release_is_granted_after_a_revocation_was_acknowledged(pair):
    """Releases race with a revocation: in the audit trail none of them comes after it."""
    one, two = pair
    revision = two.snapshot().revision
    stop = threading.Event()
    granted = []

    def ask():
        while not stop.is_set():
            outcome = release(two, grant(two), platform=os.urandom(4).hex(), revision=revision)
            granted.append(not outcome.stale)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(granted) < 20 and all(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    one.set_state("m/x", 1, "revoked", OWNER, "leaked")
    (revoked,) = [
        record["sequence"] for record in one.audit(limit=1000) if record["event"] == "key.state"
    ]
    stop.set()
    for thread in threads:
        thread.join(60)
    releases = [record["sequence"] for record in one.audit(limit=1000) if record["event"] == "release"]
    assert releases and max(releases) < revoked
    assert sum(granted) == len(releases)
    assert sum(node.leases for node in one.nodes()) == 0


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
