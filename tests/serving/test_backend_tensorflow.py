"""SavedModels behind the server: what they say of themselves, what they compute, and what is left of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from saved_models import ECHOED, everything, half_plus_two, tf

import strongroom
from strongroom.errors import FormatError, UsageError
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry, tensorflow
from strongroom.serving.call import Call
from strongroom.serving.checking import check_inputs
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.loading import load_servable
from strongroom.serving.status import Code, RequestError

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def nothing_stays_in_ram():
    """In TensorFlow's own file system."""
    yield
    with suppress(tf.errors.NotFoundError):
        assert [one for one in tf.io.gfile.walk("ram://") if one[2]] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("saved") / "everything")


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    return half_plus_two(tmp_path_factory.mktemp("classic") / "half_plus_two")


def sealed(source, place, **options):
    strongroom.seal(source, place, key=KEY, overwrite=True)
    with strongroom.open(place, key=KEY) as opened:
        return registry.load(opened, None, BackendOptions(**options))


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    found = sealed(folder, tmp_path_factory.mktemp("sealed") / "m")
    yield found
    found.close()


@pytest.fixture(scope="module")
def half(classic, tmp_path_factory):
    found = sealed(classic, tmp_path_factory.mktemp("sealed") / "m")
    yield found
    found.close()


def run(model, signature="serving_default", outputs=None, **inputs):
    spec = model.signatures[signature]
    check_inputs(inputs, spec, together=False)
    return model.run(signature, inputs, outputs or tuple(spec.outputs))


def described(specs):
    return {one.name: (one.dtype, one.shape) for one in specs.values()}


def test_what_a_model_of_version_2_says(model):
    assert set(model.signatures) == {
        *("serving_default", "look", "parse", "total", "scale", "any"),
        *(f"echo_{one}" for one in ECHOED),
    }
    total = model.signatures["total"]
    assert described(total.inputs) == {"a": ("float32", (-1, 2)), "b": ("int32", (-1,))}
    assert described(total.outputs) == {"sum": ("float32", ()), "text": ("bytes", ())}
    assert total.method == "predict"
    assert not total.batched
    assert model.signatures["serving_default"].batched
    assert model.signatures["any"].inputs["x"].shape is None
    assert not model.signatures["any"].batched
    assert not any(one.loose for one in total.inputs.values())
    scale = model.signatures["scale"]
    assert {name: one.tolist() for name, one in scale.defaults.items()} == {"by": [2], "text": b"plain"}
    assert not scale.batched


def test_what_a_model_of_version_1_says(half):
    methods = {name: one.method for name, one in half.signatures.items()}
    assert methods == {
        "serving_default": "predict",
        "regress_x_to_y": "regress",
        "regress_x2_to_y3": "regress",
        "classify_x_to_y": "classify",
    }
    assert half.signatures["classify_x_to_y"].batched
    (x,) = half.signatures["serving_default"].inputs.values()
    assert (x.tensor, x.shape, x.loose) == ("x:0", (-1, 1), True)
    # Examples of other shapes than it says could not be told apart.
    assert not half.signatures["serving_default"].batched


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_half_plus_two(half, shape):
    x = np.array([1, 2, 5], np.float32).reshape(shape)
    y = run(half, x=x)["y"]
    assert y.shape == shape
    assert y.ravel().tolist() == [2.5, 3.0, 4.5]


def test_a_table_that_was_read_from_an_asset(half):
    given = np.array([example(x=1.0), example(x=2.0)], object)
    found = run(half, "classify_x_to_y", inputs=given)
    assert found["classes"].tolist() == [[b"half", b"two"]] * 2
    assert found["scores"].tolist() == [[2.5, -2.5], [3.0, -3.0]]
    assert run(half, "regress_x2_to_y3", inputs=given)["outputs"].tolist() == [[3], [3]]


