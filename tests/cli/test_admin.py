"""The verbs for owners, against a running key server."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ports import held_port
from strongroom.format.encoding import b64url

from .conftest import Terminal
from .keyserver_process import KeyServerProcess

pytest.importorskip("fastapi", reason="a key server needs the extra [keyserver]")

POLICY = {
    "id": "digits",
    "version": 1,
    "keys": ["digits"],
    "any": [{"kind": "sgx", "mr_enclave": ["11" * 32]}],
}


def client_certificates(place) -> str:
    """A CA, ``clients.pem``, and what it signs: robot.pem and stranger.pem; the robot's fingerprint."""
    now, keys = datetime.now(UTC), {}
    for who in ("clients", "robot", "stranger"):
        keys[who] = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (who, "clients")
        ]
        usages = x509.KeyUsage(True, *[False] * 4, who == "clients", *[False] * 3)
        signed = (
            x509.CertificateBuilder(
                names[1], names[0], keys[who].public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(who == "clients", None), True)
            .add_extension(usages, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[who].public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["clients"].public_key()), False
            )
            .sign(keys["clients"], hashes.SHA256())
        )
        key = keys[who].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (place / f"{who}.pem").write_bytes(signed.public_bytes(Encoding.PEM) + key * (who != "clients"))
        if who == "robot":
            fingerprint = signed.fingerprint(hashes.SHA256()).hex()
    return fingerprint


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("keyserver")
    made = KeyServerProcess(place / "server")
    fingerprint = client_certificates(place)
    made.configure("[tls]\n", f'[tls]\nclient_ca = "{place}/clients.pem"\n')
    role = f'{{name = "robot", role = "auditor", sha256 = "{fingerprint}"}}'
    made.configure("[audit]\n", f"[auth]\nmtls = [{role}]\n\n[audit]\n")
    with made as running:
        yield running


@pytest.fixture(autouse=True)
def profile(server, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(server.profile))
    monkeypatch.setenv("STRONGROOM_TOKEN", server.token.read_text())


@pytest.fixture
def admin(cli, server):
    """``admin("keys", "list")``: as the owner; what it prints as JSON, and never a token."""

    def call(*arguments, code=0):
        done = cli(*arguments, "--json")
        assert done.code == code, done.err
        assert server.token.read_text().strip() not in done.out + done.err
        return json.loads(done.out) if code == 0 else done

    return call


@pytest.fixture
def as_auditor(admin, here, monkeypatch):
    admin("tokens", "add", "auditor", "--role", "auditor", "-o", "auditor.token")
    monkeypatch.setenv("STRONGROOM_TOKEN", (here / "auditor.token").read_text())


def write(here, name, **changes):
    path = here / name
    path.write_text(json.dumps({**POLICY, **changes}))
    return path


def versions(admin, name):
    return {one["version"]: one["state"] for one in admin("keys", "list", name)["keys"]}


def current(admin, name):
    return [one["version"] for one in admin("keys", "list", name)["keys"] if one["current"]]


# Keys


def test_a_key_from_its_first_to_its_last_day(admin, cli, sealed, key):
    bundle = json.loads(cli("inspect", sealed, "--json").out)["bundle"]
    made = admin("keys", "add", "life", sealed, "-k", key, "--meta", "owner=nlp")
    assert (made["name"], made["version"], made["state"]) == ("life", 1, "active")
    assert made["bundle"] == bundle
    admin("keys", "add", "life", sealed, "-k", key)
    assert versions(admin, "life") == {1: "active", 2: "active"}
    admin("keys", "rotate", "life")
    assert current(admin, "life") == [2]
    assert versions(admin, "life") == {1: "deprecated", 2: "active"}
    assert admin("keys", "show", "life")["version"] == 2
    assert admin("keys", "show", "life@1")["meta"] == {"owner": "nlp"}
    admin("keys", "revoke", "life@1", "--reason", "leaked", "--yes")
    assert versions(admin, "life")[1] == "revoked"
    admin("keys", "destroy", "life@1", "--reason", "leaked", "--yes")
    assert versions(admin, "life") == {1: "destroyed", 2: "active"}
    assert admin("keys", "show", "life@3", code=2).error() == "There is no key life@3."


