"""TensorFlow, Keras and TFLite."""

import os
from pathlib import Path
from typing import Any

from memory import memory_place

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

COLUMNS = 1024
PIECE = 4 << 20


def weights(size: int) -> list[Any]:
    """float32 matrices of 2 MB, about ``size`` bytes."""
    import numpy

    rng = numpy.random.default_rng(1)
    return [rng.random((512, COLUMNS), "f4") for _ in range(max(1, size // (2 << 20)))]


def build_saved_model(folder: Path, size: int) -> Path:
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self) -> None:
            self.tables = [tf.Variable(table) for table in weights(size)]

        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "row")])
        def serve(self, row: Any) -> Any:
            return {"sum": tf.add_n([table[row] for table in self.tables])}

    model = Model()
    place = folder / "saved_model"
    tf.saved_model.save(model, place, signatures={"serving_default": model.serve})
    return place


def plain_saved_model(place: Path) -> object:
    import tensorflow as tf

    root = "ram://plain"
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        target = f"{root}/{path.relative_to(place)}"
        tf.io.gfile.makedirs(os.path.dirname(target))
        with path.open("rb", buffering=0) as source, tf.io.gfile.GFile(target, "wb") as file:
            while piece := source.read(PIECE):
                file.write(piece)
    model = tf.saved_model.load(root)
    tf.io.gfile.rmtree(root)
    return model


def sealed_saved_model(place: Path, key: bytes) -> object:
    from strongroom.loaders import tensorflow

    return tensorflow.saved_model_load(place, key=key)


def build_frozen(folder: Path, size: int) -> Path:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        row = tf.compat.v1.placeholder(tf.int32, [], "row")
        tf.add_n([tf.gather(tf.constant(table), row) for table in weights(size)], "sum")
    place = folder / "frozen.pb"
    place.write_bytes(graph.as_graph_def().SerializeToString())
    return place


def plain_frozen(place: Path) -> object:
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(place.read_bytes())
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    return wrapped.prune("row:0", "sum:0")


def sealed_frozen(place: Path, key: bytes) -> object:
    from strongroom.loaders import tensorflow

    return tensorflow.graph_def_load(place, "row", "sum", key=key)


def sealed_frozen_captured(place: Path, key: bytes) -> object:
    from strongroom.loaders import tensorflow

    return tensorflow.graph_def_load(place, "row", "sum", capture_weights=True, key=key)


def _keras(size: int) -> Any:
    import keras

    tables = weights(size)
    inputs = keras.Input((), dtype="int32")
    layers = [keras.layers.Embedding(512, COLUMNS) for _ in tables]
    total = keras.layers.Add()([layer(inputs) for layer in layers] * (1 if len(layers) > 1 else 2))
    for layer, table in zip(layers, tables, strict=True):
        layer.set_weights([table])
    return keras.Model(inputs, total)


def build_keras(folder: Path, size: int) -> Path:
    _keras(size).save(folder / "model.keras")
    return folder / "model.keras"


def build_hdf5(folder: Path, size: int) -> Path:
    _keras(size).save(folder / "model.h5")
    return folder / "model.h5"


def plain_keras(place: Path) -> object:
    import keras

    with memory_place(place) as copy:
        return keras.saving.load_model(copy)


def sealed_keras(place: Path, key: bytes) -> object:
    from strongroom.loaders import keras

    return keras.load_model(place, key=key)


def build_tflite(folder: Path, size: int) -> Path:
    import numpy
    import tensorflow as tf

    # One constant for all rows: the converter takes long over many.
    table = tf.constant(numpy.concatenate(weights(size)))

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int32, "row")])
    def serve(row: Any) -> Any:
        return tf.gather(table, row)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()])
    (folder / "model.tflite").write_bytes(converter.convert())
    return folder / "model.tflite"


def plain_tflite(place: Path) -> object:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=place.read_bytes())
    interpreter.allocate_tensors()
    return interpreter


def sealed_tflite(place: Path, key: bytes) -> object:
    from strongroom.loaders import tflite

    interpreter = tflite.interpreter(place, key=key)
    interpreter.allocate_tensors()
    return interpreter


CASES = {
    "tensorflow SavedModel": (build_saved_model, plain_saved_model, sealed_saved_model),
    "tensorflow frozen": (build_frozen, plain_frozen, sealed_frozen),
    "tensorflow frozen, captured": (build_frozen, plain_frozen, sealed_frozen_captured),
    "keras": (build_keras, plain_keras, sealed_keras),
    "keras hdf5": (build_hdf5, plain_keras, sealed_keras),
    "tflite": (build_tflite, plain_tflite, sealed_tflite),
}
