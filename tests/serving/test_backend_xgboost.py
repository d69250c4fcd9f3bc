"""XGBoost behind the server: what the file says, what the configuration adds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost
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

RNG = np.random.default_rng(5)
X = RNG.random((120, 4))
KINDS = (X[:, 0] > 0.5).astype(int) + (X[:, 1] > 0.5)
ROWS = X[:20].astype(np.float32)


def train(labels=None, rounds=4, names=None, **params):
    data = xgboost.DMatrix(X, X[:, 0] if labels is None else labels, feature_names=names)
    return xgboost.train({"nthread": 1, **params}, data, rounds)


def saved(tmp_path, booster, name="m.ubj"):
    booster.save_model(tmp_path / name)
    return tmp_path / name


CASES = {
    "regression": ({}, X[:, 0], (-1,)),
    "two outputs": ({}, X[:, :2], (-1, 2)),
    "probability": ({"objective": "binary:logistic"}, KINDS > 0, (-1,)),
    "probabilities": ({"objective": "multi:softprob", "num_class": 3}, KINDS, (-1, 3)),
    "class": ({"objective": "multi:softmax", "num_class": 3}, KINDS, (-1,)),
    "dart": ({"booster": "dart"}, X[:, 0], (-1,)),
    "linear": ({"booster": "gblinear"}, X[:, 0], (-1,)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_booster_itself(served, tmp_path, case):
    params, labels, shape = CASES[case]
    booster = train(labels, **params)
    servable = served(saved(tmp_path, booster), threads=1)
    assert servable.platform == "xgboost"
    assert signature_of(servable) == (
        {"inputs": ("float32", (-1, 4))},
        {"predict": ("float32", shape)},
    )
    found = ask(servable, inputs=ROWS)["predict"]
    # In another order of additions for dart.
    assert np.allclose(found, booster.predict(xgboost.DMatrix(ROWS)), rtol=1e-6)
    empty = ask(servable, inputs=ROWS[:0])["predict"]
    assert (empty.dtype, empty.shape) == (np.float32, (0, *shape[1:]))
    assert ("regress" in servable.signatures) == (shape == (-1,))


@pytest.mark.parametrize("booster", ["gbtree", "gblinear"])
def test_several_threads_at_once(served, tmp_path, booster):
    model = train(booster=booster)
    servable = served(saved(tmp_path, model), threads=1)
    check_threads(servable, "inputs", ROWS, ("predict", model.predict(xgboost.DMatrix(ROWS))))


def test_batches(served, tmp_path):
    model = train(KINDS, objective="multi:softprob", num_class=3)
    servable = served(saved(tmp_path, model), threads=1, batching=BATCHING)
    check_batches(servable, "inputs", ROWS, ("predict", model.predict(xgboost.DMatrix(ROWS))))


def test_wrong_requests(served, tmp_path):
    servable = served(saved(tmp_path, train()), threads=1)
    refused(servable, r"shape \[20, 3\]", inputs=ROWS[:, :3])
    refused(servable, r"shape \[4\]", inputs=ROWS[0])
    refused(servable, "dtype float64", inputs=X)
    refused(servable, "no input 'x'", x=ROWS)


def test_what_is_missing_is_nan_or_as_configured(served, tmp_path):
    booster = train()
    path = saved(tmp_path, booster)
    holes = np.where(ROWS < 0.3, np.nan, ROWS).astype(np.float32)
    expected = booster.predict(xgboost.DMatrix(holes))
    assert np.array_equal(ask(served(path, threads=1), inputs=holes)["predict"], expected)
    servable = served(path, threads=1, options={"missing": -1})
    assert np.array_equal(ask(servable, inputs=np.nan_to_num(holes, nan=-1))["predict"], expected)


def test_margins_and_iterations(served, tmp_path):
    booster = train(KINDS > 0, objective="binary:logistic")
    path = saved(tmp_path, booster)
    data = xgboost.DMatrix(ROWS)
    outputs = (TensorSpec("margin", "float32", (-1,)), TensorSpec("predict", "float32", (-1,)))
    servable = served(path, threads=1, outputs=outputs, options={"iteration_range": [0, 2]})
    found = ask(servable, inputs=ROWS)
    assert list(found) == ["margin", "predict"]
    assert np.array_equal(
        found["margin"], booster.predict(data, output_margin=True, iteration_range=(0, 2))
    )
    assert np.array_equal(found["predict"], booster.predict(data, iteration_range=(0, 2)))


def test_an_estimator_that_stopped_early_uses_what_it_would_use(served, tmp_path):
    estimator = xgboost.XGBRegressor(n_estimators=30, early_stopping_rounds=2, n_jobs=1)
    estimator.fit(X, X[:, 0], eval_set=[(X, RNG.random(120))], verbose=False)
    booster = estimator.get_booster()
    assert estimator.best_iteration + 1 < booster.num_boosted_rounds()
    servable = served(saved(tmp_path, estimator), threads=1)
    assert np.array_equal(ask(servable, inputs=ROWS)["predict"], estimator.predict(ROWS))
    # As a booster, all of it.
    servable = served(saved(tmp_path, booster, "b.ubj"), threads=1)
    expected = booster.predict(xgboost.DMatrix(ROWS))
    assert np.array_equal(ask(servable, inputs=ROWS)["predict"], expected)
    assert not np.array_equal(expected, estimator.predict(ROWS))


def test_columns_by_name(served, tmp_path):
    names = ["age", "income", "debt", "years"]
    booster = train(names=names)
    path = saved(tmp_path, booster)
    specs = tuple(
        TensorSpec(name, "int64" if name == "age" else "float64", (-1,)) for name in reversed(names)
    )
    servable = served(path, threads=1, inputs=specs)
    assert list(servable.signatures["serving_default"].inputs) == names
    columns = {name: X[:20, number] for number, name in enumerate(names)}
    columns["age"] = np.arange(20)
    data = xgboost.DMatrix(np.column_stack(list(columns.values())), feature_names=names)
    assert np.allclose(ask(servable, **columns)["predict"], booster.predict(data))
    refused(servable, "differ in their number of rows", **columns | {"debt": X[:3, 0]})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"options": {"margins": True}}, "options.margins is nothing"),
        ({"options": {"iteration_range": 3}}, "iteration_range is"),
        ({"options": {"missing": "none"}}, "options.missing is a number"),
        ({"outputs": (TensorSpec("class", "int64", (-1,)),)}, "no output class"),
        ({"outputs": (TensorSpec("predict", "int64", (-1,)),)}, "output predict of the model"),
        ({"inputs": (TensorSpec("x", "float32", (-1, 3)),)}, "4 features, and not 3"),
        ({"inputs": (TensorSpec("x", "bytes", (-1, 4)),)}, "the model takes numbers"),
        ({"inputs": (TensorSpec("x", "float32", (2, 4)),)}, "neither a matrix nor a column"),
        ({"inputs": (TensorSpec("a", "float32", (-1,)),) * 2}, "no input for the feature b"),
        (
            {"inputs": tuple(TensorSpec(name, "float32", (-1,)) for name in "abcde")},
            "has the input e",
        ),
    ],
)
def test_configurations_that_are_none(served, tmp_path, config, says):
    path = saved(tmp_path, train(names=list("abcd")))
    with pytest.raises(UsageError, match=says):
        served(path, **config)


def test_regress(served, tmp_path):
    booster = train()
    servable = served(saved(tmp_path, booster), threads=1)
    found = ask(servable, signature="regress", inputs=ROWS)
    assert np.array_equal(found["outputs"], booster.predict(xgboost.DMatrix(ROWS)))