def test_a_key_for_people(cli, sealed, key):
    done = cli("keys", "add", "people", sealed, "-k", key)
    assert done.out == "people@1 is registered, for " + str(sealed) + ".\n"
    listed = cli("keys", "list").out
    assert any(line.split()[:3] == ["people", "1", "active"] for line in listed.splitlines())
    assert "active" in cli("keys", "show", "people").out


def test_a_version_is_registered_once(admin, sealed, key):
    admin("keys", "add", "once@5", sealed, "-k", key)
    assert admin("keys", "add", "once@5", sealed, "-k", key, code=2).error()
    assert versions(admin, "once") == {5: "active"}


def test_nothing_is_registered_for_a_model_that_does_not_open(admin, cli, sealed, here):
    assert cli("keygen", "-o", "other.txt").code == 0
    admin("keys", "add", "closed", sealed, "-k", here / "other.txt", code=4)
    data = bytearray(sealed.read_bytes())
    data[20] ^= 1
    sealed.write_bytes(data)
    assert cli("keys", "add", "closed", sealed, "-k", here / "key.txt").code != 0
    assert versions(admin, "closed") == {}


def test_what_cannot_be_undone_asks_first(admin, cli, sealed, key):
    admin("keys", "add", "asks", sealed, "-k", key)
    for arguments in (
        ("keys", "revoke", "asks@1", "--reason", "x"),
        ("keys", "destroy", "asks@1", "--reason", "x"),
        ("nodes", "evict", "ppid:00", "--reason", "x"),
        ("tokens", "drop", "0" * 16),
    ):
        done = cli(*arguments)
        assert done.code == 2
        assert done.hint() == "Say --yes if it is meant."
    assert versions(admin, "asks") == {1: "active"}
    # All versions at once is nobody's wish.
    assert cli("keys", "destroy", "asks", "--reason", "x", "--yes").code == 2


@pytest.mark.parametrize(
    ("name", "answer", "state"),
    [("gone", "gone@1", "destroyed"), ("kept", "yes", "active"), ("silent", "", "active")],
)
def test_destroying_wants_the_name_typed(admin, sealed, key, terminal, name, answer, state):
    admin("keys", "add", name, sealed, "-k", key)
    screen: Terminal = terminal("keys", "destroy", f"{name}@1", "--reason", "end of life")
    screen.expect("to go on")
    screen.type(answer + "\n")
    assert screen.wait() == (0 if state == "destroyed" else 2)
    assert versions(admin, name) == {1: state}


# Who asks


def test_an_auditor_reads_and_writes_nothing(admin, cli, sealed, key, here, as_auditor):
    for reads in (
        ("keys", "list"),
        ("policy", "show"),
        ("nodes", "list"),
        ("tokens", "list"),
        ("audit", "verify"),
    ):
        admin(*reads)
    policy = write(here, "p.json", id="auditor", keys=["auditor"])
    for writes in (
        ("keys", "add", "auditor", sealed, "-k", key),
        ("keys", "rotate", "life"),
        ("keys", "revoke", "life@2", "--reason", "x", "--yes"),
        ("keys", "destroy", "life@2", "--reason", "x", "--yes"),
        ("policy", "put", policy),
        ("nodes", "evict", "ppid:00", "--reason", "x", "--yes"),
        ("nodes", "admit", "ppid:00"),
        ("tokens", "add", "another", "--role", "owner", "-o", "t"),
        ("tokens", "drop", "0" * 16, "--yes"),
    ):
        done = cli(*writes)
        assert done.code == 4, (writes, done)
        assert "auditor" in done.error()
    assert not (here / "t").exists()
    assert versions(admin, "auditor") == {}


def test_an_operator_handles_keys_and_no_policies(admin, cli, sealed, key, here, monkeypatch):
    admin("tokens", "add", "operator", "--role", "operator", "-o", "operator.token")
    monkeypatch.setenv("STRONGROOM_TOKEN", (here / "operator.token").read_text())
    admin("keys", "add", "operated", sealed, "-k", key)
    policy = write(here, "p.json", id="operated", keys=["operated"])
    assert cli("policy", "put", policy).code == 4


