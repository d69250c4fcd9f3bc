"""Load tests of a small server, over both protocols and transports."""

import asyncio
import json
import ssl
import time
from datetime import UTC, datetime

import pytest

pytest.importorskip("numpy", reason="a load test needs the extra loadtest")
pytest.importorskip("ml_dtypes", reason="a load test needs the extra loadtest")
pytest.importorskip("orjson", reason="a load test needs the extra loadtest")
pytest.importorskip("google.protobuf", reason="a load test needs the extra loadtest")
pytest.importorskip("uvloop", reason="a load test needs the extra loadtest")
pytest.importorskip("httptools", reason="a load test needs the extra loadtest")
pytest.importorskip("grpc", reason="a load test needs the extra loadtest")

import numpy as np
from model_stub import RestServer, Stub, grpc_server

from strongroom.cli.loadtest import _failure
from strongroom.errors import InvalidKey, NotAuthorised, NotFound, ServerUnavailable, UsageError
from strongroom.loadtest.connection import Ask, Failed
from strongroom.loadtest.inputs import random_inputs
from strongroom.loadtest.load import closed_loop, open_loop
from strongroom.loadtest.protocols import protocol
from strongroom.loadtest.rest import RestConnection
from strongroom.loadtest.run import Plan, run
from strongroom.loadtest.target import Security, parse_target
from strongroom.loadtest.timer import Timer
from strongroom.pki.certificates import issue, new_ca
from strongroom.serving.messages import message
from strongroom.serving.status import Code
from strongroom.serving.tfs.tensor_proto import to_array

TIMEOUT = 120


def plan(url, api="v2", *, batch=2, model="m", binary=True, **more):
    target = parse_target(url, secure=False)
    made = protocol(
        api, grpc=target.grpc, model=model, version=None, signature="serving_default", binary=binary
    )
    more = {"connections": 3, "loops": 5, "warm_up": 0, "timeout": TIMEOUT, **more}
    return Plan(
        target=target,
        api=made,
        arrays=lambda specs: random_inputs(specs, batch, {}, seed=1),
        batch=batch,
        **more,
    )


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def rest(stub):
    with RestServer(stub) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def rpc(stub):
    server, port = grpc_server(stub)
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait(TIMEOUT)


def counted(outcome, answered, failures):
    assert outcome.recorder.answered == answered
    assert dict(outcome.recorder.failures) == failures


@pytest.mark.parametrize("api", ["v2", "tfs"])
def test_rest(rest, stub, api):
    outcome = run(plan(rest, api, binary=False))
    counted(outcome, 15, {})
    assert stub.inferences == 15
    path, body, headers = stub.seen[0]
    said = json.loads(body)
    assert headers["content-type"] == "application/json"
    if api == "v2":
        assert path == "/v2/models/m/infer"
        (one,) = said["inputs"]
        assert (one["name"], one["datatype"], one["shape"]) == ("x", "FP32", [2, 4])
        assert len(one["data"]) == 8
    else:
        assert path == "/v1/models/m:predict"
        assert np.shape(said["inputs"]["x"]) == (2, 4)
    # Not always the same, or a cache would answer.
    assert len({body for _, body, _ in stub.seen}) > 5


def test_rest_with_binary_tensors(rest, stub):
    counted(run(plan(rest)), 15, {})
    _, body, headers = stub.seen[0]
    size = int(headers["inference-header-content-length"])
    (one,) = json.loads(body[:size])["inputs"]
    assert one["parameters"] == {"binary_data_size": 32}
    values = np.frombuffer(body[size:], np.float32)
    assert values.size == 8 and (values >= 0).all() and (values < 1).all()


@pytest.mark.parametrize("api", ["v2", "tfs"])
def test_grpc(rpc, stub, api):
    counted(run(plan(rpc, api)), 15, {})
    assert stub.inferences == 15
    request = stub.seen[0][1]
    if api == "v2":
        assert isinstance(request, message("inference.ModelInferRequest"))
        assert list(request.inputs[0].shape) == [2, 4]
        assert len(request.raw_input_contents[0]) == 32
    else:
        assert request.model_spec.signature_name == "serving_default"
        assert to_array("x", request.inputs["x"]).shape == (2, 4)


def test_warm_up_does_not_count(rest, stub):
    counted(run(plan(rest, warm_up=4)), 15, {})
    assert stub.inferences == 15 + 3 * 4


def test_failures_are_counted_by_code(rest, stub):
    stub.failing = lambda number: {0: 503, 1: 429}.get(number % 5)
    outcome = run(plan(rest))
    counted(outcome, 9, {"HTTP 503": 3, "HTTP 429": 3})
    assert outcome.failed == 6


def test_a_run_that_is_refused_as_a_whole_says_why(rest, stub):
    stub.failing = lambda number: 400
    error = _failure(run(plan(rest)))
    assert isinstance(error, UsageError)
    assert error.message == "The server answers HTTP 400: said so."


