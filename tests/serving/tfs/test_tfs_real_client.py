"""The API as tensorflow-serving-api speaks it; it imports TensorFlow, so it has a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.resources import files

import grpc
import numpy as np
import orjson
import pytest
from tfs_models import grpc_server, serving, until

import strongroom
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends.registry import load
from strongroom.serving.config import ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.messages import method_types
from strongroom.serving.servable import Servable
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.tfs.service import handlers

KEY = bytes(range(32))

CLIENT = """
import json, sys
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2, get_model_metadata_pb2, get_model_status_pb2, inference_pb2, model_management_pb2,
    model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc, regression_pb2,
)
channel = grpc.insecure_channel(sys.argv[1])
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
models = model_service_pb2_grpc.ModelServiceStub(channel)
found = {}

def named(request, signature=""):
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    return request

half = np.array([1.0, 2.0, 5.0], np.float32)
request = named(predict_pb2.PredictRequest())
request.inputs["x"].CopyFrom(tf.make_tensor_proto(half))
answer = stub.Predict(request, 20)
found["half"] = list(answer.outputs["y"].float_val), answer.model_spec.version.value
request.inputs["x"].CopyFrom(tf.make_tensor_proto(5.0, shape=[3]))
found["repeated"] = tf.make_ndarray(stub.Predict(request, 20).outputs["y"]).tolist()

found["echo"] = {}
for name in sys.argv[2].split(","):
    dtype = tf.string if name == "bytes" else tf.as_dtype(name)
    given = np.array([[b"a", b"\\xff"], [b"", b"b"]], object) if name == "bytes" else (
        np.array([[0, 1], [1, 1]]).astype(dtype.as_numpy_dtype))
    request = named(predict_pb2.PredictRequest(), "echo_" + name)
    for proto in (tf.make_tensor_proto(given), tf.compat.v1.make_tensor_proto(given.ravel().tolist(), dtype, [2, 2])):
        request.inputs["x"].CopyFrom(proto)
        back = tf.make_ndarray(stub.Predict(request, 20).outputs["x"])
        assert back.dtype == given.dtype and back.tolist() == given.tolist(), (name, back)
    found["echo"][name] = True

def example(value):
    features = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))}
    return tf.train.Example(features=tf.train.Features(feature=features))

request = named(classification_pb2.ClassificationRequest(), "classify")
request.input.example_list.examples.extend([example(1.5), example(2.5)])
found["classify"] = [[(c.label, c.score) for c in one.classes]
    for one in stub.Classify(request, 20).result.classifications]
request = named(regression_pb2.RegressionRequest(), "regress")
request.input.example_list.examples.extend([example(1.5), example(2.5)])
found["regress"] = [one.value for one in stub.Regress(request, 20).result.regressions]
request = inference_pb2.MultiInferenceRequest()
request.input.example_list.examples.append(example(7))
named(request.tasks.add(), "regress").method_name = "tensorflow/serving/regress"
named(request.tasks.add(), "classify").method_name = "tensorflow/serving/classify"
first, second = stub.MultiInference(request, 20).results
found["multi"] = [first.regression_result.regressions[0].value,
    second.classification_result.classifications[0].classes[1].score]

request = named(get_model_metadata_pb2.GetModelMetadataRequest())
request.metadata_field.append("signature_def")
signatures = get_model_metadata_pb2.SignatureDefMap()
assert stub.GetModelMetadata(request, 20).metadata["signature_def"].Unpack(signatures)
x = signatures.signature_def["serving_default"].inputs["x"]
found["metadata"] = [x.dtype == tf.float32.as_datatype_enum, tf.TensorShape(x.tensor_shape).as_list(),
    signatures.signature_def["classify"].method_name]

(status,) = models.GetModelStatus(named(get_model_status_pb2.GetModelStatusRequest()), 20).model_version_status
found["status"] = status.version, get_model_status_pb2.ModelVersionStatus.State.Name(status.state)
request = model_management_pb2.ReloadConfigRequest()
request.config.model_config_list.config.add(name="m", base_path=sys.argv[3], model_platform="tensorflow")
found["reload"] = models.HandleReloadConfigRequest(request, 20).status.error_code
try:
    stub.Predict(named(predict_pb2.PredictRequest()), 20)
except grpc.RpcError as error:
    found["mistake"] = error.code().name
