import os
import pickle
import sys

import joblib
import numpy
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops import io as skops_io
from skops.io.exceptions import UntrustedTypesFoundException

import strongroom
from strongroom.errors import (
    FormatError,
    MissingExtra,
    NoMatchingRecipient,
    NotFound,
    PayloadTampered,
    UsageError,
)
from strongroom.loaders import sklearn as loader
from strongroom.model import memory_directory

RNG = numpy.random.default_rng(7)
ROWS, LABELS = RNG.random((300, 8)), RNG.integers(0, 3, 300)
TREES = ["sklearn.tree._tree.Tree"]


def fitted(kind):
    models = {
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
        "neighbours": KNeighborsClassifier(algorithm="brute"),
        "forest": RandomForestClassifier(20, random_state=1),
    }
    return models[kind].fit(ROWS, LABELS)


def assert_same(mine, theirs):
    assert type(mine) is type(theirs)
    assert numpy.array_equal(mine.predict_proba(ROWS), theirs.predict_proba(ROWS))
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize("compression", [0, 8])
@pytest.mark.parametrize("kind", ["pipeline", "neighbours", "forest"])
def test_skops(kind, compression, tmp_path, seal, key):
    skops_io.dump(fitted(kind), tmp_path / "m.skops", compression=compression)
    trusted = TREES if kind == "forest" else None
    mine = loader.skops_load(seal(tmp_path / "m.skops"), trusted, key=key)
    assert_same(mine, skops_io.load(tmp_path / "m.skops", trusted))


def test_skops_says_which_types_it_does_not_trust(tmp_path, seal, key):
    skops_io.dump(fitted("forest"), tmp_path / "m.skops")
    sealed = seal(tmp_path / "m.skops")
    with pytest.raises(UntrustedTypesFoundException, match=r"sklearn\.tree\._tree\.Tree"):
        loader.skops_load(sealed, key=key)
    with pytest.raises(TypeError, match="trusted must be a list"):
        loader.skops_load(sealed, True, key=key)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 1), ("xz", 1), ("lzma", 1)])
@pytest.mark.parametrize("kind", ["pipeline", "neighbours", "forest"])
def test_joblib(kind, compress, tmp_path, seal, key):
    joblib.dump(fitted(kind), tmp_path / "m.joblib", compress=compress)
    mine = loader.joblib_load(seal(tmp_path / "m.joblib"), key=key, allow_pickle=True)
    assert_same(mine, joblib.load(tmp_path / "m.joblib"))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle(protocol, tmp_path, seal, key):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(fitted("forest"), protocol))
    mine = loader.joblib_load(seal(tmp_path / "m.pkl"), key=key, allow_pickle=True)
    assert_same(mine, fitted("forest"))


@pytest.mark.parametrize("said", [{}, {"allow_pickle": False}, {"allow_pickle": 1}])
def test_pickle_needs_the_callers_word(said, tmp_path, seal, key):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    joblib.dump(Evil(), tmp_path / "m.joblib")
    with pytest.raises(UsageError, match="runs code") as error:
        loader.joblib_load(seal(tmp_path / "m.joblib"), key=key, **said)
    assert "skops_load" in error.value.hint
    assert "allow_pickle=True" in error.value.hint
    assert not (tmp_path / "touched").exists()


