"""The owner's client, against a way to the server that keeps what is asked and answers as it is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import AuditBroken, InvalidKey, NotFound, UntrustedAnswer
from strongroom.format.encoding import b64url, canonical_json, unb64url_text
from strongroom.providers.admin import AdminClient, audit_head_of, records_of, registration_info
from strongroom.release.answer import sign
from strongroom.release.approvals import policy_statement
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRET = SecretBytes(bytes(range(32)))
BUNDLE = bytes(range(16))
TOKEN = "srt_secret"
POLICY = {
    "id": "llama",
    "version": 2,
    "keys": ["llama"],
    "any": [{"kind": "sgx", "mr_enclave": ["11" * 32]}],
}


@dataclass
class Pinned:
    server_id: str = "server"
    signing_key: bytes = SIGNER.public_key().public_bytes_raw()
    registration_suite: str = MLKEM768X25519.alg
    registration_key: bytes = MLKEM768X25519.public_of(SECRET)


class Server:
    """Answers by path, or with what a function makes of the request."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "/"): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, str, Any, Any]] = []

    def request(self, method, path, body=None, *, token=None):
        self.asked.append((method, path, body, token))
        answer = self.answers.get(path.partition("?")[0].removeprefix("/v1/"), {})
        return answer(path, body) if callable(answer) else answer


def client(server: Server, **pinned: Any) -> AdminClient:
    return AdminClient(server, Pinned(**pinned), TOKEN)


@pytest.mark.parametrize("version", [None, 7])
def test_a_registered_key_opens_for_its_server_name_version_and_bundle_alone(version):
    server = Server(keys=lambda path, body: {**body, "version": 7})
    dek = SecretBytes(b"\7" * 32)
    client(server).add_key(KeyName("team/llama", version), BUNDLE, dek, {"by": "me"})
    ((method, path, body, token),) = server.asked
    assert (method, path, token) == ("POST", "/v1/keys", TOKEN)
    assert body["version"] == version
    assert body["bundle"] == b64url(BUNDLE)
    assert body["meta"] == {"by": "me"}
    assert dek.buffer.hex() not in json.dumps(body)
    sealed = unb64url_text(body["encrypted_key"])
    about = {
        "server_id": "server",
        "name": "team/llama",
        "version": version,
        "bundle": b64url(BUNDLE),
    }
    info = b"strongroom/v1/register\0" + canonical_json(about)
    assert MLKEM768X25519.open(sealed, SECRET, info) == dek
    others = [
        registration_info("another", KeyName("team/llama", version), BUNDLE),
        registration_info("server", KeyName("team/llama2", version), BUNDLE),
        registration_info("server", KeyName("team/llama", 8), BUNDLE),
        registration_info("server", KeyName("team/llama", version), bytes(16)),
    ]
    from cryptography.exceptions import InvalidTag

    for other in others:
        with pytest.raises(InvalidTag):
            MLKEM768X25519.open(sealed, SECRET, other)


@pytest.mark.parametrize("change", [{"name": "other"}, {"bundle": "AA"}, {"version": 8}, {}])
def test_a_server_that_says_it_registered_something_else_is_not_believed(change):
    server = Server(keys=lambda path, body: {**body, **change} if change else {})
    with pytest.raises(UntrustedAnswer, match="another key"):
        client(server).add_key(KeyName("llama", 7), BUNDLE, SecretBytes(bytes(32)))


def test_a_registration_key_that_is_none_is_not_sealed_to():
    dek = SecretBytes(bytes(32))
    for wrong in ({"registration_suite": "HPKE-ROT13"}, {"registration_key": b"short"}):
        server = Server()
        with pytest.raises(InvalidKey):
            client(server, **wrong).add_key(KeyName("a"), BUNDLE, dek)
        assert not server.asked