def test_nobody_and_strangers_are_refused(cli, monkeypatch):
    for token in ("srt_" + "A" * 43, "nobody", "srt_"):
        monkeypatch.setenv("STRONGROOM_TOKEN", token)
        done = cli("keys", "list")
        assert done.code == 4
        assert "A" * 43 not in done.out + done.err
    monkeypatch.delenv("STRONGROOM_TOKEN")
    done = cli("keys", "list")
    assert done.code == 4
    assert "--token-file" in done.err
    monkeypatch.setenv("STRONGROOM_TOKEN", "two words\nand a line")
    assert cli("keys", "list").code == 4


def test_a_token_in_a_file(cli, server, here, monkeypatch):
    monkeypatch.delenv("STRONGROOM_TOKEN")
    assert cli("keys", "list", "--token-file", server.token).code == 0
    # The option counts, and not what happens to be in the environment.
    monkeypatch.setenv("STRONGROOM_TOKEN", server.token.read_text())
    (here / "wrong").write_text("srt_" + "A" * 43)
    (here / "wrong").chmod(0o600)
    assert cli("keys", "list", "--token-file", here / "wrong").code == 4
    (here / "wrong").write_text("")
    assert cli("keys", "list", "--token-file", here / "wrong").code == 4
    assert cli("keys", "list", "--token-file", here / "absent").code == 2
    shutil.copy(server.token, here / "open")
    (here / "open").chmod(0o644)
    done = cli("keys", "list", "--token-file", here / "open")
    assert done.code == 4
    assert "read by others" in done.error()


def test_the_profile_that_init_made_for_the_owner_is_enough(cli, server, monkeypatch):
    monkeypatch.delenv("STRONGROOM_TOKEN")
    assert cli("keys", "list").code == 4
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(server.owner))
    assert cli("keys", "list").code == 0
    assert '"owner"' in cli("tokens", "list", "--json").out


def test_a_client_certificate_says_who_asks(cli, server, here, monkeypatch):
    def with_certificate(name):
        members = json.loads(server.profile.read_text())
        members["client_certificate"] = str(server.profile.parent / f"{name}.pem")
        (here / f"{name}.json").write_text(json.dumps(members))
        return "--server", here / f"{name}.json"

    evict = ("nodes", "evict", "ppid:00", "--reason", "x", "--yes")
    # A token that is given counts, and is not made up for by a certificate.
    assert cli(*evict, *with_certificate("robot")).code == 0
    monkeypatch.setenv("STRONGROOM_TOKEN", "srt_" + "A" * 43)
    assert cli("keys", "list", *with_certificate("robot")).code == 4
    monkeypatch.delenv("STRONGROOM_TOKEN")
    assert cli("keys", "list", *with_certificate("robot")).code == 0
    done = cli(*evict, *with_certificate("robot"))
    assert done.code == 4
    assert "robot" in done.error()
    assert cli("keys", "list", *with_certificate("stranger")).code == 4


def test_tokens_come_and_go(admin, cli, here, monkeypatch, server):
    made = admin(
        "tokens",
        "add",
        "ci",
        "--role",
        "operator",
        "-o",
        "ci.token",
        "--expires",
        "2099-01-01T00:00:00Z",
    )
    path = here / "ci.token"
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text().strip()
    assert token.startswith("srt_")
    assert token not in json.dumps(made)
    listed = [one for one in admin("tokens", "list")["tokens"] if one["id"] == made["id"]]
    assert [(one["name"], one["role"]) for one in listed] == [("ci", "operator")]
    assert token not in json.dumps(listed)
    # It exists, and no second one is made for it.
    before = len(admin("tokens", "list")["tokens"])
    admin("tokens", "add", "ci2", "--role", "operator", "-o", "ci.token", code=2)
    assert len(admin("tokens", "list")["tokens"]) == before
    with monkeypatch.context() as patch:
        patch.setenv("STRONGROOM_TOKEN", token)
        assert cli("keys", "list").code == 0
    admin("tokens", "drop", made["id"], "--yes")
    with monkeypatch.context() as patch:
        patch.setenv("STRONGROOM_TOKEN", token)
        assert cli("keys", "list").code == 4
    assert cli("tokens", "drop", made["id"], "--yes").code == 2


