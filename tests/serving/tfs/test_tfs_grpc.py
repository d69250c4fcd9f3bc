"""The API over gRPC, with this project's own messages as the client."""

from __future__ import annotations

import random

import grpc
import numpy as np
import pytest
from tfs_models import Everything, grpc_server, serving

from strongroom.serving.messages import message, method_types
from strongroom.serving.tfs.service import handlers
from strongroom.serving.tfs.tensor_proto import fill, to_array

PREDICTION, MODELS = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"


def caller(address):
    channel = grpc.insecure_channel(address)

    def ask(service, method, request):
        given, taken = method_types(service)[method]
        if isinstance(request, dict):
            request = given(**request)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        return channel.unary_unary(f"/{service}/{method}", None, taken.FromString)(data, timeout=60)

    return channel, ask


@pytest.fixture(scope="module")
def ask(address):
    channel, found = caller(address)
    with channel:
        yield found


def spec(signature="", **more):
    found = message("tensorflow.serving.ModelSpec")(name="m", signature_name=signature)
    for name, value in more.items():
        if name == "version":
            found.version.value = value
        else:
            setattr(found, name, value)
    return found


def predict_request(inputs, signature="", outputs=(), **more):
    request = message("tensorflow.serving.PredictRequest")(
        model_spec=spec(signature, **more), output_filter=outputs
    )
    for name, array in inputs.items():
        fill(request.inputs[name], array)
    return request


def examples(*features):
    found = message("tensorflow.serving.Input")()
    for one in features:
        _fill(found.example_list.examples.add(), one)
    return found


def _fill(example, features):
    for name, (kind, values) in features.items():
        getattr(example.features.feature[name], kind).value.extend(values)


HALF = {"x": np.array([1, 2, 5], np.float32)}


@pytest.mark.parametrize("where", [{}, {"version": 1}, {"version_label": "stable"}], ids=str)
def test_predict(ask, where):
    answer = ask(PREDICTION, "Predict", predict_request(HALF, **where))
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 1)
    assert answer.model_spec.signature_name == "serving_default"


def test_predict_some_outputs(ask):
    inputs = {"a": np.ones((1, 2), np.float32), "b": np.array([4])}
    answer = ask(PREDICTION, "Predict", predict_request(inputs, "two", ["label", "s"]))
    assert {name: to_array(name, one).tolist() for name, one in answer.outputs.items()} == {
        "label": [b"n4"],
        "s": [[2, 2]],
    }


def test_the_features_of_examples(ask):
    value = {"x": ("float_list", [1.5, 2]), "n": ("int64_list", [3]), "t": ("bytes_list", [b"\xff"])}
    request = {"model_spec": spec("by_feature"), "input": examples(value, value)}
    answer = ask(PREDICTION, "Classify", request)
    found = [[(c.label, c.score) for c in one.classes] for one in answer.result.classifications]
    assert found == [[("", 1.5), ("", 2.0)]] * 2
    answer = ask(PREDICTION, "Regress", request)
    assert [one.value for one in answer.result.regressions] == [6.5, 6.5]
    assert answer.model_spec.signature_name == "by_feature"
    # Integers are numbers too.
    value["x"] = ("int64_list", [1, 2])
    answer = ask(PREDICTION, "Regress", request | {"input": examples(value)})
    assert [one.value for one in answer.result.regressions] == [6]


def test_serialized_examples_and_a_context(ask):
    given = message("tensorflow.serving.Input")()
    listed = given.example_list_with_context
    _fill(listed.context, {"x": ("float_list", [4])})
    _fill(listed.examples.add(), {"x": ("float_list", [1, 2])})
    listed.examples.add()
    answer = ask(PREDICTION, "Regress", {"model_spec": spec("regress"), "input": given})
    assert [one.value for one in answer.result.regressions] == [3, 4]


def test_several_tasks(ask):
    tasks = [
        {"model_spec": spec("regress"), "method_name": "tensorflow/serving/regress"},
        {"model_spec": spec("classify"), "method_name": "tensorflow/serving/classify"},
    ]
    given = examples({"x": ("float_list", [1.5])})
    answer = ask(PREDICTION, "MultiInference", {"tasks": tasks, "input": given})
    first, second = answer.results
    assert [one.value for one in first.regression_result.regressions] == [1.5]
    (row,) = second.classification_result.classifications
    assert [(one.label, one.score) for one in row.classes] == [("low", 1.5), ("high", -1.5)]
    assert [one.model_spec.signature_name for one in answer.results] == ["regress", "classify"]


