"""Keras and TFLite models behind the server."""

from __future__ import annotations

import gc
import threading

import flatbuffers
import keras
import numpy as np
import pytest
from backends import memory
from saved_models import tf, v1
from tensorflow.lite.python import schema_py_generated as schema

import strongroom
from strongroom.errors import UsageError
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry
from strongroom.serving.batching import Batching
from strongroom.serving.call import Call
from strongroom.serving.checking import check_inputs
from strongroom.serving.config import ModelConfig
from strongroom.serving.servable import Servable
from strongroom.serving.status import Code, RequestError

KEY = bytes(range(32))
pytestmark = pytest.mark.filterwarnings(
    # Keras gives NumPy tensors of TensorFlow, which do not know the newest argument of __array__.
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)


@pytest.fixture
def loaded(tmp_path):
    """Load a file through a sealed one."""
    models = []

    def load(file, **options):
        strongroom.seal(file, tmp_path / "m.sealed", key=KEY, overwrite=True)
        with strongroom.open(tmp_path / "m.sealed", key=KEY) as opened:
            models.append(registry.load(opened, None, BackendOptions(**options)))
        return models[-1]

    yield load
    for one in models:
        one.close()


def run(model, signature="serving_default", outputs=None, **inputs):
    spec = model.signatures[signature]
    for one in inputs.values():
        one.flags.writeable = False
    check_inputs(inputs, spec, together=False)
    return model.run(signature, inputs, outputs or tuple(spec.outputs))


def described(specs):
    return {one.name: (one.dtype, one.shape) for one in specs.values()}


def refused(model, signature="serving_default", **inputs):
    with pytest.raises(RequestError) as caught:
        run(model, signature, **inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "The model cannot compute with these values."
    assert caught.value.__cause__ is None


def functional(outputs):
    ids = keras.Input((3,), name="ids", dtype="int32")
    x = keras.Input((4,), name="x")
    table = keras.layers.Embedding(8, 4)
    row = keras.layers.Flatten(name="row")(table(ids))
    head = keras.layers.Dense(2, name="head")(keras.layers.Dropout(0.5)(x))
    return keras.Model({"ids": ids, "x": x}, outputs(head, row))


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (lambda head, row: {"logits": head, "rows": row}, ["logits", "rows"]),
        (lambda head, row: [head, row], ["head", "row"]),
    ],
    ids=["dict", "list"],
)
def test_a_functional_model(loaded, tmp_path, outputs, names):
    plain = functional(outputs)
    plain.save(tmp_path / "m.keras")
    model = loaded(tmp_path / "m.keras")
    signature = model.signatures["serving_default"]
    assert described(signature.inputs) == {"ids": ("int32", (-1, 3)), "x": ("float32", (-1, 4))}
    assert described(signature.outputs) == dict(
        zip(names, [("float32", (-1, 2)), ("float32", (-1, 12))], strict=True)
    )
    assert signature.batched
    x, ids = (
        np.random.default_rng(0).random((5, 4), np.float32),
        np.arange(15, dtype=np.int32).reshape(5, 3) % 8,
    )
    found = run(model, x=x, ids=ids)
    wanted = tf.nest.flatten(plain({"ids": ids, "x": x}, training=False))
    for name, value in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5)
    assert list(run(model, outputs=names[1:], x=x, ids=ids)) == names[1:]


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_sequential_model(loaded, tmp_path, suffix, monkeypatch):
    plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, activation="softmax")])
    plain.save(tmp_path / f"m.{suffix}")
    model = loaded(tmp_path / f"m.{suffix}")
    (name,) = model.signatures["serving_default"].outputs
    x = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(run(model, x=x)[name], plain(x).numpy(), rtol=1e-5)
    sizes, alone = [], model.run
    monkeypatch.setattr(model, "run", lambda *call: [sizes.append(len(call[1]["x"])), alone(*call)][1])
    answers = batched(model, [Call("m", {"x": np.full((1, 4), one, np.float32)}) for one in range(4)])
    assert sizes == [4]
    for one, answer in enumerate(answers):
        wanted = plain(np.full((1, 4), one, np.float32)).numpy()
        np.testing.assert_allclose(answer.outputs[name], wanted, rtol=1e-5)