def test_names_in_paths_are_quoted():
    server = Server(keys={"keys": []}, policies_history={"policies": []})
    admin = client(server)
    admin.drop_token("../keys?x=1")
    admin.keys("a/b&c")
    admin.policy_history("a b")
    assert [path for _, path, _, _ in server.asked] == [
        "/v1/tokens/..%2Fkeys%3Fx%3D1",
        "/v1/keys?name=a%2Fb%26c",
        "/v1/policies/history?id=a+b",
    ]


@pytest.mark.parametrize("answer", [{}, {"keys": None}, {"keys": {}}, {"keys": [1]}])
def test_an_answer_without_its_list_is_not_taken(answer):
    with pytest.raises(UntrustedAnswer, match="no list of keys"):
        client(Server(keys=answer)).keys()


def head(**changes: Any) -> dict[str, Any]:
    return {"v": 1, "server_id": "server", "time": "", "sequence": 3, "hash": "ab", **changes}


def test_a_head_must_be_signed_by_this_server_for_this_server():
    good = sign(head(), SIGNER)
    assert audit_head_of(good, Pinned()).sequence == 3
    assert client(Server(audit_head=good)).audit_head().hash == "ab"
    wrong = [
        sign(head(), Ed25519PrivateKey.generate()),
        sign(head(server_id="another"), SIGNER),
        sign(head(sequence="3"), SIGNER),
        sign(head(hash=None), SIGNER),
        {**good, "payload": sign(head(sequence=4), SIGNER)["payload"]},
        head(),
        None,
    ]
    for one in wrong:
        with pytest.raises(UntrustedAnswer):
            audit_head_of(one, Pinned())


def test_records_are_fetched_page_by_page_and_must_get_on():
    def page(path, body):
        after = int(path.partition("after=")[2].partition("&")[0])
        return {"records": [{"sequence": one} for one in range(after + 1, min(after + 3, 6))]}

    assert [one["sequence"] for one in client(Server(audit=page)).audit_from()] == [1, 2, 3, 4, 5]
    for stuck in ({"records": [{"sequence": 1}]}, {"records": [{"sequence": "2"}]}, {"records": [{}]}):
        with pytest.raises(AuditBroken):
            list(client(Server(audit=stuck)).audit_from())


def test_exported_lines_are_records():
    assert list(records_of([b'{"sequence":1}\n', b'{"sequence":2}\n'])) == [
        {"sequence": 1},
        {"sequence": 2},
    ]
    for wrong in (b"\n", b"[]\n", b"{\n", b'{"a":1,"a":2}\n', b"\xff\n"):
        with pytest.raises(AuditBroken, match="Line 1 is no audit record"):
            list(records_of([wrong]))


