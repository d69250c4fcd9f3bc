"""Endorsements from the network are fetched once for all workers and replicas that share a cache."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from servers import Machine, Server, new_pki

from strongroom.attest.evidence import Evidence
from strongroom.attest.sources.content import names_of
from strongroom.release.answer import Refused, Released


class Proxy:
    """A directory behind a web server; what was asked is in ``asked``."""

    def __init__(self, place):
        self.asked = asked = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                asked.append(self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place)))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Bare(Machine):
    """Sends a quote and nothing with it."""

    def request(self, *arguments):
        made, binding, secret = super().request(*arguments)
        bare = tuple(Evidence(one.kind, one.data) for one in made.evidence)
        members = (made.challenge, made.suite, made.public_key, made.keys, bare)
        return type(made)(*members), binding, secret


@pytest.fixture
def pki():
    return new_pki()


@pytest.fixture
def proxy(tmp_path, pki):
    collateral = pki.collateral("tdx")
    (name,) = names_of(collateral)
    path = tmp_path / "web" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(collateral)
    made = Proxy(tmp_path / "web")
    yield made
    made.stop()


def released(server, pki):
    (answer,) = Bare(pki).ask(server)
    return isinstance(answer, Released) or answer.code


def test_workers_and_replicas_fetch_once(tmp_path, pki, proxy):
    server = Server.make(tmp_path / "made", pki=pki)
    server.configure("listen", workers=2)
    server.configure("verification", workers=2)
    server.configure("attestation", endorsements=[f"proxy:{proxy.url}", "cache:../cache"])
    server.start()
    try:
        server.add_key()
        server.put_policy()
        for _ in range(8):
            assert released(server, pki) is True
        assert len(proxy.asked) == 1
    finally:
        server.stop()
    (stored,) = (one for one in (tmp_path / "made/cache").rglob("*") if one.is_file())
    (fetched,) = (one for one in (tmp_path / "web").rglob("*") if one.is_file())
    assert stored.read_bytes() == fetched.read_bytes()
    # Another start, and the network is down.
    proxy.stop()
    server.start()
    try:
        for _ in range(4):
            assert released(server, pki) is True
    finally:
        server.stop()


def test_a_cache_that_somebody_has_filled_is_not_believed(tmp_path, pki, proxy):
    server = Server.make(tmp_path / "made", pki=pki)
    server.configure("attestation", endorsements=[f"proxy:{proxy.url}", "cache:../cache"])
    forged = new_pki().collateral("tdx")
    (name,) = names_of(forged)
    path = tmp_path / "made" / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(forged)
    server.start()
    try:
        server.add_key()
        server.put_policy()
        (refused,) = Bare(pki).ask(server)
        assert isinstance(refused, Refused)
        assert refused.code == "evidence"
        # It keeps endorsements away until it is gone, and no longer than the memory of a worker.
        server.stop()
        path.unlink()
        server.start()
        assert released(server, pki) is True
    finally:
        server.stop()