def test_failures_over_grpc(rpc, stub):
    stub.failing = lambda number: Code.RESOURCE_EXHAUSTED if number % 3 == 0 else None
    counted(run(plan(rpc)), 10, {"RESOURCE_EXHAUSTED": 5})


def test_a_server_that_closes_after_each_answer(rest, stub):
    stub.closing = True
    counted(run(plan(rest)), 15, {})


def test_late_answers(rest, stub):
    stub.delay = 0.5
    started = time.monotonic()
    counted(run(plan(rest, timeout=0.1, loops=1)), 0, {"TIMEOUT": 3})
    assert time.monotonic() - started < TIMEOUT


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there(scheme):
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        run(plan(f"{scheme}://127.0.0.1:1", timeout=2))


def test_a_server_that_does_not_know_the_model(rest, rpc):
    for url in (rest, rpc):
        with pytest.raises(NotFound):
            run(plan(url, model="other"))


def test_a_server_that_goes_away(stub):
    with RestServer(stub) as port:
        connections = [
            RestConnection(parse_target(f"http://127.0.0.1:{port}", secure=False), None, {}, TIMEOUT)
        ]
        ask = Ask("/v2/models/m/infer", b"{}")

        async def both():
            first = await closed_loop(connections, [ask], 3, 1)
            stub.failing = lambda number: 500
            second = await closed_loop(connections, [ask], 2, 1)
            await connections[0].close()
            return first, second

        first, second = asyncio.run(both())
    counted(first, 3, {})
    counted(second, 0, {"HTTP 500": 2})
    third = asyncio.run(closed_loop([RestConnection(connections[0]._target, None, {}, 1)], [ask], 2, 1))
    counted(third, 0, {"UNREACHABLE": 2})


class Stalling:
    """Answers at once, but for one query that takes long."""

    def __init__(self, stall):
        self.stall, self.number = stall, 0

    async def ask(self, request):
        self.number += 1
        if self.number == 10:
            await asyncio.sleep(self.stall)
        return b""

    async def close(self):
        pass


def test_an_open_loop_counts_from_when_a_query_was_due():
    rate, stall = 200.0, 0.5
    outcome = asyncio.run(open_loop([Stalling(stall)], [Ask("/")], rate, 1.0, 1, TIMEOUT))
    counted(outcome, 200, {})
    assert outcome.unsent == 0
    took = np.sort(outcome.recorder.latencies())
    # Everything that was due during the stall waited for its end; a closed loop would have seen one.
    assert (took > stall / 4).sum() > rate * stall / 2
    assert took.max() >= stall
    assert outcome.delay() > stall * 500


def test_an_open_loop_that_cannot_keep_up_ends():
    outcome = asyncio.run(open_loop([Stalling(0.6)], [Ask("/")], 100.0, 0.2, 1, 0.1))
    assert outcome.unsent > 0
    assert outcome.recorder.answered + outcome.unsent == 20


def test_an_open_loop_keeps_its_rate(rest):
    outcome = run(plan(rest, rate=200.0, seconds=1.0))
    counted(outcome, 200, {})
    # The last one is due after 199 intervals; nothing is sent before its moment.
    assert outcome.seconds >= 0.99
    assert min(outcome.recorder.delays) >= 0


def test_a_timer_rings_at_its_moment_and_not_before():
    async def late():
        found = []
        with Timer() as timer:
            for index in range(100):
                due = time.perf_counter() + (index % 5 + 0.5) * 1e-3
                await timer.until(due)
                found.append(time.perf_counter() - due)
        return found

    found = [sorted(asyncio.run(late())) for _ in range(5)]
    assert min(found)[0] >= 0
    # A busy machine is late now and then; a timer that counts in milliseconds always is, by half of one.
    assert min(one[10] for one in found) < 0.0004


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    place = tmp_path_factory.mktemp("pki")
    now = datetime.now(UTC).replace(microsecond=0)
    ca = new_ca("test", now)
    for name, (certificate, key) in {
        "ca": ca,
        "server": issue(*ca, "localhost", ["localhost", "127.0.0.1"], now),
        "client": issue(*ca, "loader", [], now),
    }.items():
        (place / f"{name}.pem").write_bytes(certificate)
        (place / f"{name}.key").write_bytes(key)
    return place


def security(place, *names):
    return Security.read(*(str(place / name) if name else None for name in names))


def test_mutual_tls_over_rest(stub, certificates):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with RestServer(stub, context) as port:
        url = f"https://localhost:{port}"
        known = security(certificates, "ca.pem", "client.pem", "client.key")
        counted(run(plan(url, security=known)), 15, {})
        with pytest.raises(ServerUnavailable):
            run(plan(url, security=security(certificates, "ca.pem", None, None), timeout=5))
        with pytest.raises(ServerUnavailable, match="certificate is not accepted"):
            run(plan(url))


