"""The order in which every door decides, without a door and without a network."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from stores import BUNDLE, NOT_AFTER, OWNER, Clock, Store, add_key, kek, policy

from strongroom.attest.evidence import Claims
from strongroom.errors import MalformedEvidence, ReleaseDenied
from strongroom.keyserver.deciding import Case, Decider, Verdict
from strongroom.keyserver.metrics import Metrics
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

NODE = Claims(
    "mtls",
    {"subject": "CN=node", "sha256": "ab" * 32},
    b"",
    False,
    None,
    datetime.fromisoformat(NOT_AFTER),
)
KEY = KeyName("m/x")


class Place:
    """A store with one key and one policy, and what decides over it."""

    def __init__(self, path):
        self.clock = Clock()
        self.store = Store.create(f"sqlite:///{path}/keys.db", kek(), clock=self.clock, test=True)
        add_key(self.store)
        self.store.put_policy(policy(), OWNER)
        self.metrics = Metrics()
        self.decider = Decider(self.store, allow_test_roots=False, metrics=self.metrics)
        self.asked = 0

    def case(self, **members):
        made = Case(
            now=self.clock(),
            challenge=secrets.token_bytes(32),
            challenge_expires=self.clock() + timedelta(minutes=1),
            claims=(),
            problem=None,
            expected_primary={},
            expected_secondary=b"",
            recipient="r",
            said={"source": "test"},
            identities=(NODE,),
        )
        return replace(made, **members)

    async def judge(self, snapshot, presented):
        self.asked += 1
        (only,) = snapshot.policies
        return [await self.decider.verdict({"name": KEY.name}, only, KEY, BUNDLE, snapshot, presented)]

    def decide(self, case, judge=None):
        async def inside():
            with self.store.release_coming() as coming:
                return await self.decider.decide(case, judge or self.judge, coming)

        return asyncio.run(inside())

    def records(self):
        return [one for one in self.store.audit(0, 1000) if one["event"].startswith("release")]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.store.close()


def test_what_is_released_has_a_lease_on_record(place):
    (verdict,) = place.decide(place.case())
    assert not verdict.code
    (record,) = place.records()
    (key,) = record["details"]["keys"]
    assert (key["code"], key["released"], key["policy"]) == ("released", 1, "p")
    (evidence,) = record["details"]["evidence"]
    assert evidence["digest"] == NODE.digest.hex()
    text = place.metrics.text()[0].decode()
    assert "strongroom_commits_waiting 0.0" in text
    assert "strongroom_commit_seconds_count 1.0" in text


def test_a_challenge_that_was_used_gives_nothing(place):
    case = place.case()
    place.decide(case)
    with pytest.raises(ReleaseDenied) as caught:
        place.decide(case)
    assert caught.value.code == "challenge"
    assert 'releases_total{kind="none",outcome="challenge"} 1.0' in place.metrics.text()[0].decode()


def test_a_decision_that_is_written_too_late_gives_nothing(place):
    case = place.case()
    place.clock.move(seconds=61)
    with pytest.raises(ReleaseDenied):
        place.decide(case)
    assert [one["event"] for one in place.records()] == ["release.replayed"]


def test_a_door_that_forgets_a_problem_gives_nothing(place):
    (verdict,) = place.decide(place.case(problem=MalformedEvidence("no quote")))
    assert (verdict.code, verdict.lease) == ("evidence", None)
    (record,) = place.records()
    assert record["details"]["problem"] == "no quote"
    assert record["details"]["keys"][0]["code"] == "evidence"
    (verdict,) = place.decide(place.case(identities=()))
    assert (verdict.code, verdict.lease) == ("evidence", None)


def test_what_nobody_has_decided_is_not_released(place):
    async def careless(snapshot, presented):
        return [Verdict({"name": KEY.name}, "", Policy.parse(policy()))]

    with pytest.raises(AssertionError):
        place.decide(place.case(), careless)
    assert place.records() == []


def test_what_an_administrator_changes_meanwhile_is_decided_again(place):
    async def slow(snapshot, presented):
        found = await place.judge(snapshot, presented)
        if place.asked == 1:
            place.store.put_policy(policy(2, subject="CN=other"), OWNER)
        return found

    (verdict,) = place.decide(place.case(), slow)
    assert (place.asked, verdict.code, verdict.lease) == (2, "policy", None)
    assert len(place.records()) == 1


def test_a_lease_that_is_refused_when_it_is_written_is_none(place):
    place.store.put_policy(policy(2, lease={"max_holders": 1}), OWNER)
    one, other = (replace(NODE, platform=f"mtls:{name}") for name in ("aa", "bb"))
    (first,) = place.decide(place.case(identities=(one,)))
    (second,) = place.decide(place.case(identities=(other,)))
    assert first.lease is not None
    assert (second.code, second.lease) == ("holders", None)


@pytest.mark.parametrize("order", [("m/x", "n/y"), ("n/y", "m/x")])
def test_each_key_counts_its_holders_by_the_name_that_its_policy_knows(place, order):
    """Two machines with one certificate between them ask for its key and for one that a machine has alone."""
    store = place.store
    add_key(store, "n/y")
    store.put_policy(
        {
            "id": "q",
            "version": 1,
            "keys": ["n/"],
            "any": [{"kind": "oidc", "issuer": "https://i.example", "subject": ["node"]}],
            "lease": {"max_holders": 1},
        },
        OWNER,
    )
    shared = replace(NODE, platform="mtls:aa")

    async def judge(snapshot, presented):
        by_id = {one.id: one for one in snapshot.policies}
        found = []
        for name in order:
            which = by_id["p" if name == "m/x" else "q"]
            key = KeyName(name)
            found.append(
                await place.decider.verdict({"name": name}, which, key, BUNDLE, snapshot, presented)
            )
        return found

    codes = []
    for name in ("one", "two", "one"):
        token = Claims(
            "oidc",
            {"issuer": "https://i.example", "subject": "node"},
            b"",
            False,
            f"oidc:{name}",
            NODE.not_after,
        )
        verdicts = place.decide(place.case(identities=(shared, token)), judge)
        codes.append({key: one.code for key, one in zip(order, verdicts, strict=True)})
    assert [one["m/x"] for one in codes] == ["", "", ""]
    assert [one["n/y"] for one in codes] == ["", "holders", ""]
    held = {one.platform: one.leases for one in store.nodes()}
    assert held == {"mtls:aa": 1, "oidc:one": 1}
    keys = {one["name"]: one for one in place.records()[0]["details"]["keys"]}
    other = "n/y" if order[0] == "m/x" else "m/x"
    assert "holder" not in keys[order[0]]
    assert keys[other]["holder"] == ("oidc:one" if other == "n/y" else "mtls:aa")


def test_revocation_lists_are_remembered_before_anything_is_judged(place):
    seen = []

    async def judge(snapshot, presented):
        seen.append(dict(snapshot.newest_crls))
        return await place.judge(snapshot, presented)

    place.decide(place.case(claims=(replace(NODE, crls={"CN=a": 7}),)), judge)
    assert seen == [{"CN=a": 7}]
