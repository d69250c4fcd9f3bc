import numpy
import pytest
import xgboost

import strongroom
from strongroom.errors import FormatError, NoMatchingRecipient, NotFound, PayloadTampered, UsageError
from strongroom.loaders import xgboost as loader

RNG = numpy.random.default_rng(5)
ROWS, LABELS = RNG.random((400, 6), dtype="f4"), RNG.integers(0, 3, 400)
NAMES = ["age", "height", "weight", "income", "city", "ähnlich"]


@pytest.fixture(scope="module")
def trained():
    data = xgboost.DMatrix(ROWS, LABELS, feature_names=NAMES)
    parameters = {"objective": "multi:softprob", "num_class": 3, "max_depth": 5}
    return xgboost.train(parameters, data, 12)


@pytest.fixture(params=["ubj", "json"])
def plain(request, trained, tmp_path):
    path = tmp_path / f"m.{request.param}"
    trained.save_model(path)
    return path


def margins(booster):
    data = xgboost.DMatrix(ROWS, feature_names=booster.feature_names)
    return booster.predict(data, output_margin=True)


def test_booster(plain, seal, key):
    mine = loader.booster(seal(plain), key=key)
    theirs = xgboost.Booster(model_file=plain)
    assert type(mine) is xgboost.Booster
    assert numpy.array_equal(margins(mine), margins(theirs))
    assert mine.feature_names == NAMES
    assert mine.save_raw("json") == theirs.save_raw("json")


def test_parameters(plain, seal, key):
    sealed = seal(plain)
    parameters = {"nthread": 1, "seed": 7, "objective": "multi:softmax", "max_depth": 2}
    mine = loader.booster(sealed, parameters, key=key)
    theirs = xgboost.Booster(parameters, model_file=plain)
    assert mine.save_config() == theirs.save_config()
    with pytest.raises(TypeError, match="cache item"):
        loader.booster(sealed, None, ["x"], key=key)


def test_an_existing_booster(plain, seal, key):
    mine = xgboost.Booster()
    assert loader.load_model(mine, seal(plain), key=key) is mine
    assert numpy.array_equal(margins(mine), margins(xgboost.Booster(model_file=plain)))


@pytest.mark.parametrize("kind", [xgboost.XGBClassifier, xgboost.XGBRegressor, xgboost.XGBRanker])
def test_estimators(kind, tmp_path, seal, key):
    options = {"qid": numpy.repeat(range(4), 100)} if kind is xgboost.XGBRanker else {}
    kind(n_estimators=9, max_depth=4).fit(ROWS, LABELS, **options).save_model(tmp_path / "m.ubj")
    theirs = kind()
    theirs.load_model(tmp_path / "m.ubj")
    mine = loader.load_model(kind(), seal(tmp_path / "m.ubj"), key=key)
    assert type(mine) is kind
    assert numpy.array_equal(mine.predict(ROWS), theirs.predict(ROWS))
    assert mine.n_features_in_ == 6
    if kind is xgboost.XGBClassifier:
        assert numpy.array_equal(mine.predict_proba(ROWS), theirs.predict_proba(ROWS))
        assert list(mine.classes_) == [0, 1, 2]
        with pytest.raises(TypeError, match="different type"):
            loader.load_model(xgboost.XGBRegressor(), tmp_path / "m.ubj.sealed", key=key)


def test_file_of_a_directory(trained, tmp_path, seal, key):
    folder = tmp_path / "dir"
    (folder / "old").mkdir(parents=True)
    trained.save_model(folder / "model.ubj")
    (folder / "config.json").write_text("{}")
    sealed = seal(folder)
    assert numpy.array_equal(margins(loader.booster(sealed, key=key)), margins(trained))
    with strongroom.open(sealed, key=key) as model:
        assert numpy.array_equal(margins(loader.booster(model)), margins(trained))
        assert model.read("config.json") == b"{}"  # still open
        with pytest.raises(UsageError, match="takes no key"):
            loader.booster(model, key=key)
        with pytest.raises(NotFound, match=r"none\.ubj"):
            loader.booster(model, path="none.ubj")
    trained.save_model(folder / "old" / "model.ubj")
    strongroom.seal(folder, sealed, key=key, overwrite=True)
    with pytest.raises(UsageError, match="2 XGBoost files"):
        loader.booster(sealed, key=key)
    assert loader.booster(sealed, key=key, path="old/model.ubj").num_boosted_rounds() == 12


def test_json_of_a_directory(trained, tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    trained.save_model(folder / "model.json")
    (folder / "notes.txt").write_text("x")
    assert numpy.array_equal(margins(loader.booster(seal(folder), key=key)), margins(trained))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"binf" + b"\0" * 200, b"[1, 2]", b'{"learner": {"secret words', b'{"a: 1}'],
)
def test_not_a_model(content, tmp_path, seal, key):
    (tmp_path / "m.ubj").write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.ubj is not an XGBoost model") as error:
        loader.booster(seal(tmp_path / "m.ubj"), key=key)
    assert "secret" not in repr(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_what_xgboost_refuses(tmp_path, seal, key):
    (tmp_path / "m.json").write_text('{"learner": {}, "version": [3, 0, 0]}')
    with pytest.raises(xgboost.core.XGBoostError):
        loader.booster(seal(tmp_path / "m.json"), key=key)


def test_tampered_and_wrong_key(plain, seal, key):
    sealed = seal(plain)
    with pytest.raises(NoMatchingRecipient):
        loader.booster(sealed, key=bytes(32))
    raw = bytearray(sealed.read_bytes())
    raw[-100] ^= 1
    sealed.write_bytes(raw)
    estimator = xgboost.XGBClassifier()
    with pytest.raises(PayloadTampered):
        loader.load_model(estimator, sealed, key=key)
    assert not estimator.__sklearn_is_fitted__()