print(json.dumps(found))
"""

DESCRIPTORS = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
from tensorflow_serving.apis import model_service_pb2, prediction_log_pb2, prediction_service_pb2

theirs = descriptor_pool.Default()
mine = descriptor_pb2.FileDescriptorSet.FromString(sys.stdin.buffer.read())
count = 0

def known(file):
    return file.package.split(".")[0] == "tensorflow"

def messages(scope, ones):
    for one in ones:
        name = f"{scope}.{one.name}"
        yield name, one
        yield from messages(name, one.nested_type)

def compare(name, one):
    global count
    other = descriptor_pb2.DescriptorProto()
    theirs.FindMessageTypeByName(name).CopyToProto(other)
    fields = {field.name: field for field in other.field}
    for field in one.field:
        twin = fields.pop(field.name)
        for what in ("number", "type", "label", "type_name", "proto3_optional"):
            assert getattr(field, what) == getattr(twin, what), (name, field.name, what)
        assert field.HasField("oneof_index") == twin.HasField("oneof_index"), (name, field.name)
        if field.HasField("oneof_index"):
            assert one.oneof_decl[field.oneof_index].name == other.oneof_decl[twin.oneof_index].name
        count += 1
    assert one.options.map_entry == other.options.map_entry
    if fields:
        print("missing", name, ",".join(sorted(fields)))

def compare_enum(name, one):
    other = descriptor_pb2.EnumDescriptorProto()
    theirs.FindEnumTypeByName(name).CopyToProto(other)
    assert {v.name: v.number for v in one.value} == {v.name: v.number for v in other.value}, name

for file in mine.file:
    if not known(file):
        continue
    for name, one in messages(file.package, file.message_type):
        compare(name, one)
        for enum in one.enum_type:
            compare_enum(f"{name}.{enum.name}", enum)
    for enum in file.enum_type:
        compare_enum(f"{file.package}.{enum.name}", enum)
    for service in file.service:
        other = descriptor_pb2.ServiceDescriptorProto()
        theirs.FindServiceByName(f"{file.package}.{service.name}").CopyToProto(other)
        ours = {m.name: (m.input_type, m.output_type) for m in service.method}
        assert ours == {m.name: (m.input_type, m.output_type) for m in other.method}
print("compared", count)
"""


def run(script, *args, input=None):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *args],
        env=environment,
        input=input,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode()


@pytest.mark.slow
def test_the_real_client(tmp_path):
    pytest.importorskip("tensorflow_serving")
    # An engine of its own: it gets another configuration.
    with serving(tmp_path) as engine, grpc_server(handlers(engine, reload=True)) as address:
        path = engine.config("m").path
        dtypes = [name[5:] for name in engine.describe("m").signatures if name.startswith("echo_")]
        found = json.loads(run(CLIENT, address, ",".join(dtypes), path).splitlines()[-1])
    assert found == {
        "half": [[2.5, 3.0, 4.5], 1],
        "repeated": [4.5, 4.5, 4.5],
        "echo": dict.fromkeys(dtypes, True),
        "classify": [[["low", 1.5], ["high", -1.5]], [["low", 2.5], ["high", -2.5]]],
        "regress": [1.5, 2.5],
        "multi": [7.0, -7.0],
        "metadata": [True, [None], "tensorflow/serving/classify"],
        "status": [1, "AVAILABLE"],
        "reload": 0,
        "mistake": "INVALID_ARGUMENT",
    }


@pytest.mark.slow
def test_the_messages_are_those_of_the_protocol():
    pytest.importorskip("tensorflow_serving")
    data = files("strongroom.serving.protos").joinpath("descriptors.binpb").read_bytes()
    *missing, count = run(DESCRIPTORS, input=data).splitlines()
    assert int(count.split()[1]) > 100
    # What no server without a graph can read; and of the logs of requests, which are not kept.
    assert set(missing) == {
        "missing tensorflow.TensorInfo composite_tensor",
        "missing tensorflow.serving.PredictionLog log_metadata,predict_streamed_log,session_run_log",
    } | {one for one in missing if "Config" in one}


def test_half_plus_two_of_onnx(tmp_path):
    """The model of the quick start, sealed, over both transports."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Div", ["x", "two"], ["half"]),
            helper.make_node("Add", ["half", "two"], ["y"]),
        ],
        "half_plus_two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, tmp_path / "m.onnx")
    strongroom.seal(tmp_path / "m.onnx", tmp_path / "m.sealed", key=KEY)
    (tmp_path / "m.onnx").unlink()

    def servable(config, version, location):
        with strongroom.open(location, key=KEY) as sealed:
            return Servable(config, version, load(sealed, None, BackendOptions(threads=1)))

    engine = Engine([ModelConfig("half_plus_two", str(tmp_path / "m.sealed"))], servable)
    engine.start()
    try:
        until(engine.ready)
        body = orjson.dumps({"instances": [1.0, 2.0, 5.0]})
        request = HttpRequest("POST", "/v1/models/half_plus_two:predict", {}, body)
        answer = asyncio.run(TfsRest(engine).handle(request))
        assert (answer.status, answer.model) == (200, ("half_plus_two", 1))
        assert orjson.loads(answer.body) == {"predictions": [2.5, 3.0, 4.5]}
        with grpc_server(handlers(engine)) as address:
            assert asked(address) == [2.5, 3.0, 4.5]
    finally:
        engine.close(5)


def asked(address):
    given, taken = method_types("tensorflow.serving.PredictionService")["Predict"]
    request = given()
    request.model_spec.name = "half_plus_two"
    x = request.inputs["x"]
    x.dtype, x.tensor_content = 1, np.array([1, 2, 5], np.float32).tobytes()
    x.tensor_shape.dim.add(size=3)
    with grpc.insecure_channel(address) as channel:
        method = "/tensorflow.serving.PredictionService/Predict"
        call = channel.unary_unary(method, given.SerializeToString, taken.FromString)
        return list(call(request, timeout=60).outputs["y"].float_val)