def batched(model, calls):
    """Requests that are put together."""
    servable = Servable(ModelConfig("m", "m", batching=Batching(len(calls), 10)), 1, model)
    answers = [None] * len(calls)

    def ask(index):
        answers[index] = servable.infer(calls[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(calls))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return answers


def test_text(loaded, tmp_path):
    words = keras.Input((1,), name="words", dtype="string")
    keras.Model(words, keras.layers.StringLookup(vocabulary=["a", "b"])(words)).save(
        tmp_path / "m.keras"
    )
    model = loaded(tmp_path / "m.keras")
    (name,) = model.signatures["serving_default"].outputs
    assert run(model, words=np.array([[b"b"], [b"?"]], object))[name].tolist() == [[2], [0]]


def test_indices_that_are_none(loaded, tmp_path):
    functional(lambda head, row: [head, row]).save(tmp_path / "m.keras")
    model = loaded(tmp_path / "m.keras")
    x = np.ones((1, 4), np.float32)
    refused(model, x=x, ids=np.array([[1, 2, 7777]], np.int32))
    run(model, x=x, ids=np.array([[1, 2, 3]], np.int32))


def test_what_keras_models_cannot_be(loaded, tmp_path, monkeypatch):
    @keras.saving.register_keras_serializable("tests of serving")
    class Subclassed(keras.Model):
        def call(self, x):
            return 2 * x

    plain = Subclassed()
    plain(np.ones((1, 3)))
    plain.save(tmp_path / "m.keras")
    with pytest.raises(UsageError, match="Subclassed does not say its inputs") as caught:
        loaded(tmp_path / "m.keras")
    assert "SavedModel" in caught.value.hint
    with pytest.raises(UsageError, match="safe_mode"):
        loaded(tmp_path / "m.keras", extra={"compile": True})
    doubling = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    doubling.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="safe_mode"):
        loaded(tmp_path / "m.keras")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match="Keras runs upon jax here") as caught:
        loaded(tmp_path / "m.keras")
    assert "KERAS_BACKEND" in caught.value.hint


def test_an_old_version_leaves_no_weights(loaded, tmp_path):
    keras.Sequential([keras.Input((1024,)), keras.layers.Dense(4096)]).save(tmp_path / "m.keras")
    model = loaded(tmp_path / "m.keras")
    gc.collect()
    held = memory()
    gc.disable()
    try:
        for _ in range(8):
            new = loaded(tmp_path / "m.keras")
            model.close()
            model.close = lambda: None
            model = new
        assert memory() - held < 64 << 20, "of eight times 16 MiB"
    finally:
        gc.enable()


class Module(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32, "d"),
            tf.TensorSpec([None], tf.int32, "i"),
        ]
    )
    def look(self, d, i):
        return {"rows": tf.gather(d, i), "sum": tf.reduce_sum(d)}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
    def free(self, x):
        return {"x": 2 * x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "t")])
    def text(self, t):
        return {"t": tf.reshape(t, [-1, 1])}


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """A TFLite model with two signatures, and one from before there were any."""
    place = tmp_path_factory.mktemp("lite")
    module = Module()
    signatures = {"serving_default": module.look, "text": module.text, "free": module.free}
    tf.saved_model.save(module, place / "saved", signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(place / "saved"), signature_keys=list(signatures)
    )
    (place / "m.tflite").write_bytes(converter.convert())
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [1, 4], "x")
        converter = v1.lite.TFLiteConverter.from_session(session, [x], [tf.identity(2 * x, "y")])
        (place / "old.tflite").write_bytes(converter.convert())
    return place