def test_tokens_that_cannot_be(cli, here):
    add = ("tokens", "add", "x", "--role")
    done = cli(*add, "king", "-o", "x")
    assert done.code == 2
    assert "'king' is not one of" in done.error() and "Value error" not in done.error()
    assert cli(*add, "owner", "-o", "x", "--expires", "soon").code == 2
    done = cli(*add, "owner", "-o", "x", "--expires", "2020-01-01T00:00:00Z")
    assert done.code == 2
    assert "has passed already" in done.error()
    assert not (here / "x").exists()
    (here / "x").write_text("")
    done = cli(*add, "owner", "-o", "x")
    assert done.code == 2
    assert "--force" not in done.err  # which there is not
    # Of another form than an id, as a name is.
    done = cli("tokens", "drop", "ci", "--yes")
    assert done.code == 2
    assert "There is no token ci." in done.error() and "tokens list" in done.err


# Which server


def test_without_a_profile_there_is_no_server(cli, server, here, monkeypatch):
    monkeypatch.delenv("STRONGROOM_KEYSERVER")
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    done = cli("keys", "list")
    assert done.code == 4
    assert "There is no profile of a key server here." in done.error()
    assert cli("keys", "list", "--server", server.profile).code == 0
    assert cli("keys", "list", "--server", here / "absent.json").code == 2


def test_another_server_under_the_same_name_is_not_talked_to(cli, server, here):
    """Its certificate is not vouched for by the profile, so it sees no token and no key."""
    other = json.loads(server.profile.read_text())
    from strongroom.pki.certificates import new_ca

    other["ca"] = new_ca("another", datetime.now(UTC))[0].decode()
    (here / "other.json").write_text(json.dumps(other))
    done = cli("keys", "list", "--server", here / "other.json")
    assert done.code == 5


def test_a_key_sealed_for_another_server_does_not_open(cli, admin, server, here, sealed, key):
    other = json.loads(server.profile.read_text())
    other["server_id"] = "another"
    (here / "other.json").write_text(json.dumps(other))
    assert cli("keys", "add", "foreign", sealed, "-k", key, "--server", here / "other.json").code == 4
    assert versions(admin, "foreign") == {}


def test_a_server_that_is_down_is_unavailable(cli, server, here, monkeypatch):
    other = json.loads(server.profile.read_text())
    other["url"] = f"https://localhost:{held_port()}"
    (here / "down.json").write_text(json.dumps(other))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert cli("keys", "list", "--server", here / "down.json").code == 7


# Policies


def test_a_policy_and_its_history(admin, cli, here):
    status = admin("policy", "put", write(here, "1.json", id="history", keys=["history"]))
    assert (status["version"], status["status"]) == (1, "active")
    two = write(here, "2.json", id="history", keys=["history"], version=2, description="tighter")
    assert admin("policy", "put", two)["status"] == "active"
    states = [
        (one["version"], one["status"]) for one in admin("policy", "history", "history")["policies"]
    ]
    assert states == [(1, "superseded"), (2, "active")]
    shown = json.loads(cli("policy", "show", "history").out)
    assert shown == json.loads(two.read_text())
    assert json.loads(cli("policy", "show", "history@1").out)["version"] == 1
    assert cli("policy", "show", "history@9").code == 2
    assert "history" in cli("policy", "show").out
    # The old one does not come back.
    assert cli("policy", "put", here / "1.json").code != 0
    assert json.loads(cli("policy", "show", "history").out)["version"] == 2


def test_a_policy_that_is_none_does_not_leave_this_machine(cli, here, server, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(here / "no-profile"))
    assert cli("policy", "put", write(here, "p.json", any=[])).code == 6
    assert cli("policy", "put", write(here, "p.json", surprise=1)).code == 6
    assert cli("policy", "put", here / "absent.json").code == 2


def approver_key(here, name):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (here / f"{name}.pem").write_bytes(pem)
    return b64url(key.public_key().public_bytes_raw())


