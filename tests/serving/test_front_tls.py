"""TLS on both ports: the version, who is let in, certificates that are renewed, keys that are sealed."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
from datetime import UTC, datetime

import grpc
import pytest
from front_process import DOUBLED, PREDICT, Pki
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import strongroom
from strongroom.errors import InvalidKey, UsageError
from strongroom.pki.ssl_config import ssl_config
from strongroom.serving.settings import Tls
from strongroom.serving.tls import Certificates
from strongroom.serving.tls_files import read

PATH = "/v1/models/m:predict"


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


def files(pair):
    return {"certificate": str(pair[0]), "key": str(pair[1])}


def grpc_answers(server, pki, client=None):
    """None; or the code of the failure."""
    pair = [None, None] if client is None else [one.read_bytes() for one in client]
    credentials = grpc.ssl_channel_credentials(pki.ca, pair[1], pair[0])
    with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(service="m"), timeout=60)
        except grpc.RpcError as error:
            return error.code().name
    return None


def rest_answers(server, pki, client=None):
    try:
        status, _, content = server.ask("POST", PATH, PREDICT, context=pki.context(client))
    except (ssl.SSLError, ConnectionResetError) as error:
        return type(error).__name__
    assert (status, json.loads(content)) == (200, DOUBLED)
    return None


def shown(port, *options):
    """What ``openssl s_client`` says of a handshake: its cipher, and the certificate."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"localhost:{port}", "-alpn", "h2", *options],
        input=b"",
        capture_output=True,
        check=False,
        timeout=60,
    )
    cipher = [line for line in done.stdout.decode("latin-1").splitlines() if "Cipher is" in line]
    certificate = done.stdout.partition(b"-----BEGIN CERTIFICATE-----")[2]
    return cipher[0] if cipher else "", certificate.partition(b"-----END")[0]


def test_both_ports_speak_tls_1_3_alone(start, pki):
    server = start(tls=files(pki.server()))
    assert rest_answers(server, pki) is None
    assert grpc_answers(server, pki) is None
    for port in (server.rest, server.grpc):
        assert "New, TLSv1.3, Cipher is TLS_AES" in shown(port, "-tls1_3")[0]
        assert "(NONE)" in shown(port, "-tls1_2")[0]
    with pytest.raises((OSError, http.client.HTTPException)):
        server.ask("GET", "/healthz")


def test_mutual_tls(start, pki, tmp_path):
    rule = {"subject": "CN=camera-1"}
    (tmp_path / "m").write_text("0")
    server = start(
        tls={**files(pki.server()), "client_ca": str(pki.ca_file)},
        models=[
            {"name": "m", "path": str(tmp_path / "m")},
            {"name": "ours", "path": str(tmp_path / "m"), "clients": [rule]},
            {"name": "named", "path": str(tmp_path / "m"), "clients": [{"name": "spiffe://a/b"}]},
        ],
    )
    server.until(lambda: server.text().count('"AVAILABLE"') == 3)
    one, other = pki.issue("camera-1"), pki.issue("camera-2", uris=["spiffe://a/b"])
    stranger = Pki(tmp_path, "others").issue("stranger")
    for client in (one, other):
        assert rest_answers(server, pki, client) is None
        assert grpc_answers(server, pki, client) is None
    for client in (None, stranger):
        assert rest_answers(server, pki, client) is not None
        assert grpc_answers(server, pki, client) == "UNAVAILABLE"

    def ask(client, model):
        path = f"/v1/models/{model}:predict"
        return server.ask("POST", path, PREDICT, context=pki.context(client))[0]

    def call(client, model):
        pair = [found.read_bytes() for found in client]
        credentials = grpc.ssl_channel_credentials(pki.ca, pair[1], pair[0])
        with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
            from test_front_grpc import infer

            try:
                infer(channel, model)
            except grpc.RpcError as error:
                return error.code().name
        return "OK"

    assert [ask(one, "ours"), ask(other, "ours")] == [200, 403]
    assert [ask(one, "named"), ask(other, "named")] == [403, 200]
    assert [call(one, "ours"), call(other, "ours")] == ["OK", "PERMISSION_DENIED"]
    assert [call(one, "named"), call(other, "named")] == ["PERMISSION_DENIED", "OK"]
    both = {"CN=camera-1", "CN=camera-2"}
    server.until(lambda: {line["subject"] for line in server.lines("request")} == both)


def test_a_renewed_certificate(start, pki):
    server = start(tls=files(pki.server()))
    _, before = shown(server.rest)
    assert before
    assert shown(server.grpc)[1] == before
    pki.server()
    server.until(lambda: server.lines("certificate read"))
    _, after = shown(server.rest)
    assert after != before
    assert shown(server.grpc)[1] == after
    # What cannot be used is not.
    pki.issue("localhost", ["localhost"])[1].write_bytes(b"nonsense")
    server.until(lambda: server.lines("certificate not read; the one before stays"))
    assert shown(server.rest)[1] == after
    assert shown(server.grpc)[1] == after
    assert rest_answers(server, pki) is None
    assert grpc_answers(server, pki) is None
    assert "nonsense" not in server.text()