def example(**features):
    lists = {name: tf.train.FloatList(value=[value]) for name, value in features.items()}
    features = {name: tf.train.Feature(float_list=one) for name, one in lists.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


DTYPES = {"bfloat16": ml_dtypes.bfloat16, "string": object}


@pytest.mark.parametrize("name", ECHOED)
def test_every_dtype_comes_back_as_it_went(model, name):
    dtype = np.dtype(DTYPES.get(name, name))
    values = np.array([b"a\0b\0", b"\xff", b"", b"d"] if name == "string" else [0, 1, 2, 100]).astype(
        dtype
    )
    if name == "string":
        values[0] = b"a\0b\0"
    values.flags.writeable = False
    wide = np.tile(values, (3, 1))
    for x in (values, values[:0], values.reshape(2, 2), wide[:, ::2], wide.T, values[3:].reshape(())):
        found = run(model, f"echo_{name}", x=x)
        assert found["x"].dtype == dtype
        assert found["x"].shape == x.shape
        assert np.array_equal(found["x"], x)
        assert (found["n"].dtype, found["n"].shape, int(found["n"])) == (np.int32, (), x.size)


def test_some_outputs_and_scalars(model):
    a, b = np.ones((3, 2), np.float32), np.array([1, 2, 3, 4], np.int32)
    found = run(model, "total", a=a, b=b)
    assert (found["sum"].dtype, found["sum"].shape, float(found["sum"])) == (np.float32, (), 16)
    assert (found["text"].dtype, found["text"][()]) == (object, b"done")
    assert list(run(model, "total", ("text",), a=a, b=b)) == ["text"]


def test_a_request_is_never_written_to(model):
    x = np.ones((1, 4), np.float32)
    y = run(model, x=x)["y"]
    echo = run(model, "echo_float32", x=x)["x"]
    y += 1
    if echo.flags.writeable:
        echo += 1
    assert x.tolist() == [[1, 1, 1, 1]]
    assert run(model, x=x)["y"].tolist() == [[2, 2, 2, 2]]


def test_values_that_the_model_cannot_take_are_the_clients_mistake(model):
    for signature, inputs in (
        ("look", {"i": np.array([7777])}),
        ("parse", {"inputs": np.array([b"7777"], object)}),
        ("parse", {"inputs": np.array([example(z=7777.0)], object)}),
    ):
        with pytest.raises(RequestError) as caught:
            run(model, signature, **inputs)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.message == "The model cannot compute with these values."
        assert caught.value.__cause__ is None
    assert run(model, "look", i=np.array([1]))["row"].tolist() == [[4, 5, 6, 7]]


def test_threads_at_once(model):
    wrong = []

    def ask(number):
        x = np.full((2, 4), number, np.float32)
        answers = [run(model, x=x)["y"] for _ in range(50)]
        wrong.extend(number for one in answers if not np.array_equal(one, 2 * x))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_a_model_in_a_folder_and_other_tags(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "both" / "a")
    shutil.copytree(folder, tmp_path / "both" / "b")
    with pytest.raises(UsageError, match="has 2 SavedModels"):
        sealed(tmp_path / "both", tmp_path / "m")
    found = sealed(tmp_path / "both", tmp_path / "m", file="b", extra={"tags": ["serve"]})
    assert "look" in found.signatures
    found.close()
    with pytest.raises(UsageError, match=r"no graph with the tags train, gpu\.$") as caught:
        sealed(folder, tmp_path / "m", extra={"tags": ["train", "gpu"]})
    assert "saved_model_cli" in caught.value.hint
    for extra in ({"tags": "serve"}, {"device": "cpu"}):
        with pytest.raises(UsageError, match="are tags"):
            sealed(folder, tmp_path / "m", extra=extra)


def test_a_model_that_nobody_can_ask(tmp_path):
    tf.saved_model.save(tf.Module(), tmp_path / "nothing")
    with pytest.raises(FormatError, match="no signature") as caught:
        sealed(tmp_path / "nothing", tmp_path / "m")
    assert "signatures=" in caught.value.hint


def test_a_damaged_model_is_not_loaded(folder, tmp_path):
    strongroom.seal(folder, tmp_path / "m", key=KEY)
    for file in (one for one in (tmp_path / "m").rglob("*") if one.is_file()):
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
    with pytest.raises(strongroom.StrongroomError), strongroom.open(tmp_path / "m", key=KEY) as opened:
        registry.load(opened, None, BackendOptions())


def test_threads_are_those_of_the_first_model(folder, tmp_path, monkeypatch):
    lines = []

    class Log:
        def warning(self, event, **members):
            lines.append((event, members))

    monkeypatch.setattr(tensorflow, "log", Log())
    sealed(folder, tmp_path / "m").close()
    used = tensorflow._THREADS[0]
    for wanted in (0, used, used + 1):
        sealed(folder, tmp_path / "m", threads=wanted).close()
    assert lines == [("TensorFlow keeps its threads", {"wanted": used + 1, "threads": used})]


def test_versions_are_swapped_under_load(tmp_path):
    """Two SavedModels at a time in one process, and no request that fails."""
    (tmp_path / "key").write_bytes(urlsafe_b64encode(KEY))
    versions = tmp_path / "versions"
    for number in range(1, 5):
        module = tf.Module()
        module.factor = tf.Variable(float(number))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def serve(x, module=module):
            return {"y": module.factor * x}

        tf.saved_model.save(module, tmp_path / "plain" / str(number), signatures=serve)
        strongroom.seal(tmp_path / "plain" / str(number), tmp_path / str(number), key=KEY)
    versions.mkdir()
    (tmp_path / "1").rename(versions / "1")
    config = ModelConfig("m", str(versions), key=str(tmp_path / "key"), batching=Batching(4, 0.001))
    engine = Engine([config], load_servable, poll=0.01)
    wrong, seen, end = [], set(), threading.Event()

    def ask():
        x = np.ones(2, np.float32)
        while not end.is_set():
            try:
                answer = engine.infer(Call("m", {"x": x}))
            except Exception as error:
                wrong.append(error)
                return
            seen.add(answer.version)
            if answer.outputs["y"].tolist() != [answer.version] * 2:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    engine.start()
    try:
        until(engine.ready)
        for one in threads:
            one.start()
        for number in range(1, 5):
            if number > 1:
                (tmp_path / str(number)).rename(versions / str(number))
            until(lambda number=number: number in seen or wrong)
    finally:
        end.set()
        for one in threads:
            one.join()
        engine.close(5)
    assert not wrong
    assert seen == {1, 2, 3, 4}


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


APART = """
import gc, sys, weakref
import numpy as np
import strongroom
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry
from strongroom.serving.status import RequestError

def load(path):
    with strongroom.open(path, key=bytes(range(32))) as opened:
        return registry.load(opened, None, BackendOptions(threads=1))

sys.path.append(sys.argv[2])
from backends import memory

gc.disable()
x = np.ones((1, 1024), np.float32)
old, sizes, gone = load(sys.argv[1]), [], []
for number in range(20):
    new = load(sys.argv[1])
    new.run("serving_default", {"x": x}, ("y",))
    gone.append(weakref.ref(old._session))
    old.close()
    old = new
    del new
    sizes.append(memory())
    try:
        old.run("look", {"i": np.array([7777777700 + number])}, ("row",))
    except RequestError as error:
        assert error.code.name == "INVALID_ARGUMENT"
import tensorflow as tf
threads = tf.config.threading.get_intra_op_parallelism_threads()
print(sum(one() is not None for one in gone), sizes[-1] - sizes[3], threads)
"""


@pytest.mark.slow
def test_twenty_swaps_in_a_process_of_its_own(tmp_path):
    """Old versions leave nothing, without the garbage collector; nothing of a request is in the log."""
    module = tf.Module()
    module.weights = [tf.Variable(tf.random.uniform([1024, 1024])) for _ in range(8)]

    @tf.function(input_signature=[tf.TensorSpec([None, 1024], tf.float32, "x")])
    def serve(x):
        return {"y": tf.add_n([x @ one for one in module.weights])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "i")])
    def look(i):
        return {"row": tf.gather(module.weights[0], i)}

    module.functions = serve, look
    tf.saved_model.save(module, tmp_path / "saved", signatures={"serving_default": serve, "look": look})
    strongroom.seal(tmp_path / "saved", tmp_path / "m", key=KEY)
    done = subprocess.run(
        [sys.executable, "-c", APART, tmp_path / "m", Path(__file__).parent],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "1", "CUDA_VISIBLE_DEVICES": ""},  # as JAX leaves it
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    left, growth, threads = map(int, done.stdout.split())
    assert left == 0
    assert growth < 16 << 20, "of 32 MiB of weights"
    assert threads == 1
    assert "77777777" not in done.stderr  # fewer digits may be those of a time
