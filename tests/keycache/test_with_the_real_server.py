"""The whole way: the real server, synthetic TDX under a test root, client and cache."""

import json
import signal
import sys
import time
from datetime import UTC, datetime

import pytest
from caches import Cache, eventually
from servers import MR_TD, RTMR0, Server, new_pki

import strongroom
from ports import held_port
from strongroom.errors import NotAuthorised, ReleaseDenied, ServerUnavailable

pytest.importorskip("dcap_qvl")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server.make(tmp_path_factory.mktemp("real"), pki=new_pki())
    made.configure("listen", port=held_port())  # it comes back there
    yield made.start()
    made.stop()


@pytest.fixture
def name(request):
    """A key of its own for each test."""
    return f"model-{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def policy(server, name):
    """A policy of the key's own, which can be changed."""
    version = 0

    def put(**members):
        nonlocal version
        version += 1
        document = {
            "id": name,
            "version": version,
            "keys": [name],
            "any": [{"kind": "tdx", "mr_td": MR_TD.hex(), "rtmr": {"0": RTMR0.hex()}}],
            "test_roots": True,
            **members,
        }
        return server.admin("PUT", "/v1/policies", {"policy": document})

    put(lease={"seconds": 10})
    return put


def attester(server, mr_td=MR_TD):
    program = f"{sys.executable} -m strongroom.testing.synthetic_node {server.directory.parent}/pki"
    return f"exec:{program} --mr-td {mr_td.hex()} --rtmr0 {RTMR0.hex()}"


@pytest.fixture
def profile(server, tmp_path):
    """Writes a profile of the running server, with what is said besides."""

    def write(**changes):
        place = tmp_path / f"profile-{len(list(tmp_path.iterdir()))}.json"
        place.write_text(json.dumps({**server.profile, "url": server.url, **changes}))
        return str(place)

    return write


@pytest.fixture
def sealed(server, policy, name, profile, tmp_path, monkeypatch):
    """A model, sealed by its owner; and the environment of a machine that serves."""
    (tmp_path / "weights").write_bytes(b"weights" * 1000)
    token = tmp_path / "token"
    token.write_text(server.owner)
    token.chmod(0o600)
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile(token_file=str(token)))
    place = tmp_path / "m.sealed"
    strongroom.seal(tmp_path / "weights", place, recipients=f"{server.url}/{name}", name="resnet")
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile(attester=attester(server)))
    return place


def test_opened_by_an_attested_machine(server, sealed, name):
    assert strongroom.verify(sealed) == 7000
    (key,) = server.admin("GET", f"/v1/keys?name={name}")["keys"]
    assert key["meta"] == {"model_name": "resnet"}


def test_not_by_another(server, sealed, profile, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile(attester=attester(server, bytes(48))))
    with pytest.raises(ReleaseDenied) as caught:
        strongroom.open(sealed)
    assert caught.value.code == "policy"


def test_not_without_evidence(server, sealed, profile, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile())
    with pytest.raises(ReleaseDenied) as caught:
        strongroom.open(sealed)
    assert caught.value.code == "evidence"


def test_nobody_seals_without_a_token(server, profile, tmp_path, name, monkeypatch):
    (tmp_path / "weights").write_bytes(b"weights")
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile())
    with pytest.raises(NotAuthorised):
        strongroom.seal(tmp_path / "weights", tmp_path / "m.sealed", recipients=f"{server.url}/{name}")
    assert not (tmp_path / "m.sealed").exists()


@pytest.fixture
def cache(server, sealed, profile, place, monkeypatch):
    made = Cache(place, profile(), "--attester", attester(server)).start()
    monkeypatch.setenv("STRONGROOM_KEYSERVER", made.uri)
    yield made
    made.stop()


@pytest.mark.slow
def test_through_the_cache(server, sealed, cache):
    for _ in range(3):
        assert strongroom.verify(sealed) == 7000
    status = cache.status()
    assert (status["releases"], status["requests"]) == (1, 4)
    # Renewed by the real server, without new evidence.
    eventually(lambda: cache.status()["renewals"])
    assert strongroom.verify(sealed) == 7000
    assert cache.status()["releases"] == 1


@pytest.mark.slow
def test_revoked_while_it_is_held(server, sealed, cache, name):
    strongroom.verify(sealed)
    server.admin(
        "POST",
        "/v1/keys/state",
        {"name": name, "version": 1, "state": "revoked", "reason": "it leaked"},
    )
    eventually(lambda: not cache.status()["leases"])
    with pytest.raises(ReleaseDenied) as caught:
        strongroom.open(sealed)
    assert caught.value.code == "revoked"


@pytest.mark.slow
def test_policy_changed_while_it_is_held(server, sealed, cache, policy):
    strongroom.verify(sealed)
    other = {"kind": "tdx", "mr_td": "33" * 48, "rtmr": {"0": RTMR0.hex()}}
    policy(any=[other], lease={"seconds": 10})
    eventually(lambda: not cache.status()["leases"])
    with pytest.raises(ReleaseDenied):
        strongroom.open(sealed)


def test_given_back_at_the_end(server, sealed, cache):
    strongroom.verify(sealed)
    assert sum(node["leases"] for node in server.admin("GET", "/v1/nodes")["nodes"]) >= 1
    before = sum(node["leases"] for node in server.admin("GET", "/v1/nodes")["nodes"])
    cache.stop()
    after = sum(node["leases"] for node in server.admin("GET", "/v1/nodes")["nodes"])
    assert after == before - 1


@pytest.mark.slow
def test_the_server_is_away(server, sealed, cache):
    strongroom.verify(sealed)
    server.stop(signal.SIGKILL)
    try:
        end = datetime.fromisoformat(cache.status()["leases"][0]["not_after"])
        served = 0
        while True:
            asked = datetime.now(UTC)
            try:
                assert strongroom.verify(sealed) == 7000
            except ServerUnavailable:
                break
            assert asked < end
            served += 1
            time.sleep(0.1)
        assert datetime.now(UTC) >= end
        assert served > 5
        assert cache.status()["leases"] == []
    finally:
        server.start()
    time.sleep(2)  # for so long a failure is repeated
    assert strongroom.verify(sealed) == 7000
