"""A model server and the real key server: away at the start, away later, and refusing a key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import pytest
from front_process import DOUBLED, PREDICT
from onnx_graphs import doubling
from sealed_server import Serve
from test_front_grpc import call, infer

import strongroom
from ports import held_port
from strongroom.serving.messages import message

sys.path.insert(0, str(Path(__file__).parent.parent / "keyserver"))

from servers import MR_TD, RTMR0, Server, new_pki

pytest.importorskip("dcap_qvl")

PATH = "/v1/models/m:predict"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A key server that is at the same place after each start."""
    made = Server.make(tmp_path_factory.mktemp("keys"), pki=new_pki())
    made.configure("listen", port=held_port())
    yield made.start()
    if made.process is not None:
        made.stop()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STRONGROOM_KEY", "STRONGROOM_KEY_FILE", "STRONGROOM_KEYSERVER", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "versions").mkdir()
    return tmp_path


def profile(keys, place, **members):
    path = place / f"profile-{'-'.join(members)}.json"
    path.write_text(json.dumps({**keys.profile, "url": keys.url, **members}))
    return str(path)


def attester(keys):
    program = f"{sys.executable} -m strongroom.testing.synthetic_node {keys.directory.parent}/pki"
    return f"exec:{program} --mr-td {MR_TD.hex()} --rtmr0 {RTMR0.hex()}"


@pytest.fixture
def seal(keys, place, monkeypatch):
    """Seals a version for the key server, and says which machines may have its key."""
    token = place / "token"
    token.write_text(keys.owner)
    token.chmod(0o600)
    (place / "m.onnx").write_bytes(doubling())

    def policy(name, version, mr_td=MR_TD):
        machine = {"kind": "tdx", "mr_td": mr_td.hex(), "rtmr": {"0": RTMR0.hex()}}
        document = {
            "id": name,
            "version": version,
            "keys": [name],
            "any": [machine],
            "test_roots": True,
        }
        keys.admin("PUT", "/v1/policies", {"policy": document})

    def do(number, name, mr_td=MR_TD):
        policy(name, 1, mr_td)
        with monkeypatch.context() as changed:
            changed.setenv("STRONGROOM_KEYSERVER", profile(keys, place, token_file=str(token)))
            folder = place / "versions" / f".{number}"
            folder.mkdir()
            strongroom.seal(
                place / "m.onnx", folder / "m.sealed", recipients=f"{keys.url}/{name}", name="m"
            )
        folder.rename(place / "versions" / str(number))

    do.policy = policy
    monkeypatch.setenv("STRONGROOM_KEYSERVER", profile(keys, place, attester=attester(keys)))
    return do


@pytest.fixture
def serve(place):
    started = []

    def make(wait_for):
        started.append(Serve(place, f"m={place / 'versions'}", wait_for=wait_for))
        return started[-1]

    yield make
    for one in started:
        one.kill()


def code_over_grpc(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        try:
            infer(channel)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def status_over_grpc(server):
    """Version → state and code, over TensorFlow Serving's API; and state and reason, over v2."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        request = message("tensorflow.serving.GetModelStatusRequest")()
        request.model_spec.name = "m"
        answer = "tensorflow.serving.GetModelStatusResponse"
        one = call(channel, "/tensorflow.serving.ModelService/GetModelStatus", request, answer)
        request = message("inference.RepositoryIndexRequest")()
        answer = "inference.RepositoryIndexResponse"
        other = call(channel, "/inference.GRPCInferenceService/RepositoryIndex", request, answer)
    return (
        {each.version: (each.state, each.status.error_code) for each in one.model_version_status},
        {int(each.version): (each.state, each.reason) for each in other.models},
    )


@pytest.mark.slow
def test_a_key_server_that_is_away_at_the_start(keys, seal, serve):
    seal(1, "away")
    keys.stop()
    server = serve("UNAVAILABLE")
    assert server.ask("GET", "/healthz")[0] == 200
    assert server.ask("GET", "/readyz")[0] == 503
    (state, code, words) = server.states()[1]
    assert (state, code) == ("LOADING", "UNAVAILABLE")
    assert "Version 1 of m cannot be loaded" in words
    status, _, content = server.ask("POST", PATH, PREDICT)
    assert (status, json.loads(content)) == (503, {"error": words})
    assert code_over_grpc(server) == ("UNAVAILABLE", words)
    assert status_over_grpc(server) == ({1: (20, 14)}, {1: ("LOADING", words)})
    # Asked again and again, each time after a longer while.
    server.until(lambda: server.text().count('"code": "UNAVAILABLE"') >= 2, 60)
    assert server.ask("GET", "/readyz")[0] == 503

    keys.start()
    server.until(lambda: server.ask("GET", "/readyz")[0] == 200, 90)
    assert json.loads(server.ask("POST", PATH, PREDICT)[2]) == DOUBLED
    assert code_over_grpc(server) == ("OK", "")
    assert server.states() == {1: ("AVAILABLE", "OK", "")}
    # And what is served needs it no more.
    keys.stop()
    assert server.ask("POST", PATH, PREDICT)[0] == 200
    keys.start()


@pytest.mark.slow
def test_a_version_whose_key_is_refused(keys, seal, serve):
    seal(1, "old")
    server = serve("AVAILABLE")
    seal(2, "new", mr_td=b"\x33" * 48)
    server.until(lambda: server.states().get(2, ("", "OK"))[1] != "OK", 60)
    (state, code, words) = server.states()[2]
    assert (state, code) == ("LOADING", "PERMISSION_DENIED")
    assert "policy" in words
    assert server.states()[1] == ("AVAILABLE", "OK", "")
    assert status_over_grpc(server) == (
        {1: (30, 0), 2: (20, 7)},
        {1: ("READY", ""), 2: ("LOADING", words)},
    )
    assert server.ask("GET", "/readyz")[0] == 200
    answer = json.loads(server.ask("POST", "/v2/models/m/infer", INFER)[2])
    assert answer["model_version"] == "1"
    # The owner changes their mind, and nobody touches the files.
    seal.policy("new", 2)
    server.until(lambda: server.states().get(2, ("",))[0] == "AVAILABLE", 90)
    answer = json.loads(server.ask("POST", "/v2/models/m/infer", INFER)[2])
    assert answer["model_version"] == "2"


INFER = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}]}
).encode()
