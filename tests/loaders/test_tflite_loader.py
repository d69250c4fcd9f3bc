import importlib.util
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ai_edge_litert.interpreter
import keras
import numpy
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import strongroom
from strongroom.errors import MissingExtra, PayloadTampered, StrongroomError, UsageError
from strongroom.loaders import tflite as loader


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small convolutional network."""
    keras.utils.set_random_seed(11)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.DepthwiseConv2D(3, strides=2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )
    spec = tf.TensorSpec([1, 16, 16, 3], tf.float32, "image")
    traced = tf.function(lambda image: {"label": model(image)}).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(traced)
    place = tmp_path_factory.mktemp("tflite") / "m.tflite"
    place.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())
    return place


IMAGE = numpy.random.default_rng(12).random((1, 16, 16, 3), "f4")


def answer(interpreter):
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGE)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_same_answer(plain, seal, key):
    expected = answer(ai_edge_litert.interpreter.Interpreter(str(plain)))
    mine = loader.interpreter(seal(plain), key=key, num_threads=2)
    assert isinstance(mine, ai_edge_litert.interpreter.Interpreter)
    found = answer(mine)
    assert expected.std() > 0
    numpy.testing.assert_array_equal(found, expected)


def test_file_of_a_directory(plain, tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    for name in ("a.tflite", "b.lite"):
        (folder / name).write_bytes(plain.read_bytes())
    (folder / "labels.txt").write_text("one\ntwo")
    sealed = seal(folder)
    with pytest.raises(UsageError, match="2 TFLite files"):
        loader.interpreter(sealed, key=key)
    with strongroom.open(sealed, key=key) as model:
        for name in ("a.tflite", "b.lite"):
            assert answer(loader.interpreter(model, path=name)).shape == (1, 5)
        with pytest.raises(UsageError, match=r"labels\.txt in .* is no TFLite model"):
            loader.interpreter(model, path="labels.txt")


def test_no_model(plain, tmp_path, seal, key):
    (tmp_path / "m.tflite").write_bytes(plain.read_bytes()[:7])
    with pytest.raises(UsageError, match="no TFLite model"):
        loader.interpreter(seal(tmp_path / "m.tflite"), key=key)


def test_tampered_and_wrong_key(plain, seal, key):
    sealed = seal(plain)
    with pytest.raises(StrongroomError):
        loader.interpreter(sealed, key=bytes(32))
    content = bytearray(sealed.read_bytes())
    content[-5] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(PayloadTampered):
        loader.interpreter(sealed, key=key)


def again():
    spec = importlib.util.spec_from_file_location("again", loader.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_with_tensorflow_alone(plain, seal, key, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    mine = again().interpreter(seal(plain), key=key)
    assert isinstance(mine, tf.lite.Interpreter)
    numpy.testing.assert_array_equal(answer(mine), answer(tf.lite.Interpreter(str(plain))))


def test_with_neither(monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="TFLite") as error:
        again()
    assert "strongroom[tflite]" in error.value.hint
