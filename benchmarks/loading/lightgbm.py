"""LightGBM: one real tree of 20,000 leaves, as often as the size asks for."""

from __future__ import annotations

import re
from pathlib import Path

import lightgbm
import numpy


def build(folder: Path, size: int) -> Path:
    rng = numpy.random.default_rng(0)
    leaves = min(20000, size // 400)
    data = lightgbm.Dataset(rng.random((3 * leaves, 8)), rng.random(3 * leaves))
    parameters = {"num_leaves": leaves, "min_data_in_leaf": 1, "verbose": -1}
    text = lightgbm.train(parameters, data, 1).model_to_string()
    head, tree, tail = re.split(r"Tree=0\n|(?=end of trees)", text, maxsplit=2)
    trees = [f"Tree={i}\n{tree}" for i in range(size // len(tree))]
    sizes = " ".join(str(len(one)) for one in trees)
    head = re.sub("tree_sizes=.*", f"tree_sizes={sizes}", head)
    (folder / "m.txt").write_text("".join([head, *trees, tail]))
    return folder / "m.txt"


def plain(place: Path) -> object:
    return lightgbm.Booster(model_str=place.read_text())


def sealed(place: Path, key: bytes) -> object:
    from strongroom.loaders import lightgbm as loader

    return loader.booster(place, key=key)


CASES = {"lightgbm": (build, plain, sealed)}
