"""What owners do, as a machine that wants keys feels it: with evidence of TDX under a test root."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from strongroom.errors import ReleaseDenied, StrongroomError
from strongroom.keys import unwrap
from strongroom.model.reader import open_model
from strongroom.providers import sources
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName
from strongroom.testing.intel import IntelPki
from strongroom.testing.synthetic_node import main as synthetic_node

from .keyserver_process import KeyServerProcess

pytest.importorskip("fastapi", reason="a key server needs the extra [keyserver]")

MR_TD, RTMR = "17" * 48, "2a" * 48
PPID = "0d" * 16
PLATFORM = f"ppid:{PPID}"
REQUIREMENT = {"kind": "tdx", "mr_td": [MR_TD], "rtmr": {"2": [RTMR]}, "tcb": {"status": ["UpToDate"]}}


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    place = tmp_path_factory.mktemp("node") / "pki"
    assert synthetic_node([str(place), "--init", "--ppid", PPID]) == 0
    return place


@pytest.fixture(scope="module")
def server(tmp_path_factory, pki):
    place = tmp_path_factory.mktemp("keyserver") / "server"
    with KeyServerProcess(place, "--insecure-test-roots", pki) as running:
        yield running


@pytest.fixture(autouse=True)
def owner(server, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(server.profile))
    monkeypatch.setenv("STRONGROOM_TOKEN", server.token.read_text())


@pytest.fixture
def ask(server, pki):
    """``ask("name", bundle)``: as the machine whose measurements the policies know, or another."""
    from strongroom.providers.keyserver.client import ReleaseClient, open_attester
    from strongroom.providers.keyserver.profile import read_profile

    def call(name, bundle, *options):
        node = [sys.executable, "-m", "strongroom.testing.synthetic_node", str(pki), *options]
        measured = ["--mr-td", MR_TD, "--rtmr2", RTMR]
        words = shlex.join([*node, *(() if "--mr-td" in options else measured)])
        client = ReleaseClient(read_profile(server.profile), open_attester(f"exec:{words}"))
        try:
            return client.release([WantedKey(KeyName.parse(name), bundle)])[0]
        finally:
            client.close()

    return call


def refused(ask, *arguments):
    with pytest.raises(ReleaseDenied) as caught:
        ask(*arguments)
    return caught.value.code


def model_key(sealed, key):
    """DEK and bundle of a sealed model."""
    identities = sources.identities(str(key))
    with open_model(str(sealed), lambda: identities) as model:
        return unwrap(model.header, identities), model.bundle


@pytest.fixture
def policy(cli, here):
    def put(name, version=1, **changes):
        document = {
            "id": name,
            "version": version,
            "keys": [name],
            "test_roots": True,
            "any": [REQUIREMENT],
        }
        (here / "p.json").write_text(json.dumps({**document, **changes}))
        done = cli("policy", "put", here / "p.json", "--json")
        assert done.code == 0, done.err

    return put


def audit(cli):
    return [json.loads(line) for line in cli("audit", "tail", "-n", 1000, "--json").out.splitlines()]


def test_a_registered_key_is_the_key_of_the_model(cli, sealed, key, policy, ask):
    dek, bundle = model_key(sealed, key)
    assert cli("keys", "add", "same", sealed, "-k", key).code == 0
    assert refused(ask, "same", bundle) == "no-policy"
    policy("same")
    released = ask("same", bundle)
    assert released.dek == dek
    assert released.version == 1
    nodes = json.loads(cli("nodes", "list", "--json").out)["nodes"]
    assert [(one["platform"], one["evicted"]) for one in nodes] == [(PLATFORM, False)]


def test_a_changed_policy_is_felt_at_once(cli, sealed, key, policy, ask, server):
    _, bundle = model_key(sealed, key)
    assert cli("keys", "add", "changed", sealed, "-k", key).code == 0
    policy("changed")
    ask("changed", bundle)
    assert refused(ask, "changed", bundle, "--mr-td", "18" * 48, "--rtmr2", RTMR) == "policy"
    assert refused(ask, "changed", bundle, "--tcb-status", "OutOfDate") == "policy"
    assert refused(ask, "changed", bundle, "--debug") == "evidence"
    assert refused(ask, "changed", bytes(16)) == "bundle"
    policy("changed", 2, any=[{**REQUIREMENT, "mr_td": ["19" * 48]}])
    assert refused(ask, "changed", bundle) == "policy"
    # The machine is told a word; the reasons are in the audit trail.
    text = json.dumps(audit(cli)[-1])
    assert "any[0].mr_td" in text
    shown = [line.strip() for line in cli("audit", "tail", "-n", 1).out.splitlines()]
    assert PLATFORM in shown[0]
    assert "TEST" in shown[0].split()
    assert shown[1] == "changed@current: refused (policy), policy changed version 2"
    assert shown[2].startswith("any[0].mr_td: mr_td is 1717")
    verified = cli("audit", "verify", "--anchor", server.anchor)
    assert verified.code == 0, verified.err


def test_evicted_and_admitted(cli, sealed, key, policy, ask):
    _, bundle = model_key(sealed, key)
    assert cli("keys", "add", "evicted", sealed, "-k", key).code == 0
    policy("evicted")
    ask("evicted", bundle)
    evicted = cli("nodes", "evict", PLATFORM, "--reason", "stolen", "--yes")
    try:
        assert (evicted.code, evicted.err) == (0, "")
        assert refused(ask, "evicted", bundle) == "evicted"
    finally:
        assert cli("nodes", "admit", PLATFORM).code == 0
    ask("evicted", bundle)


@pytest.mark.parametrize("verb", ["revoke", "destroy"])
def test_what_is_revoked_or_destroyed_is_not_released(cli, sealed, key, policy, ask, verb):
    _, bundle = model_key(sealed, key)
    assert cli("keys", "add", verb, sealed, "-k", key).code == 0
    policy(verb)
    ask(verb, bundle)
    assert cli("keys", verb, f"{verb}@1", "--reason", "end", "--yes").code == 0
    assert refused(ask, verb, bundle) in ("revoked", "unknown-key")


def test_a_pki_of_somebody_else_is_not_believed(sealed, key, policy, ask, cli, tmp_path, server):
    from strongroom.providers.keyserver.client import ReleaseClient, open_attester
    from strongroom.providers.keyserver.profile import read_profile

    _, bundle = model_key(sealed, key)
    assert cli("keys", "add", "foreign", sealed, "-k", key).code == 0
    policy("foreign")
    assert synthetic_node([str(tmp_path / "pki"), "--init", "--ppid", PPID]) == 0
    IntelPki.load(tmp_path / "pki")
    node = [sys.executable, "-m", "strongroom.testing.synthetic_node", str(tmp_path / "pki")]
    words = shlex.join([*node, "--mr-td", MR_TD, "--rtmr2", RTMR])
    client = ReleaseClient(read_profile(server.profile), open_attester(f"exec:{words}"))
    try:
        with pytest.raises(StrongroomError) as caught:
            client.release([WantedKey(KeyName("foreign"), bundle)])
        assert getattr(caught.value, "code", "evidence") == "evidence"
    finally:
        client.close()
