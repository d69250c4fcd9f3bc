import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib

import strongroom
from strongroom.errors import (
    LimitExceeded,
    MissingExtra,
    NotFound,
    PayloadTampered,
    StrongroomError,
    UsageError,
)
from strongroom.loaders import keras as loader
from strongroom.loaders import source

pytestmark = [
    # Keras gives NumPy tensors of TensorFlow, which do not know the newest argument of __array__.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    # What Keras itself says of its older format, when the tests write it.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """Nothing that is made among temporary files, or in /dev/shm, stays there."""
    places = []
    real = tempfile.mkdtemp

    def mkdtemp(suffix=None, prefix=None, dir=None):
        places.append(real(suffix, prefix, dir))
        return places[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    yield places
    assert [place for place in places if os.path.exists(place)] == []


@pytest.fixture
def no_temporary_files(made, monkeypatch):
    """From here on, none are made but in /dev/shm."""
    real = tempfile.mkdtemp

    def mkdtemp(suffix=None, prefix=None, dir=None):
        assert str(dir).startswith("/dev/shm"), "a temporary file"
        return real(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    for name in ("NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.delattr(tempfile, name)


def same_weights(one, two):
    for pair in zip(one.get_weights(), two.get_weights(), strict=True):
        numpy.testing.assert_array_equal(*pair)
    return True


def network():
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )


IMAGES = numpy.random.default_rng(8).random((4, 12, 12, 3), "f4")


@pytest.fixture(scope="module")
def trained():
    """A compiled model whose optimizer has a state."""
    model = network()
    model.compile(
        optimizer=keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy()
    )
    model.fit(IMAGES, numpy.arange(4), epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """That model in all forms. To write HDF5 changes how Keras (3.15) compiles it later: that is last."""
    folder = tmp_path_factory.mktemp("files")
    trained.save(folder / "m.keras")
    keras.saving.save_model(trained, folder / "unzipped", zipped=False)
    trained.save_weights(folder / "m.weights.h5")
    (folder / "shards").mkdir()
    trained.save_weights(folder / "shards" / "m.weights.json", max_shard_size=1e-6)
    assert len(list((folder / "shards").iterdir())) > 2
    with h5py.File(folder / "old.h5", "w") as file:  # as Keras 2 wrote weights alone
        legacy_h5_format.save_weights_to_hdf5_group(file, trained)
    trained.save(folder / "m.h5")
    shutil.copy(folder / "m.h5", folder / "m.hdf5")
    return folder


def test_resnet(tmp_path, seal, key, request):
    keras.utils.set_random_seed(9)
    model = keras.applications.ResNet50(weights=None)
    model.save(tmp_path / "resnet.keras")
    sealed = seal(tmp_path / "resnet.keras")
    (tmp_path / "resnet.keras").unlink()
    request.getfixturevalue("no_temporary_files")
    mine = loader.load_model(sealed, key=key)
    assert same_weights(mine, model)
    image = numpy.random.default_rng(10).random((1, 224, 224, 3), "f4")
    expected = numpy.asarray(model(image))
    numpy.testing.assert_array_equal(numpy.asarray(mine(image)), expected)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.hdf5"])
@pytest.mark.parametrize("compile", [True, False])
def test_model_and_optimizer(tmp_path, seal, key, trained, files, name, compile, request):
    theirs = keras.saving.load_model(files / name, compile=compile)
    sealed = seal(files / name)
    request.getfixturevalue("no_temporary_files")
    mine = loader.load_model(sealed, compile=compile, key=key)
    assert same_weights(mine, trained)
    assert mine.compiled == theirs.compiled == compile
    if compile:
        assert type(mine.optimizer) is type(theirs.optimizer) is keras.optimizers.Adam
        assert mine.optimizer.iterations == 2
        for pair in zip(mine.optimizer.variables, theirs.optimizer.variables, strict=True):
            numpy.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, pair))
    expected = trained.predict(IMAGES, verbose=0)
    numpy.testing.assert_array_equal(mine.predict(IMAGES, verbose=0), expected)


@keras.saving.register_keras_serializable("tests")
class Words(keras.layers.Layer):
    """A layer with a file of its own, as the layers for text have."""

    def __init__(self, words=(), **options):
        super().__init__(**options)
        self.words = list(words)

    def save_assets(self, dir_path):
        with open(os.path.join(dir_path, "words.txt"), "w") as file:
            file.write("\n".join(self.words))

    def load_assets(self, dir_path):
        with open(os.path.join(dir_path, "words.txt")) as file:
            self.words = file.read().split("\n")

    def call(self, x):
        return x * len(self.words)


def with_assets():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), Words(["eins", "zwei"])])