def test_a_change_waits_for_its_approvers(admin, cli, here):
    approvers = {name: approver_key(here, name) for name in ("alice", "bob", "carol")}
    assert cli("policy", "approver", "--signing-key", "alice.pem").out.strip() == approvers["alice"]
    base = {"id": "many", "keys": ["many"], "approvals": {"needed": 2, "approvers": approvers}}
    admin("policy", "put", write(here, "1.json", **base))
    two = write(here, "2.json", **base, version=2, description="changed")
    waiting = admin("policy", "put", two)
    assert (waiting["status"], waiting["approvals"], waiting["needed"]) == ("pending", 0, 2)
    approve = ["policy", "approve", "--yes", "--approver"]
    first = admin(*approve, "alice", "--signing-key", "alice.pem", two)
    assert (first["status"], first["approvals"]) == ("pending", 1)
    # Not by another's key, not by one who is none, not of another content, not of what does not wait.
    assert cli(*approve, "bob", "--signing-key", "carol.pem", two).code == 4
    assert cli(*approve, "mallory", "--signing-key", "bob.pem", two).code == 4
    other = write(here, "other.json", **base, version=2, description="changed otherwise")
    done = cli(*approve, "bob", "--signing-key", "bob.pem", other)
    assert done.code == 2
    assert "has another many version 2" in done.error()
    assert cli(*approve, "bob", "--signing-key", "bob.pem", here / "1.json").code == 2
    assert json.loads(cli("policy", "show", "many").out)["version"] == 1
    # The same person twice is one person.
    again = cli(*approve, "alice", "--signing-key", "alice.pem", two, "--json")
    assert again.code != 0 or json.loads(again.out)["status"] == "pending"
    second = admin(*approve, "bob", "--signing-key", "bob.pem", two)
    assert second["status"] == "active"
    assert json.loads(cli("policy", "show", "many").out)["version"] == 2


def test_only_an_ed25519_key_signs(cli, here, key):
    policy = write(here, "p.json")
    for path in (key, here / "absent.pem"):
        done = cli("policy", "approve", "--yes", "--approver", "a", "--signing-key", path, policy)
        assert done.code in (2, 4)


# Audit


def test_the_audit_trail_is_whole_and_says_who_did_what(admin, cli, sealed, key):
    admin("keys", "add", "audited", sealed, "-k", key)
    records = [json.loads(line) for line in cli("audit", "tail", "--json").out.splitlines()]
    assert any("audited" in json.dumps(one) for one in records)
    assert [one["sequence"] for one in records] == sorted(one["sequence"] for one in records)
    shown = cli("audit", "tail", "-n", "1").out
    assert len(shown.splitlines()) == 1
    assert "audited" in shown
    verified = admin("audit", "verify")
    assert verified["whole"] is True
    assert verified["records"] == records[-1]["sequence"]


@pytest.fixture
def exported(admin, cli, here, sealed, key):
    for _ in range(3):
        admin("keys", "add", "exported", sealed, "-k", key)
    assert cli("audit", "export", "-o", "audit.jsonl", "--head", "audit.head").code == 0
    return here / "audit.jsonl"


VERIFY = ("audit", "verify", "--records")


def test_exported_records_verify_without_the_server(cli, exported, here, server, monkeypatch):
    monkeypatch.delenv("STRONGROOM_TOKEN")
    done = cli(*VERIFY, exported, "--anchor", "audit.head")
    assert done.code == 0, done.err
    assert "is whole" in done.out
    assert not done.err
    alone = cli(*VERIFY, exported)
    assert alone.code == 0
    assert "may have been cut off" in alone.err


def tampered(lines, how):
    middle = len(lines) // 2
    record = json.loads(lines[middle])
    if how == "changed":
        record["time"] = "2020-01-01T00:00:00.000Z"
        return [*lines[:middle], json.dumps(record).encode() + b"\n", *lines[middle + 1 :]]
    if how == "left out":
        return lines[:middle] + lines[middle + 1 :]
    if how == "twice":
        return lines[: middle + 1] + lines[middle:]
    if how == "exchanged":
        return [*lines[:middle], lines[middle + 1], lines[middle], *lines[middle + 2 :]]
    if how == "cut off":
        return lines[:-1]
    if how == "beginning cut off":
        return lines[1:]
    return []


