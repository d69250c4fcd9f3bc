"""scikit-learn: nearest neighbours, one large array; and a forest, many small ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import joblib
import numpy
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor
from skops import io as skops_io

TREES = ["sklearn.tree._tree.Tree"]


def neighbours(size: int) -> Any:
    rows = numpy.random.default_rng(0).random((size // 4096, 1024), dtype="f4")
    return KNeighborsRegressor(algorithm="brute").fit(rows, rows[:, 0])


def forest(size: int) -> Any:
    """A tree grown on 10,000 rows has about 900 kB."""
    rng = numpy.random.default_rng(0)
    trees = max(1, size // 900_000)
    model = RandomForestRegressor(trees, n_jobs=-1, random_state=0)
    return model.fit(rng.random((10_000, 2)), rng.random(10_000))


def build_skops(folder: Path, size: int) -> Path:
    skops_io.dump(neighbours(size), folder / "m.skops")
    return folder / "m.skops"


def build_skops_forest(folder: Path, size: int) -> Path:
    skops_io.dump(forest(size), folder / "m.skops")
    return folder / "m.skops"


def build_joblib(folder: Path, size: int) -> Path:
    joblib.dump(neighbours(size), folder / "m.joblib")
    return folder / "m.joblib"


def build_joblib_forest(folder: Path, size: int) -> Path:
    joblib.dump(forest(size), folder / "m.joblib", compress=3)
    return folder / "m.joblib"


def plain_skops(place: Path) -> object:
    return skops_io.load(io.BytesIO(place.read_bytes()), TREES)


def plain_joblib(place: Path) -> object:
    return joblib.load(io.BytesIO(place.read_bytes()))


def sealed_skops(place: Path, key: bytes) -> object:
    from strongroom.loaders import sklearn

    return sklearn.skops_load(place, TREES, key=key)


def sealed_joblib(place: Path, key: bytes) -> object:
    from strongroom.loaders import sklearn

    return sklearn.joblib_load(place, key=key, allow_pickle=True)


CASES = {
    "skops": (build_skops, plain_skops, sealed_skops),
    "skops forest": (build_skops_forest, plain_skops, sealed_skops),
    "joblib": (build_joblib, plain_joblib, sealed_joblib),
    "joblib forest, compressed": (build_joblib_forest, plain_joblib, sealed_joblib),
}
