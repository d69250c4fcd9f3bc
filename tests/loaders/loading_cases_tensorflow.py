"""TensorFlow, Keras and TFLite: one model for each way of loading, and the load."""

import os
import sys
import tempfile
import warnings
from contextlib import contextmanager

from marking import COLUMNS, MARK, marked

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

COUNT = 8


def weights(size):
    return [marked(size // COUNT // (4 * COLUMNS), seed) for seed in range(COUNT)]


def words(folder, size):
    """A vocabulary."""
    place = folder / "words.txt"
    place.write_text("".join(f"{MARK.decode()}{number}\n" for number in range(size // 64)))
    return place


# Making: (directory, bytes) → path of the plain model.


def make_saved_model(folder, size):
    import tensorflow as tf

    file = words(folder, min(size, 1 << 20))

    class Model(tf.Module):
        def __init__(self):
            lines = tf.lookup.TextFileInitializer(
                str(file),
                *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
                *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
            )
            self.table = tf.lookup.StaticHashTable(lines, -1)
            self.rows = [tf.Variable(rows) for rows in weights(size)]

        @tf.function(input_signature=[tf.TensorSpec([], tf.string, "word")])
        def serve(self, word):
            return {"row": tf.add_n([rows[self.table.lookup(word)] for rows in self.rows])}

    model = Model()
    tf.saved_model.save(model, folder / "model", signatures={"serving_default": model.serve})
    file.unlink()
    return folder / "model"


def make_graph_def(folder, size):
    import tensorflow as tf

    # Node by node: one graph of this size, with its copies in the library, takes too long.
    place = folder / "frozen.pb"
    with tf.Graph().as_default() as graph:
        number = tf.compat.v1.placeholder(tf.int32, [], "number")
        tables = [tf.constant(0.0, shape=rows.shape) for rows in weights(COUNT * 4 * COLUMNS)]
        tf.add_n([tf.gather(table, number) for table in tables], "row")
    definition = graph.as_graph_def()
    constants = [node for node in definition.node if node.op == "Const" and len(node.attr) == 2]
    named = {tensor.op.name: rows for tensor, rows in zip(tables, weights(size), strict=True)}
    for node in constants:
        if node.name in named:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(named[node.name]))
    place.write_bytes(definition.SerializeToString())
    return place


def _keras(size, file=None):
    import keras

    inputs = keras.Input((), dtype="string" if file is not None else "int32")
    x = inputs
    if file is not None:
        vocabulary = file.read_text().split()
        x = keras.layers.StringLookup(vocabulary=vocabulary)(x)
    tables = [keras.layers.Embedding(len(rows), COLUMNS) for rows in weights(size)]
    model = keras.Model(inputs, keras.layers.Add()([table(x) for table in tables]))
    for table, rows in zip(tables, weights(size), strict=True):
        table.set_weights([rows])
    return model


@contextmanager
def _numpy_says_nothing():
    """Keras gives NumPy tensors of TensorFlow, which do not know the newest argument of __array__."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't", DeprecationWarning)
        yield


@_numpy_says_nothing()
def make_keras(folder, size):
    _keras(size).save(folder / "m.keras")
    return folder / "m.keras"


@_numpy_says_nothing()
def make_keras_with_assets(folder, size):
    file = words(folder, min(size, 1 << 20))
    _keras(size, file).save(folder / "m.keras")
    return folder / "m.keras"


@_numpy_says_nothing()
def make_hdf5(folder, size):
    _keras(size).save(folder / "m.h5")
    return folder / "m.h5"


def make_tflite(folder, size):
    import flatbuffers
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema

    tables = [tf.constant(rows) for rows in weights(COUNT * 4 * COLUMNS)]

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int32, "number")])
    def serve(number):
        return [tf.gather(table, number) for table in tables]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()])
    small = schema.Model.GetRootAsModel(converter.convert(), 0)
    # To convert the weights themselves takes 40 seconds for 300 MB.
    model = schema.ModelT.InitFromObj(small)
    rest = iter(weights(size))
    for tensor in model.subgraphs[0].tensors:
        if (buffer := model.buffers[tensor.buffer]).data is not None and len(tensor.shape) == 2:
            rows = next(rest)
            tensor.shape = rows.shape
            buffer.data = rows.view("u1").reshape(-1)
    assert next(rest, None) is None
    builder = flatbuffers.Builder(size + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "m.tflite").write_bytes(builder.Output())
    return folder / "m.tflite"


# Loading: sealed model → something to keep.


def _prepare():
    """Let TensorFlow and Keras not write, when they are imported, what is nothing of a model."""
    os.environ["KERAS_HOME"] = "/proc/self"  # where Keras cannot write the settings that it misses
    sys.modules.setdefault("matplotlib", None)  # whose list of fonts would be written
    tempfile.tempdir = os.environ.get("TMPDIR")  # without a try whether it can be written to


def load_saved_model(sealed):
    _prepare()
    from strongroom.loaders import tensorflow

    model = tensorflow.saved_model_load(sealed)
    model.serve(MARK + b"0")
    return model


def load_function(sealed):
    _prepare()
    from strongroom.loaders import tensorflow

    return tensorflow.graph_def_load(sealed)


def load_function_captured(sealed):
    _prepare()
    import tensorflow as tf

    from strongroom.loaders import tensorflow

    function = tensorflow.graph_def_load(sealed, capture_weights=True)
    function(tf.constant(1))
    return function


def load_keras(sealed):
    _prepare()
    from strongroom.loaders import keras

    return keras.load_model(sealed)


def load_tflite(sealed):
    import numpy

    from strongroom.loaders import tflite

    interpreter = tflite.interpreter(sealed)
    interpreter.allocate_tensors()
    (row,) = interpreter.get_input_details()  # an index, at first whatever lay there
    interpreter.set_tensor(row["index"], numpy.zeros(row["shape"], row["dtype"]))
    interpreter.invoke()
    return interpreter


CASES = {
    "tensorflow saved model": (make_saved_model, load_saved_model),
    "tensorflow frozen": (make_graph_def, load_function),
    "tensorflow frozen, captured": (make_graph_def, load_function_captured),
    "keras": (make_keras, load_keras),
    "keras with assets": (make_keras_with_assets, load_keras),
    "keras hdf5": (make_hdf5, load_keras),
    "tflite": (make_tflite, load_tflite),
}

COPIES = {
    "tensorflow saved model": (2, 1),
    "tensorflow frozen": (4, 3),
    "tensorflow frozen, captured": (1.4, 1),
    # The plain load too takes half a copy more: two of the eight weights at a time, and their first values.
    "keras": (2.5, 1.3),
    "keras hdf5": (1.5, 1.3),
    "tflite": (1, 1),
}
