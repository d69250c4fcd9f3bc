"""The whole way, over TLS: init, run, administration, release to an attested machine."""

import pytest
from servers import MR_TD, Machine, Server, new_pki

from strongroom.release.answer import Refused, Released


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
