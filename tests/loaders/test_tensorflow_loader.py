import importlib.util
import io
import os
import shutil
import sys
import threading
import types

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import strongroom
from strongroom.errors import MissingExtra, NotFound, PayloadTampered, StrongroomError, UsageError
from strongroom.loaders import tensorflow as loader

pytestmark = [
    # Keras gives NumPy tensors of TensorFlow, which do not know the newest argument of __array__.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]


def ram_files():
    try:
        return [(folder, files) for folder, _, files in tf.io.gfile.walk("ram://") if files]
    except tf.errors.NotFoundError:
        return []


@pytest.fixture(autouse=True)
def _nothing_stays_in_ram():
    yield
    assert ram_files() == []


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet-50 as a SavedModel, its graph frozen, and one image."""
    folder = tmp_path_factory.mktemp("resnet")
    keras.utils.set_random_seed(3)
    model = keras.applications.ResNet50(weights=None)
    # The values that a new batch normalisation has would hide a wrong one.
    rng = numpy.random.default_rng(4)
    for variable in model.variables:
        if "moving" in variable.path or "beta" in variable.path:
            variable.assign(rng.random(variable.shape, "f4") + 0.5)
    tf.saved_model.save(model, folder / "saved")
    return folder / "saved", rng.random((1, 224, 224, 3), "f4")


def same(one, two):
    tf.nest.assert_same_structure(one, two)
    for pair in zip(tf.nest.flatten(one), tf.nest.flatten(two), strict=True):
        numpy.testing.assert_array_equal(*(numpy.asarray(value) for value in pair))
    return True


class Lookup(tf.Module):
    """A weight, tables that are read from files, and a function that reads a file when it is called."""

    def __init__(self, file):
        def words():
            return tf.lookup.TextFileInitializer(
                str(file),
                *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
                *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
            )

        self.weight = tf.Variable(tf.random.stateless_normal([6, 8], [1, 2]))
        self.table = tf.lookup.StaticHashTable(words(), -1)
        self.vocabulary = tf.lookup.StaticVocabularyTable(words(), 2)
        self.asset = tf.saved_model.Asset(str(file))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
    def look(self, words):
        rows = self.vocabulary.lookup(words)
        return {
            "rows": tf.gather(self.weight, rows),
            "ids": self.table.lookup(words),
        }

    @tf.function(input_signature=[])
    def late(self):
        return tf.io.read_file(self.asset.asset_path)


WORDS = tf.constant(["zwei", "null", "drei"])


@pytest.fixture
def lookup(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("eins\nzwei\ndrei\nvier\n")
    module = Lookup(words)
    tf.saved_model.save(module, tmp_path / "lookup", signatures={"look": module.look})
    words.unlink()
    (tmp_path / "lookup" / "assets.extra").mkdir()
    (tmp_path / "lookup" / "assets.extra" / "warmup").write_bytes(b"")
    return tmp_path / "lookup", module.look(WORDS)


def test_resnet(resnet, seal, key):
    plain, image = resnet
    mine = loader.saved_model_load(seal(plain), key=key)
    assert ram_files() == []
    loaded = tf.saved_model.load(plain)
    serve, theirs = mine.signatures["serving_default"], loaded.signatures["serving_default"]
    assert len(serve.variables) == len(theirs.variables) == 320
    for pair in zip(serve.variables, theirs.variables, strict=True):
        same(*pair)
    expected = theirs(tf.constant(image))
    assert same(serve(tf.constant(image)), expected)
    assert numpy.asarray(next(iter(expected.values()))).std() > 0


def test_tables_and_assets(lookup, seal, key):
    plain, expected = lookup
    mine = loader.saved_model_load(seal(plain), key=key)
    shutil.rmtree(plain)
    assert ram_files() == []
    assert same(mine.signatures["look"](words=WORDS), expected)
    assert same(mine.look(WORDS), expected)
    assert same(tf.function(lambda words: mine.look(words))(WORDS), expected)
    # What is read from a file only now is gone, and it is said.
    with pytest.raises(tf.errors.NotFoundError, match="ReadFile"):
        mine.late()


def test_saved_model_of_tensorflow_1(tmp_path, seal, key):
    words = tmp_path / "words.txt"
    words.write_text("eins\nzwei\ndrei\n")
    plain = tmp_path / "v1"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.string, [None], "words")
        weight = v1.get_variable(
            "w", [5], initializer=v1.random_normal_initializer(), use_resource=True
        )
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, file := tf.constant(str(words)))
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                file,
                *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
                *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
            ),
            4,
        )
        y = tf.gather(weight, table.lookup(x))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        expected = session.run(y, {x: WORDS.numpy()})
        v1.saved_model.simple_save(session, str(plain), {"x": x}, {"y": y}, v1.tables_initializer())
    words.unlink()
    mine = loader.saved_model_load(seal(plain), ["serve"], key=key)
    shutil.rmtree(plain)
    assert same(mine.signatures["serving_default"](WORDS)["y"], expected)


def test_arguments_reach_tensorflow(lookup, seal, key):
    sealed = seal(lookup[0])
    options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
    mine = loader.saved_model_load(sealed, "serve", options, key=key)
    assert not mine.weight.numpy().any()
    with pytest.raises(ValueError, match="tags"):
        loader.saved_model_load(sealed, ["train"], key=key)


def test_folders_of_a_repository(lookup, seal, key, tmp_path):
    plain, expected = lookup
    repository = tmp_path / "model"
    shutil.copytree(plain, repository / "1")
    (repository / "config.pbtxt").write_text("")
    sealed = seal(repository)
    for path in (None, "1", "1/", "1/saved_model.pb"):
        mine = loader.saved_model_load(sealed, key=key, path=path)
        assert same(mine.look(WORDS), expected)
    with pytest.raises(NotFound, match="no SavedModel in '2'") as error:
        loader.saved_model_load(sealed, key=key, path="2")
    assert "1" in error.value.hint
    (repository / "1").rename(repository / "nested")
    shutil.copytree(plain, repository / "1")
    strongroom.seal(repository, sealed, key=key, overwrite=True)
    with pytest.raises(UsageError, match="2 SavedModels") as error:
        loader.saved_model_load(sealed, key=key)
    assert "'nested'" in error.value.hint
    with strongroom.open(sealed, key=key) as model:
        assert same(loader.saved_model_load(model, path="nested").look(WORDS), expected)


def test_loads_at_the_same_time(lookup, seal, key):
    plain, expected = lookup
    sealed = seal(plain)
    found = []

    def load():
        found.append(loader.saved_model_load(sealed, key=key))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [same(mine.look(WORDS), expected) for mine in found] == [True] * 3


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_tampered(lookup, seal, key, name):
    sealed = seal(lookup[0])
    file = next(path for path in sealed.rglob("*") if f"{path.relative_to(sealed)}".startswith(name))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(PayloadTampered):
        loader.saved_model_load(sealed, key=key)


def test_wrong_key(lookup, seal):
    with pytest.raises(StrongroomError):
        loader.saved_model_load(seal(lookup[0]), key=bytes(32))


def test_without_its_variables(lookup, seal, key):
    plain, _ = lookup
    shutil.rmtree(plain / "variables")
    with pytest.raises(NotFound, match="no variables/") as error:
        loader.saved_model_load(seal(plain), key=key)
    assert "whole folder" in error.value.hint
    shutil.rmtree(plain / "assets")
    with pytest.raises(NotFound):
        loader.saved_model_load(seal(plain / "saved_model.pb"), key=key)


def test_broken_graph(lookup, seal, key):
    plain, _ = lookup
    (plain / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(OSError, match="parse"):
        loader.saved_model_load(seal(plain), key=key)


def test_other_models(tmp_path, seal, key):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.txt").write_text("x")
    with pytest.raises(NotFound, match="no SavedModel"):
        loader.saved_model_load(seal(tmp_path / "m"), key=key)


@pytest.fixture
def converted(tmp_path, seal):
    """As TF-TRT writes it: the operation in a function of the library, the engine as an asset."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    made = SavedModel(saved_model_schema_version=1)
    graph = made.meta_graphs.add().graph_def
    function = graph.library.function.add()
    # Past a segment, so that the name may lie across two pieces.
    function.node_def.add(name="weights", op="Const").attr["value"].s = bytes(3 << 20)
    node = function.node_def.add(name="TRTEngineOp_000_000", op="TRTEngineOp")
    node.attr["segment_func"].func.name = "TRTEngineOp_000_000_native_segment"
    plain = tmp_path / "trt"
    (plain / "assets").mkdir(parents=True)
    (plain / "assets" / "trt-serialized-engine.TRTEngineOp_000_000").write_bytes(b"ptrt")
    (plain / "saved_model.pb").write_bytes(made.SerializeToString())
    return seal(plain)


def test_converted_by_tf_trt(converted, key):
    with pytest.raises(UsageError, match=r"TF-TRT.*built without TensorRT") as error:
        loader.saved_model_load(converted, key=key)
    assert "GPU" in error.value.hint


def test_converted_by_tf_trt_without_a_driver(converted, key, monkeypatch):
    """A TensorFlow that has TensorRT is not given the model where there is no driver."""
    asked = []

    def no_driver(what):
        asked.append(what)
        raise UsageError(f"{what} needs a CUDA driver, and this machine has none.")

    monkeypatch.setattr(tf.raw_ops, "TRTEngineOp", object(), raising=False)
    monkeypatch.setattr(tf.test, "is_built_with_gpu_support", lambda: True)
    monkeypatch.setattr(tf.saved_model, "load", lambda *arguments: pytest.fail("it was entered"))
    monkeypatch.setattr(loader, "require_driver", no_driver)
    with pytest.raises(UsageError, match="what TF-TRT has converted needs a CUDA driver"):
        loader.saved_model_load(converted, key=key)
    assert len(asked) == 1


@pytest.mark.parametrize("cut", range(1, 13))
def test_the_operation_across_two_pieces(cut, monkeypatch):
    """Found wherever the pieces of the graph end."""
    mark = b"\x12\x0bTRTEngineOp"
    content = b"abc" + mark + b"def"

    def copy_to(write):
        write(memoryview(content[: 3 + cut]))
        write(memoryview(content[3 + cut : 3 + cut + 1]))
        write(memoryview(content[3 + cut + 1 :]))

    model = types.SimpleNamespace(
        files={"saved_model.pb": types.SimpleNamespace(size=len(content))},
        content=lambda name: types.SimpleNamespace(copy_to=copy_to),
    )
    with pytest.raises(UsageError, match="TF-TRT"):
        loader._copy(model, "saved_model.pb", io.BytesIO())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A small convolutional network, frozen: its file, an image, and what TensorFlow's own way gives."""
    keras.utils.set_random_seed(5)
    model = keras.applications.MobileNetV2((64, 64, 3), weights=None, alpha=0.35, classes=10)
    spec = tf.TensorSpec([None, 64, 64, 3], tf.float32, "image")
    traced = tf.function(lambda image: model(image, training=False)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(traced).graph.as_graph_def()
    place = tmp_path_factory.mktemp("frozen") / "frozen.pb"
    place.write_bytes(graph.SerializeToString())
    image = tf.constant(numpy.random.default_rng(6).random((2, 64, 64, 3), "f4"))
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    return place, image, wrapped.prune("image:0", "Identity:0")(image)


def test_frozen_graph(frozen, seal, key):
    place, image, expected = frozen
    sealed = seal(place)
    function = loader.graph_def_load(sealed, key=key)
    assert isinstance(function, tf.types.experimental.ConcreteFunction)
    assert same(function(image), {"Identity": expected})
    assert same(function(image=image), {"Identity": expected})
    chosen = loader.graph_def_load(sealed, "image", ["Identity:0"], key=key)
    assert same(chosen(image), [expected])
    assert same(loader.graph_def_load(sealed, ["image:0"], "Identity", key=key)(image), expected)
    prefixed = loader.graph_def_load(sealed, name="net", key=key)
    assert same(prefixed(image), {"Identity": expected})
    assert prefixed.graph.get_operation_by_name("net/Identity")


def test_frozen_graph_with_captured_weights(frozen, seal, key):
    place, image, expected = frozen
    function = loader.graph_def_load(seal(place), capture_weights=True, key=key)
    names = {tf.TensorShape(tensor.shape).num_elements() for tensor in function.captured_inputs}
    assert min(names) * 4 >= 50 << 10
    found = function(image)["Identity"]
    numpy.testing.assert_allclose(found, expected, rtol=1e-4)
    assert function.graph.get_operation_by_name("Identity")


def test_part_of_a_frozen_graph(frozen, seal, key):
    place, image, expected = frozen
    sealed = seal(place)
    graph = loader.graph_def(sealed, key=key)
    assert isinstance(graph, tf.compat.v1.GraphDef)
    middle = next(node.name for node in graph.node if node.op == "Mean")
    first = loader.graph_def_load(sealed, outputs=middle, key=key)
    assert len(first.graph.get_operations()) < len(graph.node)
    for capture in (False, True):
        rest = loader.graph_def_load(sealed, middle, "Identity", capture_weights=capture, key=key)
        assert rest.structured_input_signature[0][0].shape.rank == 2
        numpy.testing.assert_allclose(rest(first(image)), expected, rtol=1e-4)
    both = {"all": "image", "mean": middle}
    found = loader.graph_def_load(sealed, outputs=both, key=key)(image)
    assert same(found["all"], image)
    assert found["mean"].shape == (2, 1280)


def test_constants_of_a_branch_stay_in_it(tmp_path, seal, key):
    """A constant that only one branch has is no weight that is always there."""
    with tf.Graph().as_default() as graph:
        v1 = tf.compat.v1
        v1.disable_control_flow_v2()
        try:
            flag = v1.placeholder(tf.bool, [], "flag")
            large = numpy.arange(50_000, dtype="f4")
            y = v1.cond(flag, lambda: tf.constant(large), lambda: tf.constant(-large))
            tf.identity(y, "y")
            tf.identity(tf.constant(large.astype("i8")), "z")
        finally:
            v1.enable_control_flow_v2()
    (tmp_path / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    function = loader.graph_def_load(seal(tmp_path / "m.pb"), capture_weights=True, key=key)
    assert len(function.captured_inputs) == 1
    for flag, sign in ((True, 1), (False, -1)):
        found = function(tf.constant(flag))
        assert same(found["y"], sign * large)
        assert same(found["z"], large.astype("i8"))


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "int8", "uint8", "complex64", "bool", "string"]
)
def test_weights_of_other_types(tmp_path, seal, key, dtype):
    values = numpy.arange(70_000) % 100
    with tf.Graph().as_default() as graph:
        if dtype == "string":
            constant = tf.constant([str(value) for value in values])
        else:
            constant = tf.constant(values.astype(tf.dtypes.as_dtype(dtype).as_numpy_dtype))
        tf.identity(constant, "y")
        tf.identity(tf.fill([3], 2.0), "few")
    (tmp_path / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    function = loader.graph_def_load(seal(tmp_path / "m.pb"), capture_weights=True, key=key)
    assert len(function.captured_inputs) == (dtype != "string")
    if dtype == "string":
        values = values.astype(str).astype(object)
    found = function()["y"]
    assert found.dtype == dtype
    assert same(
        tf.strings.to_number(found) if dtype == "string" else found,
        values.astype("f4" if dtype == "string" else found.dtype.as_numpy_dtype),
    )


@pytest.mark.parametrize("capture", [False, True])
def test_no_frozen_graph(tmp_path, seal, key, capture):
    for content in (
        b"",
        b"\xff" * 100,
        b"\x08\x01\x12\x02\x08\x01",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0b",
    ):
        (tmp_path / "m.pb").write_bytes(content)
        sealed = tmp_path / "s"
        strongroom.seal(tmp_path / "m.pb", sealed, key=key, overwrite=True)
        with pytest.raises(UsageError, match=r"m\.pb in .* is no frozen graph") as error:
            loader.graph_def_load(sealed, capture_weights=capture, key=key)
        assert "saved_model_load" in error.value.hint
    with pytest.raises(UsageError):
        loader.graph_def(sealed, key=key)


def test_names_that_are_not_there(frozen, seal, key):
    sealed = seal(frozen[0])
    with pytest.raises(UsageError, match="no node 'picture'") as error:
        loader.graph_def_load(sealed, "picture", key=key)
    assert "image" in error.value.hint
    with pytest.raises(UsageError, match="no node 'softmax'") as error:
        loader.graph_def_load(sealed, outputs=["softmax:0"], key=key)
    assert "Identity" in error.value.hint


def test_tampered_graph(frozen, seal, key):
    sealed = seal(frozen[0])
    content = bytearray(sealed.read_bytes())
    content[len(content) // 2] ^= 1
    sealed.write_bytes(content)
    for capture in (False, True):
        with pytest.raises(PayloadTampered):
            loader.graph_def_load(sealed, capture_weights=capture, key=key)


def test_without_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    spec = importlib.util.spec_from_file_location("again", loader.__file__)
    with pytest.raises(MissingExtra, match="TensorFlow") as error:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "strongroom[tensorflow]" in error.value.hint
