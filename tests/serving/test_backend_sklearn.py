"""scikit-learn behind the server: matrices, text, columns of a table; classes, probabilities, numbers."""

from __future__ import annotations

import os
import sys

import joblib
import numpy as np
import pandas
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
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops_io

from strongroom.errors import UsageError
from strongroom.serving.tensors import TensorSpec

__all__ = ["served"]

RNG = np.random.default_rng(7)
X = RNG.random((90, 4))
NUMBERS = (X[:, 0] > 0.5).astype(int) + (X[:, 1] > 0.5)
NAMES = np.array(["low", "middle", "höchste"])[NUMBERS]
ROWS = X[:20]
TREE = {"options": {"trusted": ["sklearn.tree._tree.Tree"]}}


def saved(tmp_path, estimator):
    skops_io.dump(estimator, tmp_path / "m.skops")
    return tmp_path / "m.skops"


CASES = {
    "numbers as classes": (LogisticRegression().fit(X, NUMBERS), "int64", "predict_proba", (-1, 3)),
    "names as classes": (LogisticRegression().fit(X, NAMES), "bytes", "predict_proba", (-1, 3)),
    "no as a class": (LogisticRegression().fit(X, NUMBERS > 0), "bool", "predict_proba", (-1, 2)),
    "two": (SVC().fit(X, NUMBERS > 0), "bool", "decision_function", (-1,)),
    "pipeline": (
        make_pipeline(StandardScaler(), SVC()).fit(X, NAMES),
        *("bytes", "decision_function", (-1, 3)),
    ),
    "regression": (LinearRegression().fit(X, X[:, 0]), "float64", None, None),
    "cluster": (KMeans(3, n_init=1, random_state=0).fit(X), "int32", None, None),
}


def as_bytes(array):
    return np.array([str(one).encode() for one in array], object)


@pytest.mark.parametrize("case", CASES)
def test_as_the_estimator_itself(served, tmp_path, case):
    estimator, dtype, second, shape = CASES[case]
    servable = served(saved(tmp_path, estimator))
    assert servable.platform == "sklearn"
    outputs = {"predict": (dtype, (-1,))} | ({second: ("float64", shape)} if second else {})
    assert signature_of(servable) == ({"inputs": ("float64", (-1, 4))}, outputs)
    found = ask(servable, inputs=ROWS)
    expected = estimator.predict(ROWS)
    assert found["predict"].tolist() == (as_bytes(expected) if dtype == "bytes" else expected).tolist()
    if second:
        assert np.allclose(found[second], getattr(estimator, second)(ROWS))
    empty = ask(servable, inputs=ROWS[:0])
    assert {name: one.shape for name, one in empty.items()} == {
        name: (0, *said[1:]) for name, (_, said) in outputs.items()
    }


def test_several_threads_at_once(served, tmp_path):
    forest = RandomForestClassifier(5, n_jobs=2, random_state=0).fit(X, NUMBERS)
    servable = served(saved(tmp_path, forest), **TREE)
    check_threads(servable, "inputs", ROWS, ("predict_proba", forest.predict_proba(ROWS)))


def test_batches(served, tmp_path):
    estimator = LogisticRegression().fit(X, NUMBERS)
    servable = served(saved(tmp_path, estimator), batching=BATCHING)
    check_batches(servable, "inputs", ROWS, ("predict_proba", estimator.predict_proba(ROWS)))


@pytest.mark.parametrize("batching", [None, BATCHING], ids=["alone", "batched"])
def test_wrong_requests(served, tmp_path, batching):
    servable = served(saved(tmp_path, LogisticRegression().fit(X, NUMBERS)), batching=batching)
    refused(servable, r"shape \[20, 3\]", inputs=ROWS[:, :3])
    refused(servable, "dtype float32", inputs=ROWS.astype(np.float32))
    for value in (np.nan, np.inf):
        rows = np.full((2, 4), 12345.678)
        rows[1, 2] = value
        error = refused(servable, r"^The model cannot compute with these values\.$", inputs=rows)
        assert error.__cause__ is None
        assert error.__suppress_context__
    assert ask(servable, inputs=ROWS)["predict"].shape == (20,)


def test_a_model_that_knows_what_is_missing(served, tmp_path):
    tree = DecisionTreeClassifier(max_depth=3).fit(np.where(X < 0.1, np.nan, X), NUMBERS)
    servable = served(saved(tmp_path, tree), **TREE)
    holes = np.where(ROWS < 0.3, np.nan, ROWS)
    assert np.array_equal(ask(servable, inputs=holes)["predict"], tree.predict(holes))


def test_the_configuration_says_dtype_and_outputs(served, tmp_path):
    estimator = LogisticRegression().fit(X, NUMBERS)
    servable = served(
        saved(tmp_path, estimator),
        inputs=(TensorSpec("x", "float32", (-1, 4)),),
        outputs=(TensorSpec("decision_function", "float64", (-1, 3)),),
    )
    rows = ROWS.astype(np.float32)
    found = ask(servable, x=rows)
    assert list(found) == ["decision_function"]
    assert np.allclose(found["decision_function"], estimator.decision_function(rows))
    with pytest.raises(UsageError, match="no output transform"):
        served(tmp_path / "m.skops", outputs=(TensorSpec("transform", "float64", (-1, 3)),))
    with pytest.raises(UsageError, match="4 features, and not 3"):
        served(tmp_path / "m.skops", inputs=(TensorSpec("x", "float32", (-1, 3)),))