@pytest.fixture(autouse=True)
def nothing_stays_behind(monkeypatch):
    """Directories in memory that this process makes are gone after the test."""
    made = []
    real = memory_directory.tempfile.mkdtemp

    def mkdtemp(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(memory_directory.tempfile, "mkdtemp", mkdtemp)
    yield made
    assert not any(map(os.path.exists, made))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_mapped(mode, tmp_path, seal, key, nothing_stays_behind):
    folder = tmp_path / "dir" / "in"
    folder.mkdir(parents=True)
    joblib.dump({"weights": numpy.arange(1e5)}, folder / "m.joblib")
    mine = loader.joblib_load(seal(tmp_path / "dir"), mode, key=key, allow_pickle=True)["weights"]
    assert len(nothing_stays_behind) == 1
    assert isinstance(mine, numpy.memmap)
    assert numpy.array_equal(mine, numpy.arange(1e5))
    assert mine.flags.writeable is (mode != "r")
    # By its name another process finds nothing, rather than something else.
    assert not os.path.exists(mine.filename)


def test_mapped_and_compressed(tmp_path, seal, key):
    joblib.dump({"weights": numpy.arange(1e4)}, tmp_path / "m.joblib", compress=3)
    with pytest.warns(UserWarning, match="not compatible with compressed file"):
        mine = loader.joblib_load(seal(tmp_path / "m.joblib"), "r", key=key, allow_pickle=True)
    assert numpy.array_equal(mine["weights"], numpy.arange(1e4))


def test_other_arguments_reach_joblib(tmp_path, seal, key):
    joblib.dump(numpy.arange(5, dtype=">i4"), tmp_path / "m.joblib")
    sealed = seal(tmp_path / "m.joblib")
    order = {
        native: loader.joblib_load(
            sealed, key=key, allow_pickle=True, ensure_native_byte_order=native
        ).dtype.byteorder
        for native in (True, False)
    }
    assert order == {True: "=", False: ">"}


def test_file_of_a_directory(tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    model = fitted("pipeline")
    skops_io.dump(model, folder / "m.skops")
    joblib.dump(model, folder / "m.joblib")
    sealed = seal(folder)
    with strongroom.open(sealed, key=key) as opened:
        assert_same(loader.skops_load(opened), model)
        assert_same(loader.joblib_load(opened, allow_pickle=True), model)
        with pytest.raises(NotFound, match=r"none\.skops"):
            loader.skops_load(opened, path="none.skops")
    (folder / "m.pkl").write_bytes(pickle.dumps(model))
    strongroom.seal(folder, sealed, key=key, overwrite=True)
    with pytest.raises(UsageError, match="2 joblib files"):
        loader.joblib_load(sealed, key=key, allow_pickle=True)
    assert_same(loader.joblib_load(sealed, key=key, allow_pickle=True, path="m.pkl"), model)


def test_not_of_the_format(tmp_path, seal, key):
    joblib.dump([1], tmp_path / "m.joblib")
    with pytest.raises(FormatError, match="not a skops file") as error:
        loader.skops_load(seal(tmp_path / "m.joblib"), key=key)
    assert "joblib_load" in error.value.hint
    for name, content in (("empty", b""), ("cut", b"PK\3\4 and no more")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="not a skops file"):
            loader.skops_load(seal(tmp_path / name), key=key)
    (tmp_path / "old.pkl").write_bytes(b"ZF" + bytes(50))
    with pytest.raises(FormatError, match=r"before 0\.10"):
        loader.joblib_load(seal(tmp_path / "old.pkl"), key=key, allow_pickle=True)
    (tmp_path / "none.pkl").write_bytes(b"")
    sealed = seal(tmp_path / "none.pkl")
    with pytest.raises(EOFError):
        loader.joblib_load(sealed, key=key, allow_pickle=True)


@pytest.mark.parametrize("package", ["skops", "joblib"])
def test_missing_extra(package, tmp_path, seal, key, monkeypatch):
    joblib.dump([1], tmp_path / "m")
    sealed = seal(tmp_path / "m")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as error:
        if package == "skops":
            loader.skops_load(sealed, key=key)
        else:
            loader.joblib_load(sealed, key=key, allow_pickle=True)
    assert "strongroom[sklearn]" in error.value.hint


@pytest.mark.parametrize("mode", [None, "r"])
def test_tampered_and_wrong_key(mode, tmp_path, seal, key):
    joblib.dump(RNG.random(1 << 18), tmp_path / "m.joblib")
    skops_io.dump(fitted("neighbours"), tmp_path / "m.skops")
    sealed = seal(tmp_path / "m.joblib"), seal(tmp_path / "m.skops")
    with pytest.raises(NoMatchingRecipient):
        loader.joblib_load(sealed[0], key=bytes(32), allow_pickle=True)
    for path in sealed:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.joblib_load(sealed[0], mode, key=key, allow_pickle=True)
    with pytest.raises(PayloadTampered):
        loader.skops_load(sealed[1], key=key)
