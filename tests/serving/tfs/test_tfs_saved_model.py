"""Real SavedModels, asked by the real client: in this process, where TensorFlow's messages lie beside ours,
and of a server that is a process of its own, with TLS.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
import urllib.request
from base64 import urlsafe_b64encode
from pathlib import Path

import grpc
import numpy as np
import pytest
from front_process import Pki, Server
from google.protobuf import json_format
from saved_models import ECHOED, everything, half_plus_two, tf, v1
from tfs_models import grpc_server, until

import strongroom
from strongroom.serving import loading
from strongroom.serving.backends import tensorflow
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.exchange import HttpRequest
from strongroom.serving.loading import load_servable
from strongroom.serving.tfs.rest import TfsRest
from strongroom.serving.tfs.service import handlers

apis = pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

KEY = bytes(range(32))
PROGRAM = Path(sys.executable).with_name("strongroom")
SECONDS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two SavedModels, plain and sealed, and their key."""
    place = tmp_path_factory.mktemp("saved-models")
    (place / "key").write_bytes(urlsafe_b64encode(KEY))
    for name, make in (("half_plus_two", half_plus_two), ("everything", everything)):
        make(place / "plain" / name)
        strongroom.seal(place / "plain" / name, place / name, key=KEY)
    return place


@pytest.fixture(scope="module")
def engine(place):
    def config(name, **options):
        return ModelConfig(name, str(place / name), key=str(place / "key"), **options)

    models = [config("half_plus_two"), config("everything", batching=Batching(8, 0.001))]
    engine = Engine(models, load_servable)
    engine.start()
    try:
        until(engine.ready, 120)
        yield engine
    finally:
        engine.close(5)


