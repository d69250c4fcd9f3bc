"""Connections: what is accepted, and what strangers can waste."""

import http.client
import json
import socket
import ssl
import time
from contextlib import ExitStack, closing

import pytest
from servers import Server, new_pki

from strongroom.keyserver.config import load_config
from strongroom.keyserver.tls_files import renew_certificate
from strongroom.pki.certificates import hosts_of

HEAD = 1.0
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server.make(tmp_path_factory.mktemp("tls"), pki=new_pki())
    made.configure(
        "limits",
        head_seconds=HEAD,
        body_seconds=1,
        connections_per_address=20,
        requests_per_second=1e6,
        burst=1_000_000,
        body_bytes=20_000,
        release_bytes=100_000,
    )
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(autouse=True)
def answers_afterwards(server):
    yield
    assert server.ask("GET", "/readyz").status == 200


def connect(server, context=None):
    plain = socket.create_connection(("localhost", server.port), timeout=PATIENCE)
    return (context or server.context()).wrap_socket(plain, server_hostname="localhost")


def exchange(server, data):
    """Send bytes, and read until the server closes."""
    with connect(server) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection):
    received = b""
    while True:
        try:
            part = connection.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return received
        if not part:
            return received
        received += part


def test_tls_1_3_and_nothing_older(server):
    with connect(server) as connection:
        assert connection.version() == "TLSv1.3"
    older = server.context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(server, older)


def test_no_plain_http(server):
    with closing(http.client.HTTPConnection("localhost", server.port, timeout=PATIENCE)) as plain:
        plain.request("GET", "/healthz")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()


def test_the_certificate_is_for_this_host_and_of_this_ca(server):
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server, ssl.create_default_context())
    plain = socket.create_connection(("localhost", server.port), timeout=PATIENCE)
    with pytest.raises(ssl.SSLCertVerificationError), plain:
        server.context().wrap_socket(plain, server_hostname="keys.example")


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/0.9\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nAuthorization: y\r\n\r\n",
        (
            b"POST /v1/challenge HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /v1/challenge HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/challenge HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/challenge HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_what_is_no_request_of_http_1_1_is_refused_and_the_connection_closed(server, data):
    status, _, rest = exchange(server, data).partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 4"), status
    assert b"close" in rest
    body = json.loads(rest.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000,
        b"GET /healthz?" + b"a" * 200_000,
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 40_000,
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    ],
    ids=["value", "path", "many", "whole"],
)
def test_a_head_has_a_bound(server, head):
    began = time.monotonic()
    answer = exchange(server, head)
    # Closed with an answer, or while still being sent.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert time.monotonic() - began < PATIENCE


def test_a_head_that_drips_is_cut_off(server):
    with connect(server) as connection:
        began = time.monotonic()
        connection.settimeout(0.2)
        received = None
        while time.monotonic() - began < PATIENCE:
            try:
                connection.sendall(b"G" if received is None else b"X")
                received = b""
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except (ConnectionError, ssl.SSLError):
                break
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HT"])
def test_an_idle_connection_is_cut_off(server, sent):
    with connect(server) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_an_idle_connection_is_cut_off_after_an_answer_too(server):
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(9).startswith(b"HTTP/1.1")
        time.sleep(0.1)
        # A blank line between requests is allowed, and must not switch the clock off.
        connection.sendall(b"\r\n")
        read_all(connection)


def test_a_body_that_drips_is_cut_off(server):
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/challenge HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("path", "size", "chunked"),
    [
        ("/v1/challenge", 20_001, False),
        ("/v1/challenge", 20_001, True),
        ("/v1/release", 100_001, False),
        ("/v1/release", 100_001, True),
        ("/nowhere", 100_001, False),
    ],
)
def test_a_body_has_a_bound(server, path, size, chunked):
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n".encode()
    if chunked:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % size + b" " * size
    else:
        # Refused by what is announced, before a byte of it.
        data = head + f"Content-Length: {size}\r\n\r\n".encode()
    answer = exchange(server, data)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    assert b"connection: close" in answer


def test_a_body_that_nobody_reads_does_not_keep_a_connection(server):
    answer = exchange(
        server, b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"]
)
def test_another_content_type_is_refused(server, kind):
    answer = server.ask("POST", "/v1/challenge", b"{}", headers={"Content-Type": kind})
    assert (answer.status, answer.code) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"{}{}",
        b'{"a": 1, "a": 2}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"[" * 10_000,
        b'{"more": 1}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/challenge", "/v1/release", "/v1/lease/renew", "/v1/lease/end"])
def test_a_body_that_is_not_what_it_should_be(server, path, body):
    answer = server.ask("POST", path, body)
    assert answer.status == 400
    assert answer.code == "usage-error"


def test_one_address_holds_so_many_connections_and_no_more(server):
    context = server.context()

    def refused_after():
        """So many are open when one is refused; None: a busy machine was so slow that the first had ended."""
        with ExitStack() as held:
            for number in range(1, 41):
                try:
                    one = held.enter_context(connect(server, context))
                    one.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                    if not one.recv(100):
                        return number
                except (ssl.SSLError, ConnectionError):
                    return number
        return None

    found = None
    for _ in range(10):
        found = found or refused_after()
    assert found is not None and 15 <= found <= 22
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            assert server.ask("GET", "/healthz").status == 200
            return
        except (ssl.SSLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("connections that were closed still count")


def test_a_stalled_handshake_hinders_nobody(server):
    with socket.create_connection(("localhost", server.port)) as stalled:
        stalled.sendall(b"\x16\x03\x01\x02\x00")
        assert server.ask("GET", "/healthz").status == 200


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = exchange(server, one * 3 + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b"HTTP/1.1 404") == 1


def test_headers_of_every_answer(server):
    for path in ("/healthz", "/nowhere", "/v1/keys", "/openapi.json"):
        headers = server.ask("GET", path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers["x-request-id"]) == 16
        assert "server" not in headers


def test_what_proxies_write_is_not_believed(server):
    answer = server.ask("GET", "/v1/server", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status == 200
    number = answer.headers["x-request-id"]

    def lines():
        return [one for one in server.events() if one.get("request") == number]

    wait_for(lines)
    assert lines()[0]["source"] in ("127.0.0.1", "::1")


def serial(server):
    with connect(server) as connection:
        return connection.getpeercert()["serialNumber"]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_renewed_certificate_is_taken_without_a_restart(server):
    before = serial(server)
    with closing(server.connection()) as kept:
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        renew_certificate(load_config(server.config), ["localhost", "keys.example"])
        wait_for(lambda: serial(server) != before)
    assert hosts_of((server.directory / "tls/server.pem").read_bytes())[:2] == [
        "localhost",
        "keys.example",
    ]


def test_half_a_renewal_leaves_the_certificate_as_it_was(server):
    import signal

    path = server.directory / "tls/server.key"
    good, before = path.read_bytes(), serial(server)
    count = sum("stays" in one["event"] for one in server.events())
    path.write_bytes((server.directory / "tls/ca.key").read_bytes())
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: sum("stays" in one["event"] for one in server.events()) > count)
    assert serial(server) == before
    path.write_bytes(b"nonsense")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: sum("stays" in one["event"] for one in server.events()) > count + 1)
    assert serial(server) == before
    path.write_bytes(good)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.events()[-1]["event"] == "certificate read")


def test_no_request_of_a_stranger_was_a_fault_of_the_server(server):
    assert [
        one for one in server.events() if one["level"] == "error" and "stays" not in one["event"]
    ] == []
