"""Client certificates of a server that runs: what changes in the files is felt, on open connections too."""

from __future__ import annotations

import signal
import ssl
import time
from contextlib import closing

import pytest
from client_pki import Authority
from servers import Machine, Server, new_pki

from strongroom.release.answer import Released

PATIENCE = 60.0
ROOT, OTHER = Authority("root"), Authority("other")
MIDDLE = Authority("middle", ROOT)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server.make(tmp_path_factory.mktemp("clients"), pki=new_pki())
    (made.directory / "clients.pem").write_bytes(ROOT.pem)
    (made.directory / "clients.crl").write_bytes(ROOT.crl() + MIDDLE.crl())
    made.configure("tls", client_ca="clients.pem", client_crl="clients.crl")
    roles = [{"name": one, "role": "operator", "subject": f"CN={one}"} for one in ("alice", "bob")]
    made.configure("auth", mtls=roles)
    made.start()
    made.add_key()
    made.put_policy(any=[{"kind": "mtls", "subject": "CN=carol"}])
    yield made
    made.stop()


@pytest.fixture
def certificate(tmp_path):
    def write(content):
        (tmp_path / "client.pem").write_bytes(content)
        return tmp_path / "client.pem"

    return write


def reads(server, certificate):
    """The status of a request; None where the connection was refused."""
    try:
        return server.ask("GET", "/v1/keys", certificate=certificate).status
    except (OSError, ValueError):  # as the alert comes before or after the request
        return None


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def change(server, name, content):
    """Put a file in place, as one does: by a new one and a new name."""
    beside = server.directory / f"{name}.new"
    beside.write_bytes(content)
    beside.replace(server.directory / name)
    events = len(server.events())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "certificate" in "".join(one["event"] for one in server.events()[events:]))


def test_who_is_revoked_is_out_at_once_and_others_are_not(server, certificate):
    alice, bob = ROOT.client("alice"), ROOT.client("bob")
    path = certificate(alice)
    with closing(server.connection(path)) as kept, closing(server.connection()) as without:
        kept.request("GET", "/v1/keys")
        assert kept.getresponse().read()
        without.request("GET", "/readyz")
        without.getresponse().read()
        change(server, "clients.crl", ROOT.crl(alice) + MIDDLE.crl())
        # The connection was made before: it has ended, and does not come again.
        connection = kept.sock
        connection.settimeout(PATIENCE)
        assert connection.recv(1) == b""
        assert reads(server, path) is None
        # Who came without a certificate goes on.
        without.request("GET", "/readyz")
        assert without.getresponse().status == 200
    assert reads(server, certificate(bob)) == 200


def test_the_file_is_looked_at_without_a_signal(server, certificate):
    (server.directory / "clients.crl").write_bytes(ROOT.crl() + MIDDLE.crl())
    bob = ROOT.client("bob")
    until(lambda: reads(server, certificate(bob)) == 200)
    (server.directory / "clients.crl").write_bytes(ROOT.crl(bob) + MIDDLE.crl())
    until(lambda: reads(server, certificate(bob)) is None)


def test_another_ca_takes_the_place_of_the_first(server, certificate):
    change(server, "clients.crl", OTHER.crl() + ROOT.crl() + MIDDLE.crl())
    change(server, "clients.pem", OTHER.pem)
    assert reads(server, certificate(OTHER.client("alice"))) == 200
    assert reads(server, certificate(ROOT.client("alice"))) is None
    change(server, "clients.pem", ROOT.pem)
    assert reads(server, certificate(ROOT.client("alice"))) == 200


def test_an_intermediate_that_a_client_sends_is_good_for_roles_and_for_releases(server, certificate):
    assert reads(server, certificate(MIDDLE.client("alice") + MIDDLE.pem)) == 200
    assert reads(server, certificate(MIDDLE.client("alice"))) is None
    carol = certificate(MIDDLE.client("carol") + MIDDLE.pem)
    machine = Machine(new_pki())
    request = machine.request

    def without_evidence(*arguments):
        made, binding, secret = request(*arguments)
        members = (made.challenge, made.suite, made.public_key, made.keys, ())
        return type(made)(*members), binding, secret

    machine.request = without_evidence
    (released,) = machine.ask(server, certificate=carol)
    assert isinstance(released, Released)


def test_files_that_cannot_be_used_leave_everything_as_it_was(server, certificate):
    alice = certificate(ROOT.client("alice"))
    before = (server.directory / "clients.crl").read_bytes()
    for content in (b"", OTHER.pem):
        change(server, "clients.crl", content)
        assert "stays" in server.events()[-1]["event"]
        assert reads(server, alice) == 200
        with pytest.raises((OSError, ssl.SSLError)):
            server.ask("GET", "/readyz", certificate=certificate(OTHER.client("eve")))
        alice = certificate(ROOT.client("alice"))
    change(server, "clients.crl", before)
    assert server.events()[-1]["event"] == "certificate read"