@pytest.fixture(scope="module")
def stub(engine):
    with grpc_server(handlers(engine)) as address, grpc.insecure_channel(address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def ask(engine):
    api = TfsRest(engine)

    def send(path, body=None):
        method = "GET" if body is None else "POST"
        data = json.dumps(body).encode() if body is not None else b""
        answer = asyncio.run(api.handle(HttpRequest(method, f"/v1/models/{path}", {}, data)))
        return answer.status, json.loads(answer.body)

    return send


def predict_request(model, signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def example(**features):
    lists = {name: tf.train.FloatList(value=[value]) for name, value in features.items()}
    features = {name: tf.train.Feature(float_list=one) for name, one in lists.items()}
    return tf.train.Example(features=tf.train.Features(feature=features))


def of_examples(kind, model, signature, *examples):
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.input.example_list.examples.extend(examples)
    return request


def test_predict(stub):
    answer = stub.Predict(predict_request("half_plus_two", x=np.array([1, 2, 5], np.float32)), SECONDS)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert answer.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize("name", ECHOED)
def test_tensors_of_every_dtype(stub, name):
    dtype = tf.as_dtype(name)
    given = np.array([[0, 1], [1, 1]]).astype(dtype.as_numpy_dtype)
    if name == "string":
        given = np.array([[b"a", b"\xff"], [b"", b"b\0"]], object)
    answer = stub.Predict(predict_request("everything", f"echo_{name}", x=given), SECONDS)
    back = tf.make_ndarray(answer.outputs["x"])
    assert back.dtype == given.dtype
    assert back.tolist() == given.tolist()
    assert tf.make_ndarray(answer.outputs["n"]).tolist() == 4


def test_inputs_with_values_of_their_own(stub, ask):
    def outputs(**inputs):
        answer = stub.Predict(predict_request("everything", "scale", **inputs), SECONDS)
        return {name: tf.make_ndarray(one).tolist() for name, one in answer.outputs.items()}

    x, by = (np.array(one, np.float32) for one in ([1, 2], [3, 4]))
    assert outputs(x=x) == {"y": [2, 4], "text": b"plain"}
    assert outputs(x=x, by=by) == {"y": [3, 8], "text": b"plain"}
    assert outputs(x=x, text=np.array(b"said", object)) == {"y": [2, 4], "text": b"said"}
    with pytest.raises(grpc.RpcError, match="Input x is missing"):
        outputs(by=by)
    with pytest.raises(grpc.RpcError, match="no input 'z'"):
        outputs(x=x, z=by)
    for inputs, y in (([1, 2], [2, 4]), ({"x": [1, 2]}, [2, 4]), ({"x": [1, 2], "by": [3, 4]}, [3, 8])):
        body = {"signature_name": "scale", "inputs": inputs}
        assert ask("everything:predict", body) == (200, {"outputs": {"y": y, "text": "plain"}})
    for inputs in ({"by": [1]}, {"x": [1], "z": [1]}):
        assert ask("everything:predict", {"signature_name": "scale", "inputs": inputs})[0] == 400
    rows = {"signature_name": "scale", "instances": [{"x": 1, "by": 3}, {"x": 2, "by": 4}]}
    status, said = ask("everything:predict", rows)
    assert (status, "no common first dimension" in said["error"]) == (400, True)
    rows["instances"][1].pop("by")
    status, said = ask("everything:predict", rows)
    assert (status, "Instance 1 is no object" in said["error"]) == (400, True)


def test_some_outputs(stub):
    request = predict_request("everything", "look", i=np.array([1, 0, 1]))
    request.output_filter.append("row")
    answer = stub.Predict(request, SECONDS)
    assert {name: tf.make_ndarray(one).tolist() for name, one in answer.outputs.items()} == {
        "row": [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7]]
    }


@pytest.mark.parametrize(
    ("model", "signature", "labels"),
    [
        ("half_plus_two", "classify_x_to_y", ["half", "two"]),
        # Version 2 of TensorFlow saves no other method than predict.
        ("everything", "parse", ["low", "high"]),
    ],
)
def test_classify_serialized_examples(stub, ask, model, signature, labels):
    scores = [2.5, 4.5] if model == "half_plus_two" else [1.0, 5.0]
    request = of_examples(
        classification_pb2.ClassificationRequest, model, signature, example(x=1.0), example(x=5.0)
    )
    found = stub.Classify(request, SECONDS).result.classifications
    assert [[(one.label, one.score) for one in row.classes] for row in found] == [
        list(zip(labels, (one, -one), strict=True)) for one in scores
    ]
    body = {"signature_name": signature, "examples": [{"x": 1.0}, {"x": 5.0}]}
    assert ask(f"{model}:classify", body) == (
        200,
        {"results": [[[labels[0], one], [labels[1], -one]] for one in scores]},
    )


def test_regress_serialized_examples(stub, ask):
    request = of_examples(
        regression_pb2.RegressionRequest,
        "half_plus_two",
        "regress_x_to_y",
        example(x=1.0),
        example(x=2.0),
    )
    found = stub.Regress(request, SECONDS).result.regressions
    assert [one.value for one in found] == [2.5, 3.0]
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert ask("half_plus_two:regress", body) == (200, {"results": [2.5, 3.0]})
    # A feature that has a default value in the model, and a context.
    body = {"signature_name": "regress_x2_to_y3", "context": {"x": 0.0}, "examples": [{}, {"x2": 4.0}]}
    assert ask("half_plus_two:regress", body) == (200, {"results": [3.0, 5.0]})


def test_several_tasks(stub):
    request = inference_pb2.MultiInferenceRequest()
    request.input.example_list.examples.append(example(x=2.0))
    for method, signature in (("regress", "regress_x_to_y"), ("classify", "classify_x_to_y")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "half_plus_two", signature
    first, second = stub.MultiInference(request, SECONDS).results
    assert [one.value for one in first.regression_result.regressions] == [3.0]
    (row,) = second.classification_result.classifications
    assert [(one.label, one.score) for one in row.classes] == [("half", 3.0), ("two", -3.0)]


def test_what_cannot_be_parsed(stub, ask):
    for request, method in (
        (
            of_examples(
                classification_pb2.ClassificationRequest,
                *("half_plus_two", "classify_x_to_y"),
                *(example(x=1.0), example(other=7777.0)),
            ),
            stub.Classify,
        ),
        (
            predict_request("half_plus_two", "regress_x_to_y", inputs=np.array([b"7777"], object)),
            stub.Predict,
        ),
        (predict_request("everything", "look", i=np.array([7777])), stub.Predict),
    ):
        with pytest.raises(grpc.RpcError, match="cannot compute with these values") as caught:
            method(request, SECONDS)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "7777" not in caught.value.details()
    body = {"signature_name": "regress_x_to_y", "examples": [{"other": 7777.0}]}
    status, said = ask("half_plus_two:regress", body)
    assert (status, said) == (400, {"error": "The model cannot compute with these values."})


def definitions(place):
    """What TensorFlow says of the signatures of a SavedModel; without what is for itself."""
    with tf.Graph().as_default(), v1.Session() as session:
        found = v1.saved_model.load(session, ["serve"], str(place)).signature_def
    return {name: one for name, one in found.items() if not name.startswith("__saved_model")}


@pytest.mark.parametrize("model", ["half_plus_two", "everything"])
def test_the_metadata_are_those_of_tensorflow(place, stub, ask, model):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = model
    request.metadata_field.append("signature_def")
    found = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, SECONDS).metadata["signature_def"].Unpack(found)
    wanted = definitions(place / "plain" / model)
    assert dict(found.signature_def) == wanted
    status, said = ask(f"{model}/metadata")
    assert status == 200
    assert said == {
        "model_spec": {"name": model, "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    name: json_format.MessageToDict(
                        one,
                        preserving_proto_field_name=True,
                        always_print_fields_with_no_presence=True,
                    )
                    for name, one in wanted.items()
                }
            }
        },
    }


