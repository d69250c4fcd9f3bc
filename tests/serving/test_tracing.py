"""Traces, as a collector of OpenTelemetry gets them: real servers, and OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import grpc
import numpy as np
import pytest
from front_process import PREDICT

from strongroom.errors import MissingExtra, UsageError
from strongroom.serving.messages import message
from strongroom.serving.tracing import open_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"
V2 = "/inference.GRPCInferenceService/"
SECRET = "not-for-the-collector"


class Span:
    """One span of OTLP."""

    def __init__(self, one, resource) -> None:
        self.name, self.kind, self.status = one.name, one.kind, one.status.code
        self.trace, self.id, self.parent = (
            part.hex() for part in (one.trace_id, one.span_id, one.parent_span_id)
        )
        self.began, self.ended = one.start_time_unix_nano, one.end_time_unix_nano
        self.resource = resource
        self.attributes = {each.key: value(each.value) for each in one.attributes}


def value(one):
    return getattr(one, one.WhichOneof("value"))


class Collector:
    """Takes ``POST /v1/traces``, and nothing else."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
            ExportTraceServiceResponse,
        )

        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.refused: list[str] = []
        self.came = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if (self.path, self.headers["content-type"]) != (
                    "/v1/traces",
                    "application/x-protobuf",
                ):
                    collector.refused.append(self.path)
                    self.send_error(404)
                    return
                with collector.came:
                    collector.bodies.append(body)
                    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                        resource = {each.key: value(each.value) for each in group.resource.attributes}
                        collector.spans += [
                            Span(one, resource) for scope in group.scope_spans for one in scope.spans
                        ]
                    collector.came.notify_all()
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def traces(self, number, seconds=60):
        """Root spans, and the spans below each by name; waits until so many have come."""

        def roots():
            ids = {one.id for one in self.spans}
            return [one for one in self.spans if one.parent not in ids and one.kind == 2]

        with self.came:
            assert self.came.wait_for(lambda: len(roots()) >= number, seconds), self.spans
            found = []
            for root in roots():
                inside = [one for one in self.spans if one.trace == root.trace and one is not root]
                ids = {root.id}
                for one in sorted(inside, key=lambda each: (each.began, -each.ended)):
                    if one.parent in ids:
                        ids.add(one.id)
                found.append((root, {one.name: one for one in inside if one.id in ids}))
            return found


@pytest.fixture
def collector(monkeypatch):
    pytest.importorskip("opentelemetry.sdk", reason="traces need the extra [otel]")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    found = Collector()
    yield found
    found.close()


def infer(port, model="m", count=1, metadata=(), method="ModelInfer"):
    request = message("inference.ModelInferRequest")(model_name=model, id=SECRET)
    x = request.inputs.add(name="x", datatype="FP32", shape=[count, 16])
    x.contents.fp32_contents.extend([0.5] * 16 * count)
    name = "ModelStreamInferResponse" if "Stream" in method else "ModelInferResponse"
    kinds = {
        "request_serializer": message("inference.ModelInferRequest").SerializeToString,
        "response_deserializer": message(f"inference.{name}").FromString,
    }
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        if "Stream" in method:
            call = channel.stream_stream(V2 + method, **kinds)
            return list(call(iter([request, request]), metadata=metadata, timeout=60))
        return channel.unary_unary(V2 + method, **kinds)(request, metadata=metadata, timeout=60)


def test_a_request_over_rest(start, collector):
    server = start(otlp_endpoint=collector.url)
    headers = {"traceparent": PARENT, "authorization": f"Bearer {SECRET}"}
    status, _, _ = server.ask("POST", f"/v1/models/m:predict?token={SECRET}", PREDICT, headers)
    assert status == 200
    [(root, parts)] = collector.traces(1)
    assert (root.trace, root.parent) == (PARENT[3:35], PARENT[36:52])
    assert root.name == "POST /v1/models/{model}:predict"
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}:predict",
        "http.response.status_code": 200,
        "strongroom.api": "tfs",
        "strongroom.code": "OK",
        "strongroom.model.name": "m",
        "strongroom.model.version": 1,
    }
    assert root.status == 0
    assert root.resource["service.name"] == "strongroom"
    assert set(parts) == {"receive", "decode", "queue", "run", "encode"}
    assert {one.parent for one in parts.values()} == {root.id}
    order = [parts[name] for name in ("receive", "decode", "queue", "run", "encode")]
    moments = [root.began]
    for one in order:
        moments += [one.began, one.ended]
    moments.append(root.ended)
    # What is converted from seconds is rounded.
    assert all(b - a > -2000 for a, b in pairwise(moments)), moments
    assert parts["run"].attributes == {"strongroom.batch.size": 1}
    # The line of the log says where to look.
    line = server.until(lambda: server.line("request"))
    assert line["trace"] == root.trace
    assert not [one for one in collector.bodies if SECRET.encode() in one]


def test_a_call_over_grpc(start, collector):
    server = start(otlp_endpoint=f"{collector.url}/v1/traces")
    infer(server.grpc, metadata=[("traceparent", PARENT)])
    [(root, parts)] = collector.traces(1)
    assert (root.trace, root.parent) == (PARENT[3:35], PARENT[36:52])
    assert root.name == "inference.GRPCInferenceService/ModelInfer"
    assert root.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "strongroom.api": "v2",
        "strongroom.code": "OK",
        "strongroom.model.name": "m",
        "strongroom.model.version": 1,
    }
    assert set(parts) == {"decode", "queue", "run", "encode"}
    assert not [one for one in collector.bodies if SECRET.encode() in one]