@pytest.mark.parametrize(
    "how", ["changed", "left out", "twice", "exchanged", "cut off", "beginning cut off", "empty"]
)
def test_tampered_records_are_noticed(cli, exported, how):
    lines = exported.read_bytes().splitlines(keepends=True)
    exported.write_bytes(b"".join(tampered(lines, how)))
    done = cli(*VERIFY, exported, "--anchor", "audit.head")
    assert done.code == 5, done.out
    assert "audit" in done.error()


def test_a_head_of_another_server_or_of_nobody_is_no_anchor(cli, exported, here):
    signed = json.loads((here / "audit.head").read_text())
    signed["signature"] = signed["signature"][::-1]
    (here / "forged.head").write_text(json.dumps(signed))
    assert cli(*VERIFY, exported, "--anchor", "forged.head").code == 5
    (here / "empty.head").write_text("\n")
    assert cli(*VERIFY, exported, "--anchor", "empty.head").code == 2
    (here / "odd.head").write_text('{"a": 1}')
    assert cli(*VERIFY, exported, "--anchor", "odd.head").code == 2


def test_records_after_a_head_go_on_from_it(admin, cli, exported, here, sealed, key):
    end = admin("audit", "verify")["records"]
    admin("keys", "add", "exported", sealed, "-k", key)
    assert cli("audit", "export", "-o", "more.jsonl", "--after", end).code == 0
    assert cli(*VERIFY, "more.jsonl", "--anchor", "audit.head").code == 0
    assert cli(*VERIFY, "more.jsonl").code == 5


def test_an_archive_grows_by_what_is_new(admin, cli, exported, here, sealed, key):
    # As the page says, with jq.
    end = json.loads(cli(*VERIFY, exported, "--anchor", "audit.head", "--json").out)
    (here / "audit.end").write_text(json.dumps({"sequence": end["records"], "hash": end["hash"]}))
    admin("keys", "add", "exported", sealed, "-k", key)
    more = ("-o", "audit-2.jsonl", "--head", "audit-2.head", "--after", end["records"])
    assert cli("audit", "export", *more).code == 0
    anchors = ("--anchor", "audit.end", "--anchor", "audit-2.head")
    done = cli(*VERIFY, "audit-2.jsonl", *anchors)
    assert (done.code, done.err) == (0, "")
    lines = (here / "audit-2.jsonl").read_bytes().splitlines(keepends=True)
    for cut in (lines[1:], lines[:-1]):
        (here / "audit-2.jsonl").write_bytes(b"".join(cut))
        assert cli(*VERIFY, "audit-2.jsonl", *anchors).code == 5


def test_the_server_must_lead_through_a_head_that_was_kept(admin, cli, here):
    end = admin("audit", "verify")
    (here / "kept").write_text(json.dumps({"sequence": end["records"], "hash": end["hash"]}))
    assert cli("audit", "verify", "--anchor", "kept").code == 0
    (here / "kept").write_text(json.dumps({"sequence": end["records"], "hash": "00" * 32}))
    assert cli("audit", "verify", "--anchor", "kept").code == 5
    (here / "kept").write_text(json.dumps({"sequence": end["records"] + 10**6, "hash": "00" * 32}))
    assert cli("audit", "verify", "--anchor", "kept").code == 5


# Nodes


def test_a_machine_is_evicted_and_admitted(admin, cli):
    platform = "ppid:" + "0d" * 16
    evicted = cli("nodes", "evict", platform, "--reason", "stolen", "--yes")
    assert evicted.code == 0
    # A name that nobody has would leave the machine that was meant in service.
    assert "spelled right" in evicted.err
    found = {one["platform"]: one for one in admin("nodes", "list")["nodes"]}
    assert found[platform]["evicted"] is True
    assert found[platform]["reason"] == "stolen"
    assert platform in cli("nodes", "list").out
    admin("nodes", "admit", platform)
    found = {one["platform"]: one for one in admin("nodes", "list")["nodes"]}
    assert not found.get(platform, {}).get("evicted")


def test_the_log_of_the_server_has_no_secret(server):
    log = server.log.read_text()
    assert server.token.read_text().strip() not in log
    assert os.environ["STRONGROOM_TOKEN"].strip() not in log