PLACE = "assets.extra/tf_serving_warmup_requests"


@pytest.fixture
def warmed(place, tmp_path, monkeypatch):
    """Load ``half_plus_two`` with a file of requests; what it was run with, and what is in the log."""
    lines = []

    class Log:
        def __getattr__(self, level):
            return lambda event, **members: lines.append((event, members.get("error")))

    monkeypatch.setattr(loading, "log", Log())

    def load(requests=None, content=None):
        lines.clear()
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        shutil.copytree(place / "plain" / "half_plus_two", tmp_path / "m")
        (tmp_path / "m" / PLACE).parent.mkdir()
        with tf.io.TFRecordWriter(str(tmp_path / "m" / PLACE)) as writer:
            for one in requests or ():
                writer.write(one.SerializeToString())
        if content is not None:
            (tmp_path / "m" / PLACE).write_bytes(content)
        strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=KEY, overwrite=True)
        config = ModelConfig("m", str(tmp_path / "m.sealed"), key=str(place / "key"))
        ran, run = [], tensorflow._Session.run

        def record(self, signature, inputs, outputs):
            ran.append((signature, tuple(outputs), *(len(one) for one in inputs.values())))
            return run(self, signature, inputs, outputs)

        with monkeypatch.context() as patch:
            patch.setattr(tensorflow._Session, "run", record)
            load_servable(config, 1, config.path).close()
        return ran, lines

    return load


def test_requests_that_come_with_a_model_warm_it_up(warmed):
    predict = prediction_log_pb2.PredictionLog()
    request = predict_request("any", x=np.ones((2, 1), np.float32))
    predict.predict_log.request.CopyFrom(request)
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.request.CopyFrom(
        of_examples(classification_pb2.ClassificationRequest, "any", "classify_x_to_y", example(x=1.0))
    )
    several = prediction_log_pb2.PredictionLog()
    several.multi_inference_log.request.input.example_list.examples.extend([example(x=1.0)] * 3)
    for name in ("regress_x_to_y", "classify_x_to_y"):
        task = several.multi_inference_log.request.tasks.add()
        task.model_spec.signature_name = name
    several.log_metadata.model_spec.name = "any"
    ran, lines = warmed([predict, classify, several])
    assert ran == [
        ("serving_default", ("y",), 2),
        ("classify_x_to_y", ("classes", "scores"), 1),
        ("regress_x_to_y", ("outputs",), 3),
        ("classify_x_to_y", ("classes", "scores"), 3),
    ]
    assert [event for event, _ in lines] == ["loaded"]
    assert warmed()[0] == [("serving_default", ("y",), 1)]