def test_mutual_tls_over_grpc(stub, certificates):
    import grpc

    files = {
        name: (certificates / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")
    }
    credentials = grpc.ssl_server_credentials(
        [(files["server.key"], files["server.pem"])], files["ca.pem"], require_client_auth=True
    )
    server, port = grpc_server(stub, credentials)
    try:
        url = f"grpcs://localhost:{port}"
        known = security(certificates, "ca.pem", "client.pem", "client.key")
        counted(run(plan(url, "tfs", security=known)), 15, {})
        with pytest.raises(ServerUnavailable):
            run(plan(url, security=security(certificates, "ca.pem", None, None), timeout=5))
    finally:
        server.stop(None).wait(TIMEOUT)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("client.key", None, None), "-ca, or -crt without -key"),
        (("ca.pem", "client.pem", "server.key"), "-crt and -key are not"),
    ],
)
def test_files_that_cannot_be_used_are_said_over_either_transport(certificates, scheme, names, says):
    with pytest.raises(InvalidKey, match=says):
        run(plan(f"{scheme}://localhost:1", security=security(certificates, *names)))


def test_the_port_of_the_other_transport(rest, rpc):
    with pytest.raises(ServerUnavailable) as raised:
        run(plan(rest.replace("http:", "grpc:"), timeout=5))
    assert "http://HOST:PORT" in raised.value.hint
    with pytest.raises(ServerUnavailable) as raised:
        run(plan(rpc.replace("grpc:", "http:"), timeout=5))
    assert "grpc://HOST:PORT" in raised.value.hint


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_tls_where_the_server_has_none(rest, rpc, scheme):
    port = (rest if scheme == "https" else rpc).rpartition(":")[2]
    with pytest.raises(ServerUnavailable) as raised:
        run(plan(f"{scheme}://127.0.0.1:{port}", timeout=5))
    assert raised.value.hint == (
        f"It speaks no TLS: {scheme[:-1]}://127.0.0.1:{port}, without -ca, -crt and -key."
    )


def test_no_tls_where_the_server_has_it(stub, certificates):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with RestServer(stub, context) as port:
        for scheme in ("http", "grpc"):
            with pytest.raises(ServerUnavailable) as raised:
                run(plan(f"{scheme}://localhost:{port}", timeout=5))
            assert raised.value.hint == (
                f"It speaks TLS: {scheme}s://localhost:{port}, and its CA with -ca."
            )


def test_nobody_there_speaks_neither():
    assert asyncio.run(parse_target("http://127.0.0.1:1", secure=False).other()) is None


def test_a_certificate_alone_is_that_of_the_ca(certificates):
    found = security(certificates, None, "ca.pem", None)
    assert found.ca == (certificates / "ca.pem").read_bytes()
    assert found.certificate is None
    for wrong in ((None, None, "client.key"), ("ca.pem", "client.pem", None)):
        with pytest.raises(UsageError):
            security(certificates, *wrong)


def test_headers_reach_the_server(rest, stub):
    run(plan(rest, headers={"authorization": "Bearer abc"}))
    assert stub.seen[0][2]["authorization"] == "Bearer abc"


def test_answers_that_are_no_http():
    async def once():
        async def junk(reader, writer):
            await reader.read(10)
            writer.write(b"junk\r\n\r\n" * 10)
            writer.close()

        server = await asyncio.start_server(junk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = RestConnection(
            parse_target(f"http://127.0.0.1:{port}", secure=False), None, {}, TIMEOUT
        )
        try:
            with pytest.raises(Failed) as raised:
                await connection.ask(Ask("/"))
        finally:
            await connection.close()
            server.close()
        return raised.value

    assert asyncio.run(once()).code == "DISCONNECTED"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNREACHABLE", ServerUnavailable),
        ("HTTP 503", ServerUnavailable),
        ("HTTP 404", NotFound),
        ("HTTP 401", NotAuthorised),
        ("PERMISSION_DENIED", NotAuthorised),
        ("HTTP 400", UsageError),
        ("INVALID_ARGUMENT", UsageError),
        ("UNAVAILABLE", ServerUnavailable),
    ],
)
def test_what_a_failure_means(code, kind):
    assert type(Failed(code, "words").error()) is kind


@pytest.mark.parametrize(
    ("url", "address", "grpc", "secure"),
    [
        ("localhost:8500", "localhost:8500", True, False),
        ("localhost", "localhost:8500", True, False),
        ("[::1]:1", "[::1]:1", True, False),
        ("grpcs://h", "h:8500", True, True),
        ("http://h/prefix/", "h:80", False, False),
        ("https://h:8501", "h:8501", False, True),
    ],
)
def test_urls(url, address, grpc, secure):
    found = parse_target(url, secure=False)
    assert (found.address, found.grpc, found.secure) == (address, grpc, secure)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "http://h:x",
        "grpc://h/path",
        "http://u:p@h",
        "http://h?q",
        "http://ü",
        "a b",
        "",
    ],
)
def test_urls_that_are_none(url):
    with pytest.raises(UsageError):
        parse_target(url, secure=False)


def test_tls_options_are_not_for_plain_urls():
    assert parse_target("h:1", secure=True).secure
    with pytest.raises(UsageError):
        parse_target("http://h:1", secure=True)
