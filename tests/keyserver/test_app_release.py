"""The whole way, over TLS: init, run, administration, release to an attested machine."""

import pytest
from servers import BUNDLE, MR_TD, Machine, Server, new_pki, text

from strongroom.format.encoding import unb64url_text
from strongroom.release.answer import Refused, Released, verify_signed
from strongroom.release.binding import WantedKey
from strongroom.release.messages import Challenge
from strongroom.release.names import KeyName


@pytest.fixture(scope="module")
def pki():
    return new_pki()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory, pki):
    wanted = {}
    if request.param == "postgresql":
        wanted["database"] = request.getfixturevalue("postgres").database()
    made = Server.make(tmp_path_factory.mktemp(request.param), pki=pki, **wanted).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(server):
    key = server.add_key()
    server.put_policy()
    return key


def test_a_key_for_an_attested_machine(server, key, pki):
    (released,) = Machine(pki).ask(server)
    assert isinstance(released, Released)
    assert released.dek == key
    assert released.version == 1


def test_no_key_for_another_measurement(server, key, pki):
    (refused,) = Machine(pki, mr_td=b"\1" * 48).ask(server)
    assert isinstance(refused, Refused)
    assert refused.code == "policy"
    (record,) = [
        one
        for one in server.admin("GET", "/v1/audit?limit=1000")["records"]
        if one["event"].startswith("release") and MR_TD.hex() in str(one) and "reasons" in str(one)
    ]
    assert "mr_td" in str(record)


def test_several_keys_in_one_request(server, key, pki):
    wanted = (
        WantedKey(KeyName("resnet50", 1), BUNDLE),
        WantedKey(KeyName("resnet50"), b"\1" * 16),
        WantedKey(KeyName("unknown"), BUNDLE),
    )
    released, other_bundle, unknown = Machine(pki).ask(server, wanted)
    assert released.dek == key
    assert [other_bundle.code, unknown.code] == ["bundle", "no-policy"]


def test_a_challenge_is_good_once(server, key, pki):
    challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
    body = Machine(pki).request(challenge)[0].to_json()
    answers = [server.ask("POST", "/v1/release", body) for _ in range(3)]
    assert [one.status for one in answers] == [200, 403, 403]
    assert {one.code for one in answers[1:]} == {"challenge"}


def test_a_refused_request_has_used_its_challenge(server, key, pki):
    challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
    worse = Machine(pki, mr_td=b"\1" * 48).request(challenge)[0].to_json()
    assert server.ask("POST", "/v1/release", worse).status == 200
    better = Machine(pki).request(challenge)[0].to_json()
    assert server.ask("POST", "/v1/release", better).status == 403


def test_evidence_for_another_request_is_refused(server, key, pki):
    machine = Machine(pki)
    challenges = [Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body) for _ in range(2)]
    (first, _, _), (second, _, _) = map(machine.request, challenges)
    relayed = {**second.to_json(), "evidence": first.to_json()["evidence"]}
    answer = server.ask("POST", "/v1/release", relayed)
    payload = verify_signed(answer.body, unb64url_text(server.profile["signing_key"]))
    assert [one["refused"] for one in payload["results"]] == ["binding"]


def renew(server, *leases):
    nonce = bytes(32)
    answer = server.ask("POST", "/v1/lease/renew", {"nonce": text(nonce), "leases": list(leases)})
    assert answer.status == 200
    payload = verify_signed(answer.body, unb64url_text(server.profile["signing_key"]))
    assert payload["nonce"] == text(nonce)
    assert payload["server_id"] == server.profile["server_id"]
    return payload["results"]


def test_leases_are_renewed_until_they_are_given_back(server, key, pki):
    (released,) = Machine(pki).ask(server)
    (renewed,) = renew(server, released.lease.id)
    assert renewed["id"] == released.lease.id
    assert "not_after" in renewed
    assert server.ask("POST", "/v1/lease/end", {"leases": [released.lease.id]}).body == {}
    (refused, unknown) = renew(server, released.lease.id, "nobody-has-this")
    assert "refused" in refused
    assert "refused" in unknown


def test_an_evicted_machine_gets_nothing_more(server, key, pki):
    (released,) = Machine(pki).ask(server)
    (platform,) = {one["platform"] for one in server.admin("GET", "/v1/nodes")["nodes"]}
    server.admin("POST", "/v1/nodes/evict", {"platform": platform, "reason": "stolen"})
    (refused,) = Machine(pki).ask(server)
    assert refused.code == "evicted"
    assert "refused" in renew(server, released.lease.id)[0]
    server.admin("POST", "/v1/nodes/admit", {"platform": platform})
    (again,) = Machine(pki).ask(server)
    assert isinstance(again, Released)
