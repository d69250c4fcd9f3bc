"""The port for management; who hears the names of models; and rules that cannot be meant."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal

import grpc
import pytest
from front_process import Pki, Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from left_over import no_thread_left
from strongroom.errors import UsageError
from strongroom.serving.config import ClientRule, ModelConfig
from strongroom.serving.run import run
from strongroom.serving.settings import Listen, Settings, Tls

TOKEN = "abc"
RULE = {"token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
SERVING = health_pb2.HealthCheckResponse.SERVING


def start(place, **settings):
    (place / "m").write_text("0")
    models = [
        {"name": "open", "path": str(place / "m")},
        {"name": "private", "path": str(place / "m"), "clients": [RULE]},
    ]
    found = Server(place, models=models, **settings)
    found.until(lambda: found.text().count("AVAILABLE") == 2)
    return found


def ask(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_probes_and_numbers_need_no_certificate_there(tmp_path):
    pki = Pki(tmp_path)
    certificate, key = map(str, pki.server())
    tls = {"certificate": certificate, "key": key, "client_ca": str(pki.ca_file)}
    server = start(tmp_path, tls=tls, listen={"management_port": 0, "drain": 30})
    try:
        port = server.line("listening")["management_port"]
        assert port not in (server.rest, server.grpc)
        assert ask(port, "/healthz") == (200, "ok\n")
        assert ask(port, "/healthz", "HEAD") == (200, "")
        assert ask(port, "/readyz") == (200, "ready\n")
        status, text = ask(port, "/metrics")
        assert status == 200 and '"private"' in text
        for path in ("/v2/health/live", "/v2/models/open", "/v1/models/open", "/"):
            assert ask(port, path)[0] == 404
        assert ask(port, "/metrics", "POST")[0] == 405
        context = pki.context(pki.issue("one"))
        assert server.ask("GET", "/readyz", context=context)[0] == 200
        status, _, content = server.ask("GET", "/metrics", context=context)
        assert (status, json.loads(content)) == (
            403,
            {"error": "Numbers are read at the port for management."},
        )
        # Who turns clients away hears first that no one shall come.
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: ask(port, "/readyz") == (503, "draining\n"))
        assert ask(port, "/healthz")[0] == 200
    finally:
        server.kill()


@pytest.fixture(scope="module")
def restricted(tmp_path_factory):
    server = start(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def test_numbers_are_not_for_everybody_where_a_model_is_not(restricted):
    assert "management_port" not in restricted.line("listening")
    assert restricted.ask("GET", "/metrics")[0] == 403
    assert restricted.ask("GET", "/readyz")[0] == 200


def test_health_by_name_is_for_who_may_use_the_model(restricted):
    known = (("authorization", f"Bearer {TOKEN}"),)
    with grpc.insecure_channel(f"127.0.0.1:{restricted.grpc}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check(name, metadata=()):
            request = health_pb2.HealthCheckRequest(service=name)
            try:
                return stub.Check(request, metadata=metadata, timeout=60).status
            except grpc.RpcError as error:
                return error.code()

        def watch(name, metadata=()):
            call = stub.Watch(
                health_pb2.HealthCheckRequest(service=name), metadata=metadata, timeout=60
            )
            try:
                return next(call).status
            finally:
                call.cancel()

        assert [check(one) for one in ("", "open")] == [SERVING, SERVING]
        assert check("private", known) == SERVING
        assert watch("private", known) == SERVING
        assert watch("open") == SERVING
        # As of a model that is not there.
        wrong = (("authorization", "Bearer abd"),)
        for metadata in ((), wrong):
            assert check("private", metadata) == check("none") == grpc.StatusCode.NOT_FOUND
            assert watch("private", metadata) == watch("none")
            assert watch("none") == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def settings(place, clients=(), admins=(), tls=None, **listen):
    models = [ModelConfig("m", str(place / "m"), clients=tuple(clients))]
    return Settings(models, Listen(rest_port=0, grpc_port=0, **listen), tls=tls, admins=tuple(admins))


def refused(wanted):
    with pytest.raises(UsageError, match="clients show none") as raised:
        run(wanted, None)
    assert "--client-ca" in raised.value.hint
    return raised.value.message


@pytest.fixture
def logging_stays():
    """What is set up for the process is so for its tests."""
    import logging

    import structlog

    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.configure(**before)


@pytest.mark.usefixtures("logging_stays")
def test_rules_that_nobody_can_fit_are_refused(tmp_path):
    subject, name = ClientRule(subject="CN=one"), ClientRule(name="one.example")
    token = ClientRule(**RULE)
    assert "the model m" in refused(settings(tmp_path, [subject]))
    assert "the model m" in refused(settings(tmp_path, [token, name]))
    assert "--admin" in refused(settings(tmp_path, admins=[name]))
    certificate, key = map(str, Pki(tmp_path).server())
    assert "the model m" in refused(settings(tmp_path, [subject], tls=Tls(certificate, key)))


def test_tokens_that_anybody_can_read_are_warned_of(tmp_path, restricted):
    server = start(tmp_path, listen={"host": "0.0.0.0"})
    try:
        (line,) = server.lines("tokens without TLS")
        assert (line["level"], line["rules"]) == ("warning", "the model private")
    finally:
        server.kill()
    # To this machine alone nobody listens between.
    assert not restricted.lines("tokens without TLS")


def test_ports_of_their_own():
    with pytest.raises(UsageError, match="a port each"):
        Listen(management_port=8501)
    with pytest.raises(UsageError, match="takes a --management-port"):
        Listen(management_host="127.0.0.1")
    Listen(rest_port=0, grpc_port=0, management_port=0)


def test_a_port_that_is_taken_leaves_none_open(tmp_path, restricted):
    from strongroom.errors import StrongroomError

    # Threads of other tests may end meanwhile.
    with no_thread_left(), pytest.raises(StrongroomError, match="listen"):
        run(settings(tmp_path, management_port=restricted.rest), None)