def test_metadata(ask):
    request = {"model_spec": spec(), "metadata_field": ["signature_def"]}
    answer = ask(PREDICTION, "GetModelMetadata", request)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 1)
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    found = message("tensorflow.serving.SignatureDefMap").FromString(packed.value).signature_def
    assert set(found) == set(Everything.signatures)
    assert found["two"].method_name == "tensorflow/serving/predict"
    assert [one.size for one in found["two"].inputs["a"].tensor_shape.dim] == [-1, 2]


def test_status(ask):
    (found,) = ask(MODELS, "GetModelStatus", {"model_spec": spec()}).model_version_status
    assert (found.version, found.state, found.status.error_code) == (1, 30, 0)


def tasks(*given):
    return {
        "tasks": [
            {"model_spec": one, "method_name": f"tensorflow/serving/{method}"} for one, method in given
        ],
        "input": examples({"x": ("float_list", [1.0])}),
    }


X = {"x": ("float_list", [1.0])}
EMPTY = message("tensorflow.serving.ModelSpec")()
MISTAKES = {
    "no model": ("Predict", {}, "INVALID_ARGUMENT", "names no model"),
    "unknown": ("Predict", {"model_spec": {"name": "é"}}, "NOT_FOUND", "é"),
    "version": ("Predict", predict_request(HALF, version=-1), "NOT_FOUND", "-1"),
    "label": ("Predict", predict_request(HALF, version_label="x"), "NOT_FOUND", "label"),
    "signature": ("Predict", predict_request(HALF, "x"), "INVALID_ARGUMENT", "no signature 'x'"),
    "input": ("Predict", predict_request({}), "INVALID_ARGUMENT", "Input x is missing"),
    "dtype": ("Predict", predict_request({"x": np.zeros(1)}), "INVALID_ARGUMENT", "float64"),
    "output": ("Predict", predict_request(HALF, "", ["z"]), "INVALID_ARGUMENT", "no output 'z'"),
    "output twice": ("Predict", predict_request(HALF, "", ["y", "y"]), "INVALID_ARGUMENT", "twice"),
    "fault": ("Predict", predict_request(HALF, "faulty"), "INTERNAL", r"failed \(RuntimeError\)"),
    "no message": ("Predict", b"\xff\xff", "INVALID_ARGUMENT", "cannot be read"),
    "no input": ("Classify", {"model_spec": spec("classify")}, "INVALID_ARGUMENT", "no example"),
    "not to classify": (
        "Classify",
        {"model_spec": spec(), "input": examples(X)},
        "INVALID_ARGUMENT",
        "is none to classify",
    ),
    "no feature": (
        "Regress",
        {"model_spec": spec("by_feature"), "input": examples(X | {"x": ("float_list", [1, 2])})},
        "INVALID_ARGUMENT",
        "Example 0 has no feature n",
    ),
    "the model's own": (
        "Regress",
        {"model_spec": spec("regress"), "input": examples({})},
        "INVALID_ARGUMENT",
        "Feature x is missing",
    ),
    "no task": ("MultiInference", {}, "INVALID_ARGUMENT", "no task"),
    "task": ("MultiInference", tasks((spec(), "predict")), "UNIMPLEMENTED", "serving/predict"),
    "two models": (
        "MultiInference",
        tasks((spec("regress"), "regress"), (EMPTY, "regress")),
        "INVALID_ARGUMENT",
        "of one model",
    ),
    "twice": (
        "MultiInference",
        tasks((spec("regress"), "regress"), (spec("regress"), "regress")),
        "INVALID_ARGUMENT",
        "different signatures",
    ),
    "no field": ("GetModelMetadata", {"model_spec": spec()}, "INVALID_ARGUMENT", "names no metadata_f"),
    "field": (
        "GetModelMetadata",
        {"model_spec": spec(), "metadata_field": ["x"]},
        "INVALID_ARGUMENT",
        "no metadata_field 'x'",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told(ask, case):
    method, request, code, says = MISTAKES[case]
    with pytest.raises(grpc.RpcError, match=says) as caught:
        ask(PREDICTION, method, request)
    assert caught.value.code() is grpc.StatusCode[code]
    assert "secret" not in caught.value.details()


def test_a_deadline(ask, tmp_path):
    import time

    class Slow(Everything):
        def run(self, signature, inputs, outputs):
            time.sleep(0.5)
            return super().run(signature, inputs, outputs)

    with serving(tmp_path, Slow, warm_up=0) as engine, grpc_server(handlers(engine)) as address:
        channel, _ = caller(address)
        given, taken = method_types(PREDICTION)["Predict"]
        call = channel.unary_unary(f"/{PREDICTION}/Predict", given.SerializeToString, taken.FromString)
        with channel, pytest.raises(grpc.RpcError) as caught:
            call(predict_request(HALF), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def reload_request(*models):
    request = message("tensorflow.serving.ReloadConfigRequest")()
    request.config.model_config_list.SetInParent()
    for name, path in models:
        request.config.model_config_list.config.add(name=name, base_path=str(path))
    return request


def test_another_configuration(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"1")
    with serving(tmp_path) as engine, grpc_server(handlers(engine, reload=True)) as address:
        channel, ask = caller(address)
        with channel:
            here = engine.config("m").path
            answer = ask(MODELS, "HandleReloadConfigRequest", reload_request(("m", here), ("n", other)))
            assert answer.HasField("status")
            assert answer.status.error_code == 0
            for name in ("m", "n"):
                request = predict_request(HALF)
                request.model_spec.name = name
                assert ask(PREDICTION, "Predict", request).model_spec.name == name
            with pytest.raises(grpc.RpcError, match="base_path is missing") as caught:
                ask(MODELS, "HandleReloadConfigRequest", reload_request(("m", "")))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError, match="model_config_list"):
                ask(MODELS, "HandleReloadConfigRequest", {})
            assert sorted(engine.names()) == ["m", "n"]
            gone = tmp_path / "nowhere"
            with pytest.raises(grpc.RpcError, match="no such file") as caught:
                ask(MODELS, "HandleReloadConfigRequest", reload_request(("m", here), ("o", gone)))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert sorted(engine.names()) == ["m", "o"]


def test_a_server_that_takes_no_configuration(tmp_path):
    with serving(tmp_path) as engine, grpc_server(handlers(engine)) as address:
        channel, ask = caller(address)
        with channel, pytest.raises(grpc.RpcError) as caught:
            ask(MODELS, "HandleReloadConfigRequest", reload_request(("n", tmp_path)))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert engine.names() == ["m"]


SEEDS = {
    "Predict": predict_request({"a": np.ones((2, 2), np.float32), "b": np.array([4, 5])}, "two"),
    "Classify": {"model_spec": spec("classify", version=1), "input": examples(X, X)},
    "Regress": {"model_spec": spec("regress"), "input": examples(X)},
    "MultiInference": tasks((spec("regress"), "regress"), (spec("classify"), "classify")),
    "GetModelMetadata": {"model_spec": spec(), "metadata_field": ["signature_def"]},
}
CLIENTS_FAULT = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION"}


@pytest.mark.parametrize("method", SEEDS)
def test_mutated_messages_are_the_clients_fault(ask, method):
    seed = SEEDS[method]
    if isinstance(seed, dict):
        seed = method_types(PREDICTION)[method][0](**seed)
    whole = seed.SerializeToString()
    dice = random.Random(method)
    seen = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data) or 1)
            change = dice.randrange(4)
            if change == 0 and data:
                data[at] = dice.choice((0, 1, 127, 128, 255, data[at] ^ 1 << dice.randrange(8)))
            elif change == 1:
                del data[at : at + dice.randint(1, 5)]
            elif change == 2:
                data[at:at] = dice.randbytes(dice.randint(1, 5))
            else:
                data[at:at] = data[at : at + dice.randint(1, 20)]
        try:
            ask(PREDICTION, method, bytes(data))
            seen.add("OK")
        except grpc.RpcError as error:
            assert error.code().name in CLIENTS_FAULT, (error.code(), error.details(), bytes(data))
            seen.add(error.code().name)
    assert len(seen) > 1
    assert "INVALID_ARGUMENT" in seen