def test_each_message_of_a_stream_has_a_trace(start, collector):
    server = start(otlp_endpoint=collector.url)
    assert len(infer(server.grpc, method="ModelStreamInfer")) == 2
    found = collector.traces(2)
    assert len({root.trace for root, _ in found}) == 2
    for root, parts in found:
        assert root.name == "inference.GRPCInferenceService/ModelStreamInfer"
        assert root.attributes["strongroom.model.name"] == "m"
        assert set(parts) == {"decode", "queue", "run", "encode"}


def test_requests_that_were_put_together(start, collector, tmp_path):
    (tmp_path / "slow").write_text("0.2")
    model = {
        "name": "m",
        "path": str(tmp_path / "slow"),
        "batching": {"max_batch": 8},
        "limits": {"concurrency": 1},
    }
    server = start(otlp_endpoint=collector.url, models=[model])
    with ThreadPoolExecutor(4) as threads:
        # While the first runs, the others come together.
        asked = [threads.submit(server.ask, "POST", "/v1/models/m:predict", PREDICT) for _ in range(4)]
        assert [one.result()[0] for one in asked] == [200] * 4
    found = collector.traces(4)
    sizes = [parts["run"].attributes["strongroom.batch.size"] for _, parts in found]
    assert max(sizes) > 1
    for _, parts in found:
        assert set(parts) == {"receive", "decode", "queue", "batch", "run", "encode"}
        assert parts["run"].parent == parts["batch"].id
        assert parts["batch"].attributes == parts["run"].attributes
    runs = {(parts["run"].began // 10_000) for _, parts in found}
    assert len(runs) < 4


def test_failures_are_those_of_the_server(start, collector):
    server = start(otlp_endpoint=collector.url)
    made_up = "/v1/models/m/versions/99/labels/a-name-that-a-caller-made-up"
    for path, body in (
        ("/v1/models/m:predict", b'{"instances": [[1.0, 2.0]]}'),
        ("/v1/models/made-up-by-a-caller:predict", PREDICT),
        (made_up, b""),
        ("/v2/made-up-by-a-caller", b""),
    ):
        assert server.ask("POST", path, body)[0] in (400, 404)
    with pytest.raises(grpc.RpcError):
        infer(server.grpc, count=1, model="another")
    roots = {root.name: root for root, _ in collector.traces(5)}
    assert set(roots) == {
        "POST /v1/models/{model}:predict",
        "POST /v1/models/{model}/versions/{version}",
        "POST /v2",
        "inference.GRPCInferenceService/ModelInfer",
    }
    assert {root.status for root in roots.values()} == {0}
    codes = {root.attributes["strongroom.code"] for root in roots.values()}
    assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert not [one for one in collector.bodies if b"made-up" in one]


def test_a_run_that_is_too_late_is_an_error(start, collector, tmp_path):
    (tmp_path / "slow").write_text("0.5")
    model = {"name": "m", "path": str(tmp_path / "slow"), "limits": {"concurrency": 1, "timeout": 0.2}}
    server = start(otlp_endpoint=collector.url, models=[model])
    assert server.ask("POST", "/v1/models/m:predict", PREDICT)[0] == 504
    [(root, parts)] = collector.traces(1)
    assert (root.attributes["http.response.status_code"], root.status) == (504, 2)
    assert root.attributes["strongroom.code"] == "DEADLINE_EXCEEDED"
    # It ran when nobody waited any more.
    assert set(parts) == {"receive", "decode", "queue", "run", "encode"}


def test_what_the_environment_says(start, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "cameras")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    server = start()
    for headers in (
        {},
        {"traceparent": UNSAMPLED},
        {"traceparent": "nonsense"},
        {"traceparent": PARENT},
    ):
        assert server.ask("POST", "/v1/models/m:predict", PREDICT, headers)[0] == 200
    assert server.ask("GET", "/v2/health/live", headers={"traceparent": PARENT})[0] == 200
    # The end sends what there is.
    assert server.stop() == 0
    [(root, _)] = collector.traces(1)
    assert root.trace == PARENT[3:35]
    assert root.resource["service.name"] == "cameras"
    assert root.resource["deployment.environment.name"] == "test"
    lines = server.lines("request")
    assert ["trace" in one for one in lines[:4]] == [False, False, False, True]


def test_a_collector_that_is_away_holds_nothing_up(start, collector):
    collector.close()
    server = start(otlp_endpoint=collector.url)
    for _ in range(20):
        assert server.ask("POST", "/v1/models/m:predict", PREDICT)[0] == 200
    assert server.stop() == 0
    for line in server.text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    ("environ", "endpoint", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "http://localhost:4318", "over OTLP"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317", "over OTLP"),
        ({}, "localhost:4318", "no URL"),
        ({}, "http://user:password@localhost:4318", "no URL"),
    ],
    ids=["exporter", "protocol", "no-url", "password"],
)
def test_what_is_not_spoken(environ, endpoint, says):
    with pytest.raises(UsageError, match=says) as caught:
        open_tracing(endpoint, environ)
    assert "password" not in str(caught.value)


def test_nobody_wants_traces(monkeypatch):
    url = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert open_tracing(None, {}) is None
    assert open_tracing(None, {**url, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert open_tracing("http://localhost:4318", {"OTEL_SDK_DISABLED": "true"}) is None
    # As where it was never installed, nor what other packages bring of it.
    for package in ("opentelemetry", "opentelemetry.sdk"):
        with monkeypatch.context() as changed:
            for name in [one for one in sys.modules if one.startswith("opentelemetry")]:
                changed.delitem(sys.modules, name)
            changed.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtra, match="Tracing"):
                open_tracing(None, url)


def test_traces_differ_whatever_a_model_seeds(collector):
    import random

    found = open_tracing(collector.url, {})
    ids = set()
    for _ in range(8):
        random.seed(0)
        np.random.seed(0)
        ids.add(found.of_http("GET", "/v2", {}).id)
    found.close()
    assert len(ids) == 8
