"""XGBoost: complete trees in UBJSON, with marked numbers in their nodes."""

import json
import struct

from marking import marked

DEPTH = 14
NODES = 2 ** (DEPTH + 1) - 1
INNER = 2**DEPTH - 1


def encode(value):
    """UBJSON as XGBoost writes it; ``bytes`` are there already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"S" + _name(value)
    if isinstance(value, dict):
        return b"{" + b"".join(_name(k) + encode(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(encode, value))
    return b"L" + struct.pack(">q", value)


def _name(text):
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def _array(kind, numbers):
    return b"[$" + kind + b"#L" + struct.pack(">q", len(numbers)) + numbers.tobytes()


def _tree(number):
    import numpy

    nodes = numpy.arange(NODES)
    leaf = nodes >= INNER

    def integers(numbers):
        return _array(b"l", numbers.astype(">i4"))

    def floats(seed):
        weights = marked(-(-NODES // 1024), seed).view(">f4").ravel()[:NODES]
        return _array(b"d", weights)

    none = _array(b"l", numpy.zeros(0, ">i4"))
    return {
        "base_weights": floats(4 * number),
        "categories": none,
        "categories_nodes": none,
        "categories_segments": _array(b"L", numpy.zeros(0, ">i8")),
        "categories_sizes": _array(b"L", numpy.zeros(0, ">i8")),
        "default_left": _array(b"U", (nodes % 2 * ~leaf).astype("u1")),
        "id": number,
        "left_children": integers(numpy.where(leaf, -1, 2 * nodes + 1)),
        "loss_changes": floats(4 * number + 1),
        "parents": integers(numpy.where(nodes == 0, 2**31 - 1, (nodes - 1) // 2)),
        "right_children": integers(numpy.where(leaf, -1, 2 * nodes + 2)),
        "split_conditions": floats(4 * number + 2),
        "split_indices": integers(nodes % 4),
        "split_type": _array(b"U", numpy.zeros(NODES, "u1")),
        "sum_hessian": floats(4 * number + 3),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": "4",
            "num_nodes": str(NODES),
            "size_leaf_vector": "1",
        },
    }


def make_xgboost(folder, size):
    import numpy
    import xgboost

    rng = numpy.random.default_rng(0)
    data = xgboost.DMatrix(rng.random((50, 4)), rng.random(50))
    model = json.loads(xgboost.train({"max_depth": 1}, data, 1).save_raw("json"))
    count = max(1, size // (34 * NODES))
    forest = model["learner"]["gradient_booster"]["model"]
    forest["gbtree_model_param"]["num_trees"] = str(count)
    forest["iteration_indptr"] = list(range(count + 1))
    forest["tree_info"] = [0] * count
    forest["trees"] = [_tree(i) for i in range(count)]
    (folder / "m.ubj").write_bytes(encode(model))
    return folder / "m.ubj"


def load_xgboost(sealed):
    import numpy
    import xgboost

    from strongroom.loaders import xgboost as loader

    booster = loader.booster(sealed)
    booster.predict(xgboost.DMatrix(numpy.ones((1, 4))))
    return booster


CASES = {"xgboost": (make_xgboost, load_xgboost)}
# Of these XGBoost itself keeps 2.6: its trees have more fields than the file.
COPIES = {"xgboost": (3.6, 2.6)}