def test_tflite_with_signatures(loaded, lite):
    for threads in (0, 2):
        model = loaded(lite / "m.tflite", threads=threads)
        signature = model.signatures["serving_default"]
        assert described(signature.inputs) == {"d": ("float32", (-1, 4)), "i": ("int32", (-1,))}
        assert described(signature.outputs) == {"rows": ("float32", (-1, 4)), "sum": ("float32", ())}
        assert not signature.batched
        assert model.signatures["text"].batched
        for size in (2, 5, 1):
            d = np.arange(4 * size, dtype=np.float32).reshape(size, 4)
            i = np.arange(size, dtype=np.int32)[::-1].copy()
            found = run(model, d=d, i=i)
            assert found["rows"].tolist() == d[::-1].tolist()
            assert (found["sum"].shape, found["sum"]) == ((), d.sum())
        given = np.array([b"a\0", b"\xff"], object)
        assert run(model, "text", t=given)["t"].tolist() == [[b"a\0"], [b"\xff"]]


def test_tflite_without_signatures(loaded, lite):
    model = loaded(lite / "old.tflite")
    ((name, spec),) = model.signatures["serving_default"].inputs.items()
    assert (spec.dtype, spec.shape) == ("float32", (1, 4))
    (output,) = model.signatures["serving_default"].outputs
    for value in (1, 2):
        found = run(model, **{name: np.full((1, 4), value, np.float32)})
        assert found[output].tolist() == [[2 * value] * 4]


def recurrent():
    """The sum of x and of what came before, which TFLite keeps from run to run."""
    made = schema.ModelT()
    made.version, made.buffers = 3, [schema.BufferT()]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RNN
    made.operatorCodes = [code]
    graph = schema.SubGraphT()
    graph.tensors = []

    def tensor(name, shape, values=None, *, variable=False):
        one = schema.TensorT()
        one.name, one.shape, one.type, one.isVariable = name, shape, schema.TensorType.FLOAT32, variable
        one.buffer = 0
        if values is not None:
            data = schema.BufferT()
            data.data = np.frombuffer(np.asarray(values, np.float32).tobytes(), np.uint8)
            one.buffer = len(made.buffers)
            made.buffers.append(data)
        graph.tensors.append(one)
        return len(graph.tensors) - 1

    step = schema.OperatorT()
    step.inputs = [
        tensor("x", [1, 2]),
        tensor("weights", [2, 2], np.eye(2)),
        tensor("recurrent", [2, 2], np.eye(2)),
        tensor("bias", [2], np.zeros(2)),
        tensor("hidden", [1, 2], variable=True),
    ]
    step.outputs = [tensor("y", [1, 2])]
    step.builtinOptionsType, step.builtinOptions = (
        schema.BuiltinOptions.RNNOptions,
        schema.RNNOptionsT(),
    )
    graph.operators, graph.inputs, graph.outputs = [step], step.inputs[:1], step.outputs
    made.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_tflite_remembers_nothing_of_a_request(loaded, tmp_path):
    (tmp_path / "rnn.tflite").write_bytes(recurrent())
    model = loaded(tmp_path / "rnn.tflite")
    for value in (1, 5, 1):
        assert run(model, x=np.full((1, 2), value, np.float32))["y"].tolist() == [[value, value]]


def test_tflite_refuses_indices_that_are_none(loaded, lite):
    model = loaded(lite / "m.tflite")
    d = np.ones((2, 4), np.float32)
    refused(model, d=d, i=np.array([7777], np.int32))
    assert run(model, d=d, i=np.array([1], np.int32))["rows"].tolist() == [[1, 1, 1, 1]]
    # No size that TFLite could count.
    refused(model, "free", x=np.zeros((1 << 40, 0), np.float32))
    assert run(model, "free", x=np.ones((2, 1), np.float32))["x"].tolist() == [[2], [2]]


def test_tflite_in_threads(loaded, lite):
    model = loaded(lite / "m.tflite")
    wrong = []

    def ask(number):
        d = np.full((number + 1, 4), number, np.float32)
        answers = [run(model, d=d, i=np.array([number], np.int32)) for _ in range(50)]
        wrong.extend(one for one in answers if one["rows"].tolist() != [[number] * 4])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
