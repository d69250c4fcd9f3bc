import lightgbm
import numpy
import pytest

import strongroom
from strongroom.errors import FormatError, NoMatchingRecipient, NotFound, PayloadTampered
from strongroom.loaders import lightgbm as loader

RNG = numpy.random.default_rng(6)
ROWS, LABELS = RNG.random((500, 5)), RNG.integers(0, 3, 500)
PARAMETERS = {"objective": "multiclass", "num_class": 3, "num_leaves": 15, "verbose": -1}


@pytest.fixture
def plain(tmp_path):
    data = lightgbm.Dataset(ROWS, LABELS, feature_name=["a", "b", "c", "d", "große"])
    path = tmp_path / "m.txt"
    lightgbm.train(PARAMETERS, data, 8).save_model(path)
    return path


def test_booster(plain, seal, key):
    mine = loader.booster(seal(plain), key=key)
    theirs = lightgbm.Booster(model_file=plain)
    assert type(mine) is lightgbm.Booster
    assert numpy.array_equal(mine.predict(ROWS), theirs.predict(ROWS))
    assert mine.feature_name() == theirs.feature_name()
    assert mine.model_to_string() == theirs.model_to_string()
    assert mine.params == theirs.params


def test_categories_of_the_training_data(tmp_path, seal, key):
    """They lie behind the end of what the library itself reads."""
    data = lightgbm.Dataset(ROWS, LABELS)
    booster = lightgbm.train(PARAMETERS, data, 2)
    booster.pandas_categorical = [["red", "green"], [1, 2, 3]]
    booster.save_model(tmp_path / "m.txt")
    mine = loader.booster(seal(tmp_path / "m.txt"), key=key)
    assert mine.pandas_categorical == [["red", "green"], [1, 2, 3]]


def test_parameters_are_those_of_the_file(plain, seal, key):
    with pytest.warns(UserWarning, match="Ignoring params"):
        mine = loader.booster(seal(plain), {"num_leaves": 3}, key=key)
    assert mine.params["num_leaves"] == 15


def test_file_of_a_directory(plain, tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    plain.rename(folder / "model.txt")
    (folder / "README.md").write_text("x")
    sealed = seal(folder)
    expected = lightgbm.Booster(model_file=folder / "model.txt").predict(ROWS)
    assert numpy.array_equal(loader.booster(sealed, key=key).predict(ROWS), expected)
    with strongroom.open(sealed, key=key) as model:
        assert numpy.array_equal(loader.booster(model, path="model.txt").predict(ROWS), expected)
        with pytest.raises(NotFound, match=r"none\.txt"):
            loader.booster(model, path="none.txt")


@pytest.mark.parametrize("content", [b"", b"tree\n", b"secret text", b"\0" * 100, "cut", "CR LF"])
def test_not_a_model(content, plain, tmp_path, seal, key):
    """Cut, or with CR LF, LightGBM itself would crash."""
    whole = plain.read_bytes()
    if content == "cut":
        content = whole[: whole.index(b"\nend of trees") - 50]
    elif content == "CR LF":
        content = whole.replace(b"\n", b"\r\n")
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(FormatError, match=r"bad\.txt is not a whole LightGBM model") as error:
        loader.booster(seal(tmp_path / "bad.txt"), key=key)
    assert "secret" not in repr(error.value)
    assert error.value.__context__ is None


def test_what_lightgbm_refuses(tmp_path, seal, key):
    (tmp_path / "m.txt").write_bytes(b"tree\nversion=v4\n\nend of trees\n")
    with pytest.raises(lightgbm.basic.LightGBMError, match="number of classes"):
        loader.booster(seal(tmp_path / "m.txt"), key=key)


def test_tampered_and_wrong_key(plain, seal, key):
    sealed = seal(plain)
    with pytest.raises(NoMatchingRecipient):
        loader.booster(sealed, key=bytes(32))
    raw = bytearray(sealed.read_bytes())
    raw[-100] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.booster(sealed, key=key)
