"""The port of gRPC: both protocols, health, reflection, limits, who may call, and the end."""

from __future__ import annotations

import hashlib
import threading

import grpc
import numpy as np
import pytest
from front_process import Server, X
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from strongroom.serving.messages import message

V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving."


def call(channel, method, request, answer, token=None, timeout=60):
    """One call: the answer, of the type that is named."""
    stub = channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=message(answer).FromString,
    )
    metadata = None if token is None else [("authorization", f"Bearer {token}")]
    return stub(request, timeout=timeout, metadata=metadata)


def infer(channel, model="m", token=None, rows=1, timeout=60):
    request = message("inference.ModelInferRequest")(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 16])
    request.raw_input_contents.append(np.float32(X * rows).tobytes())
    return call(channel, V2 + "ModelInfer", request, "inference.ModelInferResponse", token, timeout)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("front-grpc")
    (place / "m").write_text("0")
    (place / "slow").write_text("0.5")
    (place / "bad").write_text("not a number")
    rule = {"token_sha256": hashlib.sha256(b"sesame").hexdigest()}
    made = Server(
        place,
        models=[
            {"name": "m", "path": str(place / "m")},
            {"name": "ours", "path": str(place / "m"), "clients": [rule]},
            {"name": "slow", "path": str(place / "slow")},
            {"name": "bad", "path": str(place / "bad")},
        ],
        limits={"bytes": 100_000, "grpc_threads": 2, "grpc_waiting": 2},
        listen={"management_port": 0},
    )
    made.until(lambda: made.text().count('"AVAILABLE"') == 3 and '"END"' in made.text())
    yield made
    made.kill()


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as made:
        yield made


def test_both_protocols_answer(channel):
    assert np.frombuffer(infer(channel).raw_output_contents[0], np.float32).tolist() == [
        2.0 * one for one in X[0]
    ]
    request = message("tensorflow.serving.GetModelStatusRequest")()
    request.model_spec.name = "m"
    found = call(
        channel,
        TFS + "ModelService/GetModelStatus",
        request,
        "tensorflow.serving.GetModelStatusResponse",
    )
    assert found.model_version_status[0].state == 30


def test_who_may_use_a_model(channel):
    assert infer(channel, "ours", "sesame").model_name == "ours"
    for token, code in ((None, "UNAUTHENTICATED"), ("sesam", "PERMISSION_DENIED")):
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, "ours", token)
        assert caught.value.code().name == code
    request = message("tensorflow.serving.GetModelMetadataRequest")()
    request.model_spec.name = "ours"
    with pytest.raises(grpc.RpcError) as caught:
        call(
            channel,
            TFS + "PredictionService/GetModelMetadata",
            request,
            "tensorflow.serving.GetModelMetadataResponse",
        )
    assert caught.value.code().name == "UNAUTHENTICATED"


def test_every_message_of_a_stream_is_checked(channel):
    kind = message("inference.ModelInferRequest")
    stub = channel.stream_stream(
        V2 + "ModelStreamInfer",
        request_serializer=kind.SerializeToString,
        response_deserializer=message("inference.ModelStreamInferResponse").FromString,
    )
    requests = [kind(model_name=name) for name in ("m", "ours")]
    for one in requests:
        one.inputs.add(name="x", datatype="FP32", shape=[1, 16])
        one.raw_input_contents.append(np.float32(X).tobytes())
    found = []
    with pytest.raises(grpc.RpcError) as caught:
        found.extend(stub(iter(requests), timeout=60))
    assert caught.value.code().name == "UNAUTHENTICATED"
    assert [one.infer_response.model_name for one in found] in ([], ["m"])


@pytest.mark.parametrize(
    ("method", "request_type", "answer"),
    [
        (
            V2 + "RepositoryModelUnload",
            "inference.RepositoryModelUnloadRequest",
            "inference.Repository",
        ),
        (
            TFS + "ModelService/HandleReloadConfigRequest",
            "tensorflow.serving.ReloadConfigRequest",
            "tensorflow.serving.",
        ),
    ],
    ids=["unload", "reload"],
)
def test_administration_is_for_nobody_unless_told(channel, method, request_type, answer):
    answer += {"inference.Repository": "ModelUnloadResponse"}.get(answer, "ReloadConfigResponse")
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, message(request_type)(), answer)
    assert caught.value.code().name == "PERMISSION_DENIED"
    assert infer(channel).model_name == "m"


def test_health_of_the_server_and_of_each_model(server, channel):
    stub = health_pb2_grpc.HealthStub(channel)

    def state(service):
        found = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(found)

    assert [state(name) for name in ("m", "bad", "")] == ["SERVING", "NOT_SERVING", "NOT_SERVING"]
    with pytest.raises(grpc.RpcError) as caught:
        state("nobody")
    assert caught.value.code().name == "NOT_FOUND"
    watched = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    new = server.place / "new"
    new.write_text("0")
    new.replace(server.place / "bad")
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    assert state("bad") == "SERVING"


def test_reflection(channel):
    found = ProtoReflectionDescriptorDatabase(channel)
    assert set(found.get_services()) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
    pool = DescriptorPool(found)
    for service, method in (
        ("tensorflow.serving.PredictionService", "Predict"),
        ("inference.GRPCInferenceService", "ModelInfer"),
        ("grpc.health.v1.Health", "Check"),
    ):
        assert method in pool.FindServiceByName(service).methods_by_name


def test_a_message_beyond_the_limit(channel):
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, rows=2000)
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert infer(channel, rows=100).model_name == "m"


def test_more_calls_than_may_wait(server, channel):
    codes = []

    def ask():
        try:
            infer(channel, "slow")
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") >= 4
    assert infer(channel).model_name == "m"


def test_a_deadline(server, channel):
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, "slow", timeout=0.1)
    assert caught.value.code().name == "DEADLINE_EXCEEDED"


def test_the_log_and_the_numbers(server, channel):
    infer(channel, token="not-for-the-log")
    infer(channel, "ours", "sesame")
    lines = server.until(
        lambda: [
            one
            for one in server.lines("request")
            if one["request"] == V2 + "ModelInfer"
            and one.get("model") == "ours"
            and one["status"] == "OK"
        ]
    )
    assert (lines[-1]["version"], lines[-1]["api"]) == (1, "v2")
    assert not {"not-for-the-log", "sesame"} & set(server.text().replace('"', " ").split())
    text = server.numbers()
    of = 'api="v2",code="OK",model="m",transport="grpc",version="1"'
    assert f"strongroom_serving_requests_total{{{of}}}" in text


def test_the_end_fails_no_call(start):
    server = start(listen={"drain": 600.0})
    failures, done, stop = [], [], threading.Event()

    def ask():
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            while not stop.is_set():
                try:
                    infer(channel)
                    done.append(None)
                except grpc.RpcError as error:
                    failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    server.until(lambda: len(done) > 20)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="m"), timeout=60
        )
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        # Who watches turns away, while everybody else is answered.
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    before = len(done)
    server.until(lambda: failures or len(done) > before + 20)
    stop.set()
    thread.join()
    assert not failures
    server.process.terminate()  # a second signal ends the draining
    assert server.process.wait(60) == 0