def test_several_outputs(served, tmp_path):
    labels = np.column_stack([NAMES, NAMES == "low"])
    estimator = MultiOutputClassifier(LogisticRegression()).fit(X, labels)
    servable = served(saved(tmp_path, estimator))
    # Their probabilities are no array.
    assert signature_of(servable)[1] == {"predict": ("bytes", (-1, 2))}
    assert ask(servable, inputs=ROWS)["predict"].tolist() == as_bytes_of(estimator.predict(ROWS))


def as_bytes_of(matrix):
    return [[str(one).encode() for one in row] for row in matrix]


def test_a_matrix_of_text(served, tmp_path):
    words = np.column_stack([NAMES, np.where(X[:, 2] > 0.5, "a", "b")]).astype(object)
    pipeline = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(words, NUMBERS)
    path = saved(tmp_path, pipeline)
    servable = served(path, inputs=(TensorSpec("words", "bytes", (-1, 2)),))
    rows = np.array(as_bytes_of(words[:20]), object)
    assert np.allclose(ask(servable, words=rows)["predict_proba"], pipeline.predict_proba(words[:20]))
    # The same as columns without names.
    columns = tuple(TensorSpec(name, "bytes", (-1,)) for name in "ab")
    servable = served(path, inputs=columns)
    found = ask(servable, a=rows[:, 0], b=rows[:, 1])
    assert np.array_equal(found["predict"], pipeline.predict(words[:20]))


def test_a_search_for_parameters(served, tmp_path):
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2).fit(X, NAMES)
    joblib.dump(search, tmp_path / "m.joblib")
    servable = served(tmp_path / "m.joblib", options={"allow_pickle": True}, threads=1)
    found = ask(servable, inputs=ROWS)
    assert found["predict"].tolist() == as_bytes(search.predict(ROWS)).tolist()
    assert "classify" in servable.signatures


def test_a_transformer(served, tmp_path):
    scaler = StandardScaler().fit(X)
    servable = served(saved(tmp_path, scaler))
    assert np.allclose(ask(servable, inputs=ROWS)["transform"], scaler.transform(ROWS))


TEXTS = ["good and fine", "fine", "bad and poor", "poor", "schön good", "bad bad"]


def test_text(served, tmp_path):
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression())
    pipeline.fit(TEXTS, ["+", "+", "-", "-", "+", "-"])
    path = saved(tmp_path, pipeline)
    with pytest.raises(UsageError, match="does not say how many features") as caught:
        served(path)
    assert "dtype: bytes" in caught.value.hint
    text = (TensorSpec("text", "bytes", (-1,)),)
    servable = served(path, inputs=text, batching=BATCHING)
    texts = np.array([one.encode() for one in TEXTS], object)
    found = ask(servable, text=texts)
    assert found["predict"].tolist() == as_bytes(pipeline.predict(TEXTS)).tolist()
    assert np.allclose(found["predict_proba"], pipeline.predict_proba(TEXTS))
    refused(servable, r"^Input text is not text in UTF-8\.$", text=np.array([b"a\xff"], object))
    # Vectors of words are sparse matrices.
    vectors = TfidfVectorizer().fit(TEXTS)
    found = ask(served(saved(tmp_path, vectors), inputs=text), text=texts)["transform"]
    assert np.allclose(found, vectors.transform(TEXTS).toarray())


@pytest.fixture
def table():
    cities = np.array(["Bonn", "Köln", "Ulm"])[NUMBERS]
    return pandas.DataFrame({"age": np.arange(90) % 7, "city": cities, "income": X[:, 2]})


COLUMNS = (
    TensorSpec("city", "bytes", (-1,)),
    TensorSpec("age", "int64", (-1,)),
    TensorSpec("income", "float64", (-1,)),
)


@pytest.mark.parametrize("unknown", ["error", "ignore"])
def test_columns_of_a_table(served, tmp_path, table, unknown):
    encoded = ColumnTransformer(
        [("city", OneHotEncoder(handle_unknown=unknown), ["city"])], remainder="passthrough"
    )
    pipeline = make_pipeline(encoded, LogisticRegression(max_iter=2000)).fit(table, NAMES)
    servable = served(saved(tmp_path, pipeline), inputs=COLUMNS, batching=BATCHING)
    assert list(servable.signatures["serving_default"].inputs) == ["age", "city", "income"]
    some = table[:20]
    columns = {
        "age": some["age"].to_numpy(),
        "city": as_bytes(some["city"]),
        "income": some["income"].to_numpy(),
    }
    found = ask(servable, **columns)
    assert found["predict"].tolist() == as_bytes(pipeline.predict(some)).tolist()
    assert np.allclose(found["predict_proba"], pipeline.predict_proba(some))
    columns["city"] = np.array([b"Timbuktu"] * 20, object)
    if unknown == "ignore":
        assert ask(servable, **columns)["predict"].shape == (20,)
    else:
        error = refused(servable, r"^The model cannot compute with these values\.$", **columns)
        assert "Timbuktu" not in str(error)