@pytest.mark.parametrize("way", ["archive", "compressed", "folder"])
def test_assets(tmp_path, seal, key, way, request):
    model = with_assets()
    plain = tmp_path / "m.keras"
    model.save(plain)
    if way == "compressed":
        shutil.move(plain, tmp_path / "old")
        with (
            zipfile.ZipFile(tmp_path / "old") as old,
            zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))
    elif way == "folder":
        plain = tmp_path / "m"
        keras.saving.save_model(model, plain, zipped=False)
        assert (plain / "assets").is_dir()
    sealed = seal(plain)
    request.getfixturevalue("no_temporary_files")
    mine = loader.load_model(sealed, key=key)
    assert mine.layers[-1].words == ["eins", "zwei"]
    assert same_weights(mine, model)


def test_vocabulary(tmp_path, seal, key, request):
    lookup = keras.layers.StringLookup(vocabulary=["eins", "zwei", "drei"])
    model = keras.Sequential([keras.Input((2,), dtype="string"), lookup, keras.layers.Embedding(4, 3)])
    model.save(tmp_path / "m.keras")
    sealed = seal(tmp_path / "m.keras")
    request.getfixturevalue("no_temporary_files")
    mine = loader.load_model(sealed, key=key)
    assert mine.layers[0].get_vocabulary() == lookup.get_vocabulary()
    words = keras.ops.convert_to_tensor([["drei", "null"]])
    numpy.testing.assert_array_equal(mine(words), model(words))


def test_folder_of_a_directory(tmp_path, seal, key, trained, files):
    folder = tmp_path / "dir"
    folder.mkdir()
    shutil.copytree(files / "unzipped", folder / "b")
    shutil.copy(files / "m.keras", folder / "a.keras")
    shutil.copy(files / "m.weights.h5", folder / "c.weights.h5")
    (folder / "README.md").write_text("x")
    sealed = seal(folder)
    for path in ("b", "b/", "a.keras"):
        assert same_weights(loader.load_model(sealed, key=key, path=path), trained)
    with pytest.raises(UsageError, match="3 Keras files"):
        loader.load_model(sealed, key=key)
    with pytest.raises(UsageError, match="holds weights, and no model") as error:
        loader.load_model(sealed, key=key, path="c.weights.h5")
    assert "load_weights" in error.value.hint
    with pytest.raises(NotFound):
        loader.load_model(sealed, key=key, path="d.keras")
    with pytest.raises(UsageError, match="no Keras model"):
        loader.load_model(sealed, key=key, path="README.md")
    with strongroom.open(sealed, key=key) as model:
        assert same_weights(loader.load_model(model, path="a.keras"), trained)
        assert model.read("README.md") == b"x"
    (folder / "b" / "model.weights.h5").unlink()
    strongroom.seal(folder, sealed, key=key, overwrite=True)
    with pytest.raises(NotFound, match=r"no model\.weights\.h5 beside it"):
        loader.load_model(sealed, key=key, path="b")


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="random_normal")

    def call(self, x):
        return x * self.scale


def test_custom_objects(tmp_path, seal, key):
    model = keras.Sequential([keras.Input((3,)), Scale()])
    model.save(tmp_path / "m.keras")
    sealed = seal(tmp_path / "m.keras")
    with pytest.raises(TypeError, match="Scale"):
        loader.load_model(sealed, key=key)
    assert same_weights(loader.load_model(sealed, {"Scale": Scale}, key=key), model)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_safe_mode(tmp_path, seal, key, name):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / name)
    with pytest.raises(ValueError, match="safe_mode") as theirs:
        keras.saving.load_model(tmp_path / name)
    sealed = seal(tmp_path / name)
    with pytest.raises(ValueError, match="safe_mode") as mine:
        loader.load_model(sealed, key=key)
    assert str(mine.value) == str(theirs.value)
    assert loader.load_model(sealed, safe_mode=False, key=key)(numpy.ones((1, 3)))[0, 0] == 2


