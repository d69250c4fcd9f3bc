"""XGBoost: UBJSON with complete trees of depth 14, all the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy
import xgboost

DEPTH = 14
NODES = 2 ** (DEPTH + 1) - 1


def encode(value: Any) -> bytes:
    """UBJSON as XGBoost writes it; ``bytes`` are there already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"S" + named(value)
    if isinstance(value, dict):
        return b"{" + b"".join(named(k) + encode(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(encode, value))
    return b"L" + struct.pack(">q", value)


def named(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def array(kind: bytes, numbers: Any) -> bytes:
    """``kind`` l: i4, L: i8, U: u1, d: f4; big-endian."""
    return b"[$" + kind + b"#L" + struct.pack(">q", len(numbers)) + numbers.tobytes()


def tree() -> bytes:
    rng = numpy.random.default_rng(0)
    nodes = numpy.arange(NODES)
    leaf = nodes >= NODES // 2

    def integers(numbers: Any) -> bytes:
        return array(b"l", numbers.astype(">i4"))

    def floats() -> bytes:
        return array(b"d", rng.random(NODES, dtype="f4").astype(">f4"))

    none = array(b"l", numpy.zeros(0, ">i4"))
    counts = {"num_deleted": "0", "num_feature": "4", "num_nodes": str(NODES), "size_leaf_vector": "1"}
    return encode(
        {
            "base_weights": floats(),
            "categories": none,
            "categories_nodes": none,
            "categories_segments": array(b"L", numpy.zeros(0, ">i8")),
            "categories_sizes": array(b"L", numpy.zeros(0, ">i8")),
            "default_left": array(b"U", (nodes % 2 * ~leaf).astype("u1")),
            "id": 0,
            "left_children": integers(numpy.where(leaf, -1, 2 * nodes + 1)),
            "loss_changes": floats(),
            "parents": integers(numpy.where(nodes == 0, 2**31 - 1, (nodes - 1) // 2)),
            "right_children": integers(numpy.where(leaf, -1, 2 * nodes + 2)),
            "split_conditions": floats(),
            "split_indices": integers(nodes % 4),
            "split_type": array(b"U", numpy.zeros(NODES, "u1")),
            "sum_hessian": floats(),
            "tree_param": counts,
        }
    )


def build(folder: Path, size: int) -> Path:
    rng = numpy.random.default_rng(0)
    data = xgboost.DMatrix(rng.random((50, 4)), rng.random(50))
    model = json.loads(xgboost.train({"max_depth": 1}, data, 1).save_raw("json"))
    one = tree()
    count = max(1, size // len(one))
    forest = model["learner"]["gradient_booster"]["model"]
    forest["gbtree_model_param"]["num_trees"] = str(count)
    forest["iteration_indptr"] = list(range(count + 1))
    forest["tree_info"] = [0] * count
    # XGBoost puts them where their number says.
    before, _, after = one.partition(named("id") + encode(0))
    forest["trees"] = [before + named("id") + encode(i) + after for i in range(count)]
    (folder / "m.ubj").write_bytes(encode(model))
    return folder / "m.ubj"


def plain(place: Path) -> object:
    buffer = bytearray(place.stat().st_size)
    with place.open("rb", buffering=0) as file:
        file.readinto(buffer)
    return xgboost.Booster(model_file=buffer)


def sealed(place: Path, key: bytes) -> object:
    from strongroom.loaders import xgboost as loader

    return loader.booster(place, key=key)


CASES = {"xgboost ubj": (build, plain, sealed)}