def history(*versions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    found = [
        {"id": one["id"], "version": one["version"], "status": s, "policy": one} for s, one in versions
    ]
    return {"policies": found}


def test_an_approver_signs_what_he_has_read_and_names_what_it_follows():
    first, second = {**POLICY, "version": 1}, POLICY
    server = Server(policies_history=history(("active", first), ("pending", second)))
    key = Ed25519PrivateKey.generate()
    policy = Policy.parse(second)
    client(server).approve(policy, "alice", key)
    method, path, body, _ = server.asked[-1]
    assert (method, path) == ("POST", "/v1/policies/approve")
    assert {name: body[name] for name in ("id", "version", "approver")} == {
        "id": "llama",
        "version": 2,
        "approver": "alice",
    }
    public = Ed25519PublicKey.from_public_bytes(key.public_key().public_bytes_raw())
    public.verify(
        unb64url_text(body["signature"]),
        policy_statement(policy, Policy.parse(first), Pinned().signing_key),
    )


@pytest.mark.parametrize(
    "waiting",
    [
        [],
        [("active", POLICY)],
        [("rejected", POLICY)],
        [("pending", {**POLICY, "version": 3})],
        [("pending", {**POLICY, "any": [{"kind": "sgx", "mr_enclave": ["22" * 32]}]})],
    ],
    ids=["nothing", "in force", "rejected", "another version", "another content"],
)
def test_an_approver_signs_nothing_else(waiting):
    server = Server(policies_history=history(*waiting))
    with pytest.raises(NotFound):
        client(server).approve(Policy.parse(POLICY), "alice", Ed25519PrivateKey.generate())
    assert [method for method, *_ in server.asked] == ["GET"]


@pytest.mark.parametrize("answer", [{}, {"id": "1"}, {"id": "1", "token": None}])
def test_an_answer_without_the_token_is_not_taken(answer):
    with pytest.raises(UntrustedAnswer, match="no token"):
        client(Server(tokens=answer)).add_token("ci", "operator", None)


def test_each_request_says_who_asks():
    server = Server(
        tokens=lambda path, body: {"tokens": []} if body is None else {"id": "1", "token": "srt_new"},
        **{name: {name.rpartition("_")[2]: []} for name in ("nodes", "keys", "policies")},
    )
    admin = client(server)
    admin.nodes()
    admin.tokens()
    admin.keys()
    admin.policies()
    admin.evict("ppid:00", "stolen")
    admin.admit("ppid:00")
    with pytest.raises(UntrustedAnswer, match="no credential"):
        admin.enrol_tpm({}, bytes)
    admin.rotate(KeyName("a"))
    admin.set_state(KeyName("a", 1), "revoked", "why")
    admin.put_policy(POLICY)
    admin.add_token("ci", "operator", datetime(2026, 12, 31, tzinfo=UTC))
    assert {token for *_, token in server.asked} == {TOKEN}
    assert server.asked[-1][2]["expires"] == "2026-12-31T00:00:00.000Z"
    assert TOKEN not in repr(admin)


def test_records_of_any_shape_are_shown_on_lines_of_their_own():
    from strongroom.cli.audit_text import record_lines

    odd = [
        None,
        1,
        "x",
        [],
        {},
        [1],
        {"keys": [1, {}]},
        {"keys": [{"reasons": [1, {}]}]},
        {"evidence": 3},
    ]
    for value in odd:
        for name in ("details", "actor", "platform", "event"):
            lines = list(record_lines({"sequence": 1, name: value}))
            assert lines[0].startswith("1  ")
    long = list(record_lines({"sequence": 1, "details": {"policy": {"any": ["11" * 48] * 9}}}))
    assert len(long[0]) < 200


ENROLLED = {"platform": "ak:00", "ak_name": "000b", "ek": "11"}
ENROL = "nodes/enrol-tpm"


def enrolling(begin: Any, finish: Any) -> Server:
    server = Server()
    server.answers = {f"{ENROL}/begin": begin, f"{ENROL}/finish": finish}
    return server


def test_a_tpm_is_asked_what_the_server_asks() -> None:
    server = enrolling({"credential": b64url(b"open me"), "enrolment": "e30"}, ENROLLED)
    opened = []

    def activate(credential: bytes) -> bytes:
        opened.append(credential)
        return b"secret"

    assert client(server).enrol_tpm({"kind": "tpm", "data": "AA"}, activate) == ENROLLED
    assert opened == [b"open me"]
    assert [body for _, _, body, _ in server.asked] == [
        {"evidence": {"kind": "tpm", "data": "AA"}},
        {"enrolment": "e30", "answer": b64url(b"secret")},
    ]


@pytest.mark.parametrize("credential", [None, 7, "no base64!"])
def test_no_tpm_is_asked_where_there_is_no_question(credential) -> None:
    def activate(credential: bytes) -> bytes:
        raise AssertionError

    with pytest.raises(UntrustedAnswer, match="no credential"):
        client(enrolling({"credential": credential}, ENROLLED)).enrol_tpm({}, activate)


@pytest.mark.parametrize("name", sorted(ENROLLED))
def test_what_was_enrolled_must_be_said(name) -> None:
    said = {**ENROLLED, name: None}
    server = enrolling({"credential": "AA", "enrolment": "e30"}, said)
    with pytest.raises(UntrustedAnswer, match="does not say"):
        client(server).enrol_tpm({}, bytes)