def test_safe_mode_of_a_keras_without_it(tmp_path, seal, key, monkeypatch):
    """As Keras 3.6 to 3.8, which run what is in HDF5 whatever safe_mode says."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    model = keras.Sequential([keras.Input((3,)), inner])
    model.save(tmp_path / "m.h5")
    sealed = seal(tmp_path / "m.h5")
    monkeypatch.setattr(loader, "_unpublished", lambda *arguments: None)
    with pytest.raises(UsageError, match="Lambda") as error:
        loader.load_model(sealed, key=key)
    assert "Update Keras" in error.value.hint
    assert loader.load_model(sealed, safe_mode=False, key=key)(numpy.ones((1, 3)))[0, 0] == 2


def test_when_keras_believes_that_memory_is_short(
    tmp_path, seal, key, trained, files, monkeypatch, request
):
    """As without psutil, where it believes so of every model of 1 GB: it unpacks, but in memory."""
    sealed = seal(files / "m.keras")
    monkeypatch.setattr(saving_lib, "is_memory_sufficient", lambda model: False)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    opened = []

    class Store(saving_lib.H5IOStore):
        def __init__(self, path, *arguments, **options):
            opened.append(path)
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr(saving_lib, "H5IOStore", Store)
    request.getfixturevalue("no_temporary_files")
    assert same_weights(loader.load_model(sealed, key=key), trained)
    assert set(tmp_path.iterdir()) == before
    assert [str(path).startswith("/dev/shm/strongroom-") for path in opened] == [True]


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_without_unpublished_functions(tmp_path, seal, key, trained, files, name, monkeypatch, request):
    """Keras gets a file, in memory."""
    sealed = seal(files / name)
    real, seen = keras.saving.load_model, []
    monkeypatch.setattr(
        keras.saving, "load_model", lambda path, **options: seen.append(path) or real(path, **options)
    )
    monkeypatch.setattr(loader, "_unpublished", lambda *arguments: None)
    request.getfixturevalue("no_temporary_files")
    assert same_weights(loader.load_model(sealed, key=key), trained)
    assert [path.startswith("/dev/shm/strongroom-") for path in seen] == [True]


def test_unpublished_functions_are_looked_at():
    options = dict.fromkeys(("custom_objects", "compile", "safe_mode"))
    archives = ("keras.src.saving.saving_lib", "_load_model_from_fileobj")
    assert loader._unpublished(*archives, options)
    assert loader._unpublished(
        "keras.src.legacy.saving.legacy_h5_format", "load_model_from_hdf5", options
    )
    assert loader._unpublished(*archives, options | {"other": 1}) is None
    assert loader._unpublished(archives[0], "none", options) is None
    assert loader._unpublished("keras.src.none", "none", options) is None


def test_weights_for_a_keras_that_wants_paths(
    tmp_path, seal, key, trained, files, monkeypatch, request
):
    sealed = seal(files / "m.weights.h5")
    real, seen = keras.Model.load_weights, []

    def load_weights(self, filepath, **options):
        seen.append(str(filepath))
        real(self, str(filepath), **options)

    monkeypatch.setattr(keras.Model, "load_weights", load_weights)
    request.getfixturevalue("no_temporary_files")
    model = network()
    loader.load_weights(model, sealed, key=key)
    assert same_weights(model, trained)
    assert [path.startswith("/dev/shm/strongroom-") for path in seen] == [True] * 2


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras", "m.h5", "old.h5", "shards"])
def test_weights(seal, key, trained, files, name, request):
    sealed = seal(files / name)
    request.getfixturevalue("no_temporary_files")
    model = network()
    model.set_weights([weight + 1 for weight in model.get_weights()])
    path = "m.weights.json" if name == "shards" else None
    assert loader.load_weights(model, sealed, key=key, path=path) is None
    assert same_weights(model, trained)


def test_weights_and_their_arguments(tmp_path, seal, key, trained, files):
    sealed = seal(files / "m.weights.h5")
    other = keras.Sequential([*network().layers[:-1], keras.layers.Dense(6)])
    other.build((None, 12, 12, 3))
    with pytest.raises(ValueError, match="shape"):
        loader.load_weights(other, sealed, key=key)
    with pytest.warns(UserWarning, match="could not be loaded"):
        loader.load_weights(other, sealed, True, key=key)
    numpy.testing.assert_array_equal(other.get_weights()[0], trained.get_weights()[0])
    with pytest.raises(ValueError, match="by_name"):
        loader.load_weights(other, sealed, key=key, by_name=True)
    untouched = network()
    layers = untouched.layers
    loader.load_weights(untouched, sealed, key=key, objects_to_skip=[layers[0]])
    numpy.testing.assert_array_equal(layers[0].get_weights()[0], network().get_weights()[0])
    numpy.testing.assert_array_equal(layers[-1].get_weights()[0], trained.get_weights()[-2])


def test_no_weights(tmp_path, seal, key):
    (tmp_path / "m.bin").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match=r"\.weights\.json, \.h5"):
        loader.load_weights(network(), seal(tmp_path / "m.bin"), key=key)
    for content in ("[]", "{", '{"weight_map": 3}'):
        (tmp_path / "m.weights.json").write_text(content)
        sealed = tmp_path / "s"
        strongroom.seal(tmp_path / "m.weights.json", sealed, key=key, overwrite=True)
        with pytest.raises(UsageError, match="no index"):
            loader.load_weights(network(), sealed, key=key)
    # The shards are those beside the index, whatever it says.
    (tmp_path / "m.weights.json").write_text(json.dumps({"weight_map": {"/a/vars": "../../etc/x.h5"}}))
    with pytest.raises(NotFound, match=r"x\.h5"):
        loader.load_weights(network(), seal(tmp_path / "m.weights.json"), key=key)


def test_other_archives(tmp_path, seal, key):
    place = tmp_path / "m.keras"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(UsageError, match="no archive of Keras"):
        loader.load_model(seal(place), key=key)
    place.write_bytes(place.read_bytes()[:-10])
    strongroom.seal(place, tmp_path / "s", key=key)
    with pytest.raises(UsageError, match="damaged"):
        loader.load_model(tmp_path / "s", key=key)


@pytest.mark.parametrize("files", [1, 9])
def test_archives_that_expand_too_far(tmp_path, seal, key, monkeypatch, files):
    """One large file, or several that are not: they count together."""
    monkeypatch.setattr(source, "_EXPANSION_FLOOR", 1 << 20)
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr("model.weights.h5", bytes((2 << 20) // files))
        for number in range(1, files):
            archive.writestr(f"assets/{number}", bytes((2 << 20) // files))
    with pytest.raises(LimitExceeded, match="expands too far"):
        loader.load_model(seal(tmp_path / "m.keras"), key=key)


def damage_weights(content, at):
    """Uncompressed and longer than the archive: the rest would be zeros."""
    struct.pack_into("<II", content, at + 20, 1 << 20, 1 << 20)


def damage_asset(content, at):
    content[content.index(b"an asset")] ^= 1


@pytest.mark.parametrize("damage", [damage_weights, damage_asset])
def test_archives_that_are_damaged(tmp_path, seal, key, damage):
    place = tmp_path / "m.keras"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("model.weights.h5", bytes(5000))
        for name in ("config.json", "metadata.json", "assets/a"):
            archive.writestr(name, b"an asset")
    content = bytearray(place.read_bytes())
    damage(content, content.index(b"PK\1\2"))
    place.write_bytes(content)
    with pytest.raises(StrongroomError, match="damaged"):
        loader.load_model(seal(place), key=key)


@pytest.mark.parametrize("other", ["./model.weights.h5", "model.weights.h5/x"])
def test_two_files_in_one_place(tmp_path, seal, key, other):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name in (other, "config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, b"{}")
    with pytest.raises(StrongroomError, match=r"strongroom-\d+-"):
        loader.load_model(seal(tmp_path / "m.keras"), key=key)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"weight_map": {"a": [5]}}', b'{"weight_map": {"a": 5}}', b"[" * 100_000]
)
def test_indices_of_weights_that_are_none(tmp_path, seal, key, content):
    (tmp_path / "m.weights.json").write_bytes(content)
    with pytest.raises(UsageError, match="no index of Keras weights"):
        loader.load_weights(None, seal(tmp_path / "m.weights.json"), key=key)


def test_names_that_lead_outside(tmp_path, seal, key, trained, files):
    shutil.copy(files / "m.keras", tmp_path)
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as archive:
        archive.writestr("../../outside", b"x")
    before = set(os.listdir("/dev")) | set(os.listdir("/dev/shm"))
    assert same_weights(loader.load_model(seal(tmp_path / "m.keras"), key=key), trained)
    assert "outside" not in (set(os.listdir("/dev")) | set(os.listdir("/dev/shm"))) - before


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_tampered_and_wrong_key(tmp_path, seal, key, files, name):
    sealed = seal(files / name)
    with pytest.raises(StrongroomError):
        loader.load_model(sealed, key=bytes(32))
    content = bytearray(sealed.read_bytes())
    content[-100] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(PayloadTampered):
        loader.load_model(sealed, key=key)


OTHER_BACKEND = """
import sys, numpy, keras
from strongroom.loaders import keras as loader
assert keras.backend.backend() == sys.argv[1]
mine = loader.load_model(sys.argv[2])
weights = loader.load_weights(mine, sys.argv[3])
theirs = keras.saving.load_model(sys.argv[4])
x = numpy.ones((2, 12, 12, 3), "f4")
numpy.testing.assert_array_equal(mine.predict(x, verbose=0), theirs.predict(x, verbose=0))
print([name for name in ("tensorflow", "torch", "jax") if name in sys.modules])
"""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_backends(tmp_path, seal, files, backend):
    plain = files / "m.keras"
    done = subprocess.run(
        [
            *(sys.executable, "-c", OTHER_BACKEND, backend),
            *(seal(plain), seal(files / "m.weights.h5"), plain),
        ],
        env=os.environ
        | {
            "KERAS_BACKEND": backend,
            "STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert backend in done.stdout


def test_without_keras(monkeypatch):
    for missing in ("keras", "h5py"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            spec = importlib.util.spec_from_file_location("again", loader.__file__)
            with pytest.raises(MissingExtra, match="Keras") as error:
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
            assert "strongroom[keras]" in error.value.hint
