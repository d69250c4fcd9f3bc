"""SavedModels of both versions of TensorFlow, for the tests of what serves them."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

v1 = tf.compat.v1


def half_plus_two(place):
    """The model of TensorFlow Serving's quick start, with its signatures, as version 1 saves it.

    An asset is read while it is loaded. ``x`` is a tensor in the midst of the graph, of shape [-1, 1].
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    words = place.parent / "words.txt"
    words.write_text("half\ntwo\n")
    with tf.Graph().as_default(), v1.Session() as session:
        a, b, c = (
            v1.get_variable(name, initializer=value)
            for name, value in {"a": 0.5, "b": 2.0, "c": 3.0}.items()
        )
        given = v1.placeholder(tf.string, [None], "tf_example")
        features = {
            "x": tf.io.FixedLenFeature([1], tf.float32),
            "x2": tf.io.FixedLenFeature([1], tf.float32, [0.0]),
        }
        parsed = tf.io.parse_example(given, features)
        x, x2 = (tf.identity(parsed[name], name) for name in ("x", "x2"))
        y = tf.identity(a * x + b, "y")
        y3 = tf.identity(a * x2 + c, "y3")
        asset = tf.constant(str(words))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                asset,
                *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
                *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            ),
            "?",
        )
        classes = table.lookup(tf.tile([[tf.constant(0, tf.int64), 1]], [tf.shape(y)[0], 1]))
        info = v1.saved_model.utils.build_tensor_info
        define = v1.saved_model.signature_def_utils.build_signature_def

        def signature(inputs, outputs, method):
            infos = ({name: info(one) for name, one in side.items()} for side in (inputs, outputs))
            return define(*infos, f"tensorflow/serving/{method}")

        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(place))
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.SERVING],
            signature_def_map={
                "serving_default": signature({"x": x}, {"y": y}, "predict"),
                "regress_x_to_y": signature({"inputs": given}, {"outputs": y}, "regress"),
                "regress_x2_to_y3": signature({"inputs": given}, {"outputs": y3}, "regress"),
                "classify_x_to_y": signature(
                    {"inputs": given},
                    {"scores": tf.concat([y, -y], 1), "classes": classes},
                    "classify",
                ),
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
    words.unlink()
    return place


TWO, PLAIN = tf.constant([2.0]), tf.constant("plain")


class Everything(tf.Module):
    """Functions for each kind of input."""

    def __init__(self):
        self.weight = tf.Variable([[0.0, 1, 2, 3], [4, 5, 6, 7]])

    def look(self, i):
        """Fails for indices that are none."""
        return {"row": tf.gather(self.weight, i), "twice": 2 * i}

    def parse(self, inputs):
        """Serialized examples, in a signature that version 2 calls one to predict."""
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        classes = tf.tile([["low", "high"]], [tf.shape(x)[0], 1])
        return {"scores": tf.stack([x, -x], 1), "classes": classes}

    def total(self, b, a):
        """Two sizes that have nothing to do with one another, and scalars."""
        return {
            "sum": tf.reduce_sum(a) + tf.reduce_sum(tf.cast(b, tf.float32)),
            "text": tf.constant("done"),
        }

    def scale(self, x, by=TWO, text=PLAIN):
        """Inputs that have a value where a request does not say one."""
        return {"y": by * x, "text": text}

    def double(self, x):
        return {"y": 2 * x}


def specs(**shapes):
    return [tf.TensorSpec(shape, dtype, name) for name, (dtype, shape) in shapes.items()]


ECHOED = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128", "string"),
)


def everything(place):
    """A SavedModel of version 2 with a signature for each function, and one for each dtype."""
    module = Everything()

    def function(body, **shapes):
        return tf.function(body, input_signature=specs(**shapes), autograph=False)

    signatures = {
        "serving_default": function(module.double, x=(tf.float32, [None, 4])),
        "look": function(module.look, i=(tf.int64, [None])),
        "parse": function(module.parse, inputs=(tf.string, [None])),
        "total": function(module.total, b=(tf.int32, [None]), a=(tf.float32, [None, 2])),
        "scale": function(
            module.scale, x=(tf.float32, [None]), by=(tf.float32, [None]), text=(tf.string, [])
        ),
        "any": function(lambda x: {"y": tf.reshape(x, [-1])}, x=(tf.float32, None)),
    }
    for name in ECHOED:
        dtype = tf.as_dtype(name)
        echo = function(lambda x: {"x": tf.identity(x), "n": tf.size(x)}, x=(dtype, None))
        signatures[f"echo_{name}"] = echo
    module.functions = list(signatures.values())
    tf.saved_model.save(module, place, signatures=signatures)
    return place