def test_columns_of_numbers_and_a_matrix(served, tmp_path, table):
    numbers = table[["age", "income"]]
    estimator = LinearRegression().fit(numbers, X[:, 0])
    path = saved(tmp_path, estimator)
    expected = estimator.predict(numbers)
    columns = {name: numbers[name].to_numpy() for name in numbers}
    assert np.allclose(ask(served(path, inputs=COLUMNS[1:]), **columns)["predict"], expected)
    # No warning of scikit-learn for each request, which is for notebooks.
    assert np.allclose(ask(served(path), inputs=numbers.to_numpy(float))["predict"], expected)
    with pytest.raises(UsageError, match="no input for the feature age"):
        served(path, inputs=COLUMNS[2:])


def test_without_pandas(served, tmp_path, table, monkeypatch):
    path = saved(tmp_path, LinearRegression().fit(table[["age", "income"]], X[:, 0]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="from pandas alone"):
        served(path, inputs=COLUMNS[1:])


def test_an_output_that_cannot_be_tried(served, tmp_path, table):
    encoder = OneHotEncoder(sparse_output=False).fit(table[["city"]])
    path = saved(tmp_path, encoder)
    with pytest.raises(UsageError, match="does not say what transform gives") as caught:
        served(path, inputs=COLUMNS[:1])
    assert "name: transform" in caught.value.hint
    said = (TensorSpec("transform", "float64", (-1, 3)),)
    servable = served(path, inputs=COLUMNS[:1], outputs=said)
    found = ask(servable, city=as_bytes(table["city"]))["transform"]
    assert np.array_equal(found, encoder.transform(table[["city"]]))
    regression = make_pipeline(OneHotEncoder(), LinearRegression()).fit(table[["city"]], X[:, 0])
    servable = served(saved(tmp_path, regression), inputs=COLUMNS[:1])
    found = ask(servable, city=as_bytes(table["city"]))["predict"]
    assert np.allclose(found, regression.predict(table[["city"]]))


def test_classify_and_regress(served, tmp_path):
    estimator = LogisticRegression().fit(X, NAMES)
    servable = served(saved(tmp_path, estimator), batching=BATCHING)
    found = ask(servable, signature="classify", inputs=ROWS)
    assert found["classes"].tolist() == [as_bytes(estimator.classes_).tolist()] * 20
    assert np.allclose(found["scores"], estimator.predict_proba(ROWS))
    regression = LinearRegression().fit(X, X[:, 0])
    servable = served(saved(tmp_path, regression))
    found = ask(servable, signature="regress", inputs=ROWS)["outputs"]
    assert np.allclose(found, regression.predict(ROWS))


def test_types_that_skops_does_not_trust(served, tmp_path):
    path = saved(tmp_path, DecisionTreeClassifier(max_depth=2).fit(X, NUMBERS))
    with pytest.raises(UsageError, match="does not trust") as caught:
        served(path)
    assert caught.value.hint.endswith("options: {trusted: ['sklearn.tree._tree.Tree']}.")
    with pytest.raises(UsageError, match="trusted is a list"):
        served(path, options={"trusted": True})
    assert ask(served(path, **TREE), inputs=ROWS)["predict"].shape == (20,)


@pytest.mark.parametrize("name", ["m.joblib", "m.pkl"])
def test_joblib_only_where_it_is_allowed(served, tmp_path, name):
    estimator = LogisticRegression().fit(X, NUMBERS)
    joblib.dump(estimator, tmp_path / name)
    for options in ({}, {"allow_pickle": 1}, {"allow_pickle": False}):
        with pytest.raises(UsageError, match="runs code of its author") as caught:
            served(tmp_path / name, options=options)
        assert "options: {allow_pickle: true}" in caught.value.hint
    servable = served(tmp_path / name, options={"allow_pickle": True})
    assert np.array_equal(ask(servable, inputs=ROWS)["predict"], estimator.predict(ROWS))
    joblib.dump({"a": 1}, tmp_path / name)
    with pytest.raises(UsageError, match="A dict has no method"):
        served(tmp_path / name, options={"allow_pickle": True})


class Spying(BaseEstimator):
    """Says in how many processes, and with how many workers, joblib computes."""

    n_features_in_ = 4

    def __init__(self, n_jobs=None):
        self.n_jobs = n_jobs

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict(self, X):
        parallel = joblib.Parallel(n_jobs=self.n_jobs, prefer="processes")
        pids = parallel(joblib.delayed(os.getpid)() for _ in range(4))
        return np.full(len(X), 10 * len({*pids, os.getpid()}) + self.n_jobs)


def test_workers_are_threads_and_as_many_as_configured(served, tmp_path):
    joblib.dump(make_pipeline(Spying(n_jobs=-1)), tmp_path / "m.joblib")
    options = {"allow_pickle": True}
    servable = served(tmp_path / "m.joblib", options=options, threads=3)
    assert ask(servable, inputs=ROWS)["predict"][0] == 13
