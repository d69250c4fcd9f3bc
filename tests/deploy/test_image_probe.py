"""The images' probe, as its own process: against servers that are well, that are not, and that are others."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from manifests import DEPLOY

from answering import answering
from strongroom.cli.process import run
from strongroom.providers.unix_socket import frame

PROBE = DEPLOY / "probe.py"
TIMEOUT = 120


def probe(url, *more):
    command = [sys.executable, "-I", "-S", PROBE, url, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode


@pytest.fixture
def served(tmp_path):
    """The port of a server, with TLS if asked."""
    with ExitStack() as servers:

        def start(tls=False):
            context = None
            if tls:
                assert run(["pki", "init", str(tmp_path / "pki")]) == 0
                assert run(["pki", "server", str(tmp_path / "pki"), "elsewhere.example"]) == 0
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_cert_chain(
                    tmp_path / "pki" / "server.pem", tmp_path / "pki" / "server.key"
                )
            return servers.enter_context(answering({"/healthz": 200, "/redirected": 302}, context))

        yield start


def test_http(served):
    port = served()
    assert probe(f"http://127.0.0.1:{port}/healthz") == 0
    assert probe(f"http://127.0.0.1:{port}/readyz") == 1
    assert probe(f"http://127.0.0.1:{port}/redirected") == 1
    assert probe(f"https://127.0.0.1:{port}/healthz") == 1


def test_https(served):
    port = served(tls=True)
    assert probe(f"https://127.0.0.1:{port}/healthz") == 0
    assert probe(f"https://127.0.0.1:{port}/readyz") == 1
    assert probe(f"http://127.0.0.1:{port}/healthz") == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "unix:///nowhere", "file:///etc/passwd", "", "http://x"]
)
def test_nobody(url):
    assert probe(url) == 1


def test_one_at_a_time(served):
    url = f"http://127.0.0.1:{served()}/healthz"
    assert probe(url, url) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (frame({"v": 1, "leases": [{"name": "error"}]}), 0),
        (frame({"v": 1, "error": {"code": "not-authorised"}}), 1),
        (frame({"v": 1, "leases": []})[:-1], 1),
        (b"\xff\xff\xff\xff{}", 1),
        (b"HTTP/1.1 200 OK\r\n\r\n", 1),
        (b"", 1),
    ],
    ids=["well", "refused", "cut", "large", "http", "closed"],
)
def test_a_key_cache(tmp_path, answer, code):
    path = str(tmp_path / "keys.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        asked = []

        def serve():
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert probe(f"unix://{path}") == code
        finally:
            thread.join()
    assert asked == [frame({"v": 1, "op": "status"})]


def test_nothing_else_than_the_standard_library_is_needed():
    """As it runs in the images: isolated, without packages, and quickly."""
    first, *_ = PROBE.read_text().splitlines()
    assert first == "#!/usr/bin/env -S python3 -I -S"
    assert PROBE.stat().st_mode & 0o111