def test_other_authorities_of_clients(start, pki, tmp_path):
    authority = tmp_path / "authority.pem"
    authority.write_bytes(pki.ca)
    others = Pki(tmp_path, "others")
    ours, theirs = pki.issue("ours"), others.issue("theirs")
    server = start(tls={**files(pki.server()), "client_ca": str(authority)})
    connection = server.connect(pki.context(ours))
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    authority.write_bytes(others.ca)
    server.until(lambda: server.lines("certificate read"))
    # The connection has ended: whoever believed its certificate does not any more.
    with pytest.raises(OSError):
        for _ in range(2):
            connection.sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            if not connection.sock.recv(1000):
                raise ConnectionResetError
    connection.close()
    assert rest_answers(server, pki, theirs) is None
    assert grpc_answers(server, pki, theirs) is None
    assert rest_answers(server, pki, ours) is not None
    assert grpc_answers(server, pki, ours) == "UNAVAILABLE"


def test_a_sealed_key(start, pki, tmp_path):
    certificate, key = pki.server()
    source = strongroom.SymmetricKey.generate()
    (tmp_path / "key.txt").write_bytes(source.encode())
    strongroom.seal(key, tmp_path / "tls.key.sealed", key=str(tmp_path / "key.txt"))
    secret = key.read_text().splitlines()[1]
    key.unlink()
    server = start(
        tls={
            "certificate": str(certificate),
            "key": str(tmp_path / "tls.key.sealed"),
            "open_with": str(tmp_path / "key.txt"),
        }
    )
    assert rest_answers(server, pki) is None
    assert grpc_answers(server, pki) is None
    assert secret not in server.text()
    written = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert not [one for one in written if secret.encode() in one.read_bytes()]


def folded(config):
    """As the script of the reference writes it: each PEM in one line."""
    lines = []
    for line in config.decode().splitlines():
        parts = line.replace("\\n", "\n").split("\n")
        if len(parts) > 2:
            line = parts[0] + "\\n" + "".join(parts[1:-1]) + "\\n" + parts[-1]
        lines.append(line)
    return "\n".join(lines).encode()


@pytest.mark.parametrize("form", [bytes, folded], ids=["lines", "one-line"])
def test_the_ssl_cfg_of_tensorflow_serving(start, pki, tmp_path, form):
    certificate, key = pki.server()
    config = tmp_path / "ssl.cfg"
    config.write_bytes(form(ssl_config(key.read_bytes(), certificate.read_bytes(), pki.ca)))
    server = start(tls={"config": str(config)})
    client = pki.issue("client")
    assert rest_answers(server, pki, client) is None
    assert grpc_answers(server, pki, client) is None
    assert rest_answers(server, pki) is not None
    assert grpc_answers(server, pki) == "UNAVAILABLE"


def test_an_ssl_cfg_without_clients(pki, tmp_path):
    certificate, key = pki.server()
    config = tmp_path / "ssl.cfg"
    both = ssl_config(key.read_bytes(), certificate.read_bytes(), b"").decode()
    config.write_text(both.replace("client_verify: true", "client_verify: false"))
    assert read(Tls(config=str(config))).client_ca is None
    config.write_text(both)
    with pytest.raises(InvalidKey, match="holds no certificates"):
        read(Tls(config=str(config)))
    secret = key.read_text().splitlines()[1]
    config.write_text(both.replace("server_key:", "server_kee:"))
    with pytest.raises(InvalidKey, match="no SSLConfig") as caught:
        read(Tls(config=str(config)))
    assert secret not in str(caught.value)
    assert caught.value.__context__ is None


def test_files_that_are_not_a_certificate_and_its_key(pki, tmp_path):
    certificate, key = pki.server()
    _, other_key = pki.issue("other", ["other"])
    for pair in ((certificate, other_key), (key, key), (certificate, certificate)):
        with pytest.raises(InvalidKey, match="not a certificate and its key"):
            Certificates(Tls(*map(str, pair)))
    with pytest.raises(UsageError, match="takes a certificate and its key"):
        Tls(certificate=str(certificate))
    with pytest.raises(UsageError, match="has certificate, key and CA in it"):
        Tls(certificate=str(certificate), config="ssl.cfg")
    assert "PRIVATE" not in repr(read(Tls(str(certificate), str(key))))


def test_a_certificate_that_has_expired_is_said_and_served(pki):
    valid = pki.server()
    with capture_logs() as said:
        Certificates(Tls(*map(str, valid)))
    assert said == []
    pki.now = datetime(2024, 5, 1, tzinfo=UTC)
    expired = pki.issue("expired", ["localhost"])
    with capture_logs() as said:
        Certificates(Tls(*map(str, expired)))
    assert [one["log_level"] for one in said] == ["warning"]
    assert said[0]["event"].startswith("the certificate is not valid now")
    assert said[0]["since"].startswith("2024-04-30")
