"""Enrolment of a real TPM (swtpm) by the real server over TLS: begun, finished, recorded, and used."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from servers import BUNDLE, Server
from software_ak import SoftwareAk
from stores import AUDITOR, OWNER
from swtpm import TpmMaker, require_swtpm, switched_on

from strongroom.attest.collect.tpm import TpmCollector
from strongroom.attest.roots import production
from strongroom.cli.process import run
from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import NotAuthentic, NotAuthorised, UsageError
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.keyserver.enrolment import Enrolments
from strongroom.release.answer import Refused, Released, open_answer
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.messages import Challenge, ReleaseRequest
from strongroom.release.names import KeyName

BOUND = b"enrolment"
KEY = bytes(range(32))
BEGIN, FINISH = "/v1/nodes/enrol-tpm/begin", "/v1/nodes/enrol-tpm/finish"


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    require_swtpm()
    return TpmMaker(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="module")
def state(maker):
    return maker.make("one")


@pytest.fixture
def tpm(state, tmp_path):
    with switched_on(state, tmp_path) as running:
        yield running


@pytest.fixture
def other_tpm(maker, tmp_path):
    """Of the same maker."""
    (tmp_path / "other").mkdir()
    with switched_on(maker.make(f"other-{tmp_path.name}"), tmp_path / "other") as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory, maker, state):
    made = Server.make(tmp_path_factory.mktemp("enrolment"))
    (made.directory / "maker.pem").write_bytes(maker.issuer)
    made.configure("attestation", tpm_cas=["maker.pem"])
    made.configure("limits", requests_per_second=1e6, burst=1_000_000)
    made.start()
    yield made
    made.stop()


def evidence_of(tpm):
    return TpmCollector(tpm.tcti).collect(BOUND)


def body_of(evidence):
    return {"evidence": evidence.to_json()}


def changed(evidence, *without, **members):
    said = {name: value for name, value in json.loads(evidence.data).items() if name not in without}
    return replace(evidence, data=json.dumps(said | members).encode())


def begun(server, tpm):
    return server.admin("POST", BEGIN, body_of(evidence_of(tpm)))


def answer_of(tpm, question):
    opened = TpmCollector(tpm.tcti).activate(unb64url_text(question["credential"]))
    return {"enrolment": question["enrolment"], "answer": b64url(opened)}


def records(server):
    return [
        one
        for one in server.admin("GET", "/v1/audit?limit=1000")["records"]
        if one["event"] == "node.enrolled"
    ]


@pytest.fixture
def command(server, tmp_path, capsys):
    """``strongroom nodes …`` as the owner; its exit code, and what it says."""
    (tmp_path / "owner.token").write_text(server.owner)
    (tmp_path / "owner.token").chmod(0o600)
    profile = {**server.profile, "url": server.url, "token_file": "owner.token"}
    (tmp_path / "owner.json").write_text(json.dumps(profile))

    def call(*words):
        code = run(["nodes", *words, "--server", str(tmp_path / "owner.json")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


# From the machine to the key


def test_a_machine_enrols_itself_and_gets_a_key_by_the_name_that_it_was_told(
    server, tpm, other_tpm, command
):
    code, out, err = command("enrol-tpm", "--from", f"tpm:{tpm.tcti}", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["platform"].startswith("ak:")

    record = records(server)[-1]
    assert record["actor"] == {"name": "owner", "role": "owner", "kind": "token"}
    assert record["details"] == made
    nodes = {one["platform"]: one for one in server.admin("GET", "/v1/nodes")["nodes"]}
    assert (nodes[made["platform"]]["leases"], nodes[made["platform"]]["evicted"]) == (0, False)

    for one in (tpm, other_tpm):
        one.extend(7, b"\x07" * 32)
    pcr = json.loads(evidence_of(tpm).data)["pcrs"]["sha256"]["7"]
    dek = server.add_key("of-a-tpm")
    document = {
        "id": "of-a-tpm",
        "version": 1,
        "keys": ["of-a-tpm"],
        "any": [{"kind": "tpm", "pcr": {"7": pcr}, "platforms": [made["platform"]]}],
    }
    server.admin("PUT", "/v1/policies", {"policy": document})
    released = ask_for_the_key(server, tpm)
    assert isinstance(released, Released)
    assert released.dek.buffer == dek.buffer
    # Another machine that has started the same.
    refused = ask_for_the_key(server, other_tpm)
    assert isinstance(refused, Refused)
    assert refused.code == "policy"


def ask_for_the_key(server, tpm):
    challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
    wanted = (WantedKey(KeyName("of-a-tpm"), BUNDLE),)
    secret = SecretBytes.random(32)
    public = MLKEM768X25519.public_of(secret)
    binding = Binding(challenge.challenge, challenge.server_id, MLKEM768X25519.alg, public, wanted)
    evidence = TpmCollector(tpm.tcti).collect(binding.for_primary("tpm"))
    request = ReleaseRequest(challenge.challenge, MLKEM768X25519.alg, public, wanted, (evidence,))
    answer = server.ask("POST", "/v1/release", request.to_json())
    signing = unb64url_text(server.profile["signing_key"])
    (opened,) = open_answer(answer.body, binding, secret, signing)[1]
    return opened


def test_the_command_tells_people_the_name_and_what_to_do_with_it(server, tpm, command):
    code, out, err = command("enrol-tpm", "--from", f"tpm:{tpm.tcti}")
    assert code == 0, err
    assert out.strip() == begun(server, tpm)["platform"]
    assert "Policies list the machine by this name" in err


def test_nothing_is_kept_between_the_steps(server, tpm):
    """The process that has asked is gone when the answer comes."""
    question = begun(server, tpm)
    server.stop()
    server.start()
    made = server.admin("POST", FINISH, answer_of(tpm, question))
    assert made["platform"] == question["platform"]


def test_an_evicted_machine_stays_so(server, tpm):
    platform = begun(server, tpm)["platform"]
    server.admin("POST", "/v1/nodes/evict", {"platform": platform, "reason": "stolen"})
    server.admin("POST", FINISH, answer_of(tpm, begun(server, tpm)))
    nodes = {one["platform"]: one for one in server.admin("GET", "/v1/nodes")["nodes"]}
    assert nodes[platform]["evicted"] is True
    server.admin("POST", "/v1/nodes/admit", {"platform": platform})


# What is refused


def refused(server, path, body):
    before = len(records(server))
    answer = server.ask("POST", path, body, token=server.owner)
    assert answer.status == 400, answer
    assert len(records(server)) == before
    return answer.body["error"]


def test_a_tpm_of_a_maker_that_is_not_believed(server, tmp_path, command):
    stranger = TpmMaker(tmp_path / "stranger")
    with switched_on(stranger.make("two"), tmp_path) as tpm:
        said = refused(server, BEGIN, body_of(evidence_of(tpm)))
        assert said["code"] == "not-authentic"
        assert "leads to no CA that is believed" in said["message"]
        assert "CA of the TPM's maker" in said["hint"]
        code, out, err = command("enrol-tpm", "--from", f"tpm:{tpm.tcti}")
    assert (code, out) == (6, "")
    assert "leads to no CA that is believed" in err


def test_certificates_in_between_are_sent_along(tmp_path_factory, maker, tpm, tmp_path, capsys):
    server = Server.make(tmp_path_factory.mktemp("above"))
    (server.directory / "root.pem").write_bytes(maker.root)
    server.configure("attestation", tpm_cas=["root.pem"])
    server.start()
    try:
        evidence = evidence_of(tpm)
        assert "leads to no CA" in refused(server, BEGIN, body_of(evidence))["message"]
        above = replace(evidence, endorsements=(maker.issuer,))
        question = server.admin("POST", BEGIN, body_of(above))
        server.admin("POST", FINISH, answer_of(tpm, question))
        (tmp_path / "issuer.pem").write_bytes(maker.issuer)
        profile = {**server.profile, "url": server.url}
        (tmp_path / "owner.json").write_text(
            json.dumps({**profile, "token_file": str(server.directory / "owner.token")})
        )
        words = ["--from", f"tpm:{tpm.tcti}", "--server", str(tmp_path / "owner.json")]
        assert run(["nodes", "enrol-tpm", *words]) == 6
        words += ["--endorsements", str(tmp_path / "issuer.pem")]
        assert run(["nodes", "enrol-tpm", *words]) == 0
    finally:
        server.stop()


def test_a_server_that_believes_no_maker_enrols_nothing(tpm):
    enrolments = Enrolments(SecretBytes(KEY), "server", production())
    with pytest.raises(NotAuthentic, match="leads to no CA"):
        enrolments.begin(evidence_of(tpm), datetime.now(UTC))


def test_evidence_of_no_tpm_of_no_certificate_and_of_no_attestation_key(server, tpm):
    evidence = evidence_of(tpm)
    other_kind = refused(server, BEGIN, body_of(replace(evidence, kind="tdx")))
    assert "Only TPMs" in other_kind["message"]
    bare = refused(server, BEGIN, body_of(changed(evidence, "ek_certificate")))
    assert bare["code"] == "missing-endorsement"
    assert refused(server, BEGIN, {"evidence": {"kind": "tpm", "data": "AA"}})["code"] == (
        "malformed-evidence"
    )
    public = bytearray(unb64url_text(json.loads(evidence.data)["ak_public"]))
    public[7] &= ~1
    signing = refused(server, BEGIN, body_of(changed(evidence, ak_public=b64url(bytes(public)))))
    assert "lacks restricted" in signing["message"]


def test_a_key_in_software_beside_a_real_certificate(server, tpm, command):
    """What somebody would do who owns the machine: the TPM does not open what it is asked."""
    certificate = json.loads(evidence_of(tpm).data)["ek_certificate"]
    forged = changed(SoftwareAk().evidence(b"x" * 32), ek_certificate=certificate)
    question = server.admin("POST", BEGIN, body_of(forged))
    with pytest.raises(UsageError, match="another attestation key"):
        answer_of(tpm, question)
    # Nor does the answer to another question do.
    answer = answer_of(tpm, begun(server, tpm))["answer"]
    said = refused(server, FINISH, {"enrolment": question["enrolment"], "answer": answer})
    assert said["code"] == "not-authentic"
    assert "has not opened" in said["message"]


def test_an_answer_is_for_what_was_asked(server, tpm):
    question = begun(server, tpm)
    answer = answer_of(tpm, question)
    of = json.loads(unb64url_text(question["enrolment"]))
    for name in of:
        other = {**of, name: of[name][:-1] + ("0" if of[name][-1] != "0" else "1")}
        said = refused(server, FINISH, {**answer, "enrolment": b64url(json.dumps(other).encode())})
        assert said["code"] == "not-authentic"
    end = "EA" if answer["answer"].endswith("AA") else "AA"
    for other in ("A" * 43, answer["answer"][:-2] + end):
        assert refused(server, FINISH, {**answer, "answer": other})["code"] == "not-authentic"
    assert refused(server, FINISH, {**answer, "enrolment": "e30"})["code"] == "not-authentic"
    assert refused(server, FINISH, {**answer, "enrolment": "e30e3"})["code"] == "usage-error"
    server.admin("POST", FINISH, answer)


def test_an_answer_is_for_one_server_for_five_minutes(maker, tpm):
    roots = replace(production(), tpm=(maker.issuer,))

    def enrolments(key=KEY, server_id="server"):
        return Enrolments(SecretBytes(key), server_id, roots)

    now = datetime.now(UTC)
    asked = enrolments().begin(evidence_of(tpm), now)
    answer = TpmCollector(tpm.tcti).activate(asked.credential)
    late = now + timedelta(minutes=5)
    # A replica has the same key and the same name.
    assert enrolments().finish(asked.enrolment, answer, late - timedelta(seconds=2)) == asked.of
    with pytest.raises(NotAuthentic, match="too late"):
        enrolments().finish(asked.enrolment, answer, late)
    for other in (enrolments(key=bytes(32)), enrolments(server_id="other")):
        with pytest.raises(NotAuthentic, match="another server"):
            other.finish(asked.enrolment, answer, now)
    again = enrolments().begin(evidence_of(tpm), now)
    assert again.enrolment != asked.enrolment
    with pytest.raises(NotAuthentic):
        enrolments().finish(again.enrolment, answer, now)


def test_only_operators_enrol(server, tpm):
    body = body_of(evidence_of(tpm))
    token = server.admin("POST", "/v1/tokens", {"name": "arthur", "role": "auditor"})["token"]
    finish = {"enrolment": "AAAA", "answer": "A" * 43}
    for path, one in ((BEGIN, body), (FINISH, finish)):
        assert server.ask("POST", path, one).status == 401
        assert server.ask("POST", path, one, token=token).status == 403
    token = server.admin("POST", "/v1/tokens", {"name": "otto", "role": "operator"})["token"]
    answer = server.ask("POST", BEGIN, body, token=token)
    assert answer.status == 200
    done = server.ask("POST", FINISH, answer_of(tpm, answer.body), token=token)
    assert done.status == 200
    assert records(server)[-1]["actor"]["name"] == "otto"


def test_another_source_of_evidence_is_no_tpm(command):
    code, _, err = command("enrol-tpm", "--from", "exec:true")
    assert code == 2
    assert "is no TPM" in err


# The record


def test_the_store_keeps_the_record_and_shows_the_machine(store):
    revision = store.snapshot().revision
    for _ in range(2):
        store.enrol("ak:00", OWNER, ak_name="000b00", ek="11")
    (node,) = store.nodes()
    assert (node.platform, node.evicted, node.leases, node.first_seen) == ("ak:00", False, 0, None)
    said = [one for one in store.audit() if one["event"] == "node.enrolled"]
    assert [one["details"] for one in said] == [
        {"platform": "ak:00", "ak_name": "000b00", "ek": "11"}
    ] * 2
    # It decides nothing, so that no decision under way is taken anew.
    assert store.snapshot().revision == revision
    with pytest.raises(NotAuthorised):
        store.enrol("ak:01", AUDITOR, ak_name="00", ek="11")
    store.check()