def test_requests_that_cannot_be_read_do_no_harm(warmed):
    unknown = prediction_log_pb2.PredictionLog()
    unknown.predict_log.request.model_spec.signature_name = "x"
    session = prediction_log_pb2.PredictionLog()
    session.session_run_log.request.feed.add(name="x:0")
    wrong = prediction_log_pb2.PredictionLog()
    wrong.predict_log.request.CopyFrom(predict_request("any", x=np.ones(2)))
    many = prediction_log_pb2.PredictionLog()
    many.predict_log.request.CopyFrom(predict_request("any", x=np.ones((1, 1), np.float32)))
    for arguments, error in (
        (([unknown],), "FormatError"),
        (([session],), "FormatError"),
        (([wrong],), "RequestError"),
        (([many] * 1001,), "FormatError"),
        ((None, b"\7"), "FormatError"),
        ((None, b"\xff" * 40), "FormatError"),
        ((None, b"\1" + bytes(11) + b"\xff" + bytes(4)), "FormatError"),
    ):
        ran, lines = warmed(*arguments)
        assert ran == []
        assert lines == [("warm-up failed", error), ("loaded", None)]


@pytest.fixture(scope="module")
def server(place, tmp_path_factory):
    """A real server with TLS, its directory of versions of ``half_plus_two``, and its CA."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "half_plus_two").mkdir()
    shutil.copytree(place / "half_plus_two", folder / "half_plus_two" / "123")
    pki = Pki(folder)
    certificate, key = pki.server()
    command = [
        *("env", "-u", "TF_CPP_MIN_LOG_LEVEL"),
        *(PROGRAM, "serve", f"half_plus_two={folder / 'half_plus_two'}", "-k", place / "key"),
        *("--tls-cert", certificate, "--tls-key", key, "--admin", "anybody"),
        *("--rest-port", "0", "--grpc-port", "0", "--drain-seconds", "0"),
    ]
    server = Server(folder, wait_for=None, command=command)
    try:
        server.until(lambda: "AVAILABLE" in server.text(), 180)
        server.pki = pki
        yield server
    finally:
        server.kill()


def post(server, path, body):
    """By the program of the README where it is installed."""
    url = f"https://localhost:{server.rest}/v1/models/{path}"
    if shutil.which("curl"):
        command = ["curl", "-s", "--cacert", server.pki.ca_file, "-d", body, "-X", "POST", url]
        return json.loads(subprocess.run(command, capture_output=True, timeout=SECONDS).stdout)
    context = ssl.create_default_context(cafile=server.pki.ca_file)
    with urllib.request.urlopen(url, body.encode(), timeout=SECONDS, context=context) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_the_quick_start_of_tensorflow_serving(server, place):
    """``curl`` and the real client, both over TLS."""
    body = '{"instances": [1.0, 2.0, 5.0]}'
    assert post(server, "half_plus_two:predict", body) == {"predictions": [2.5, 3.0, 4.5]}
    body = '{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}'
    assert post(server, "half_plus_two:regress", body) == {"results": [2.5, 3.0]}
    credentials = grpc.ssl_channel_credentials(Path(server.pki.ca_file).read_bytes())
    with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_request("half_plus_two", x=np.array([1, 2, 5], np.float32))
        answer = stub.Predict(request, SECONDS)
        assert list(answer.outputs["y"].float_val) == [2.5, 3.0, 4.5]
        assert answer.model_spec.version.value == 123

        models = model_service_pb2_grpc.ModelServiceStub(channel)
        assert state(models) == [(123, "AVAILABLE")]
        reload = model_management_pb2.ReloadConfigRequest()
        for name, path in (
            ("half_plus_two", server.place / "half_plus_two"),
            ("everything", place / "everything"),
        ):
            reload.config.model_config_list.config.add(
                name=name, base_path=str(path), model_platform="tensorflow"
            )
        assert models.HandleReloadConfigRequest(reload, SECONDS).status.error_code == 0
        server.until(lambda: state(models, "everything") == [(1, "AVAILABLE")], SECONDS)
        request = predict_request("everything", x=np.ones((1, 4), np.float32))
        assert list(stub.Predict(request, SECONDS).outputs["y"].float_val) == [2, 2, 2, 2]
        # Two SavedModels in one process, and the first is the one that it was.
        assert state(models) == [(123, "AVAILABLE")]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(predict_request("everything", "look", i=np.array([77777777])), SECONDS)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    text = server.text()
    assert "77777777" not in text  # fewer digits may be those of a time
    # Whatever TensorFlow has said while it was imported.
    assert all(type(json.loads(line)) is dict for line in text.splitlines())


def state(models, name="half_plus_two"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    found = models.GetModelStatus(request, SECONDS).model_version_status
    names = get_model_status_pb2.ModelVersionStatus.State
    return [(one.version, names.Name(one.state)) for one in found]
