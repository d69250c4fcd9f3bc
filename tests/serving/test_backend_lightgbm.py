"""LightGBM behind the server."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
from backend_checks import (
    BATCHING,
    ask,
    check_batches,
    check_threads,
    refused,
    served,
    signature_of,
)

from strongroom.errors import UsageError
from strongroom.serving.tensors import TensorSpec

__all__ = ["served"]

RNG = np.random.default_rng(6)
X = RNG.random((200, 4))
KINDS = (X[:, 0] > 0.5).astype(int) + (X[:, 1] > 0.5)
ROWS = X[:20]


def train(labels=None, names="auto", **params):
    data = lightgbm.Dataset(X, X[:, 0] if labels is None else labels, feature_name=names)
    return lightgbm.train({"verbose": -1, "num_threads": 1, "num_leaves": 7, **params}, data, 6)


def saved(tmp_path, booster):
    booster.save_model(tmp_path / "m.txt")
    return tmp_path / "m.txt"


CASES = {
    "regression": ({}, X[:, 0], (-1,)),
    "probability": ({"objective": "binary"}, KINDS > 0, (-1,)),
    "probabilities": ({"objective": "multiclass", "num_class": 3}, KINDS, (-1, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_booster_itself(served, tmp_path, case):
    params, labels, shape = CASES[case]
    booster = train(labels, **params)
    servable = served(saved(tmp_path, booster), threads=1)
    assert servable.platform == "lightgbm"
    assert signature_of(servable) == (
        {"inputs": ("float64", (-1, 4))},
        {"predict": ("float64", shape)},
    )
    assert np.array_equal(ask(servable, inputs=ROWS)["predict"], booster.predict(ROWS))
    # Threads may be told other numbers later; and what is missing is NaN.
    holes = np.where(ROWS < 0.3, np.nan, ROWS)
    assert np.array_equal(ask(servable, inputs=holes)["predict"], booster.predict(holes))
    empty = ask(servable, inputs=ROWS[:0])["predict"]
    assert (empty.dtype, empty.shape) == (np.float64, (0, *shape[1:]))
    assert ("regress" in servable.signatures) == (shape == (-1,))


def test_several_threads_at_once(served, tmp_path):
    booster = train()
    servable = served(saved(tmp_path, booster), threads=1)
    check_threads(servable, "inputs", ROWS, ("predict", booster.predict(ROWS)))


def test_batches(served, tmp_path):
    booster = train(KINDS, objective="multiclass", num_class=3)
    servable = served(saved(tmp_path, booster), threads=1, batching=BATCHING)
    check_batches(servable, "inputs", ROWS, ("predict", booster.predict(ROWS)))


def test_wrong_requests(served, tmp_path, capfd):
    servable = served(saved(tmp_path, train()), threads=1)
    refused(servable, r"shape \[20, 3\]", inputs=ROWS[:, :3])
    refused(servable, "dtype float32", inputs=ROWS.astype(np.float32))
    assert "LightGBM" not in "".join(capfd.readouterr())


def test_other_outputs_and_arguments(served, tmp_path):
    booster = train()
    outputs = (
        TensorSpec("raw_score", "float64", (-1,)),
        TensorSpec("pred_contrib", "float64", (-1, 5)),
        TensorSpec("pred_leaf", "int32", (-1, 2)),
    )
    options = {"num_iteration": 2}
    servable = served(saved(tmp_path, booster), threads=1, outputs=outputs, options=options)
    found = ask(servable, inputs=ROWS)
    for spec in outputs:
        expected = booster.predict(ROWS, num_iteration=2, **{spec.name: True})
        assert np.array_equal(found[spec.name], expected)
    assert set(servable.signatures) == {"serving_default"}
    with pytest.raises(UsageError, match="data_has_header is nothing"):
        served(saved(tmp_path, booster), options={"data_has_header": True})


def test_columns(served, tmp_path):
    names = ["a", "b", "c", "d"]
    columns = {name: ROWS[:, number] for number, name in enumerate(names)}
    specs = tuple(TensorSpec(name, "float64", (-1,)) for name in reversed(names))
    for booster, order in ((train(names=names), names), (train(), names[::-1])):
        # Features without names come in the order of the configuration.
        servable = served(saved(tmp_path, booster), threads=1, inputs=specs)
        assert list(servable.signatures["serving_default"].inputs) == order
        matrix = np.column_stack([columns[name] for name in order])
        assert np.array_equal(ask(servable, **columns)["predict"], booster.predict(matrix))
    with pytest.raises(UsageError, match="no input for the feature d"):
        served(saved(tmp_path, train(names=names)), inputs=specs[1:])
    with pytest.raises(UsageError, match="4 features, and the configuration 3 inputs"):
        served(saved(tmp_path, train()), inputs=specs[1:])
