import subprocess
import sys

import flax.linen
import flax.serialization
import jax
import jax.numpy
import numpy
import pytest

import strongroom
from strongroom.errors import FormatError, NoMatchingRecipient, NotFound, PayloadTampered
from strongroom.loaders import flax as loader

X = jax.numpy.linspace(0, 1, 2 * 16).reshape(2, 16)


class Net(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.relu(flax.linen.Dense(64)(x))
        x = flax.linen.LayerNorm()(x)
        return flax.linen.Dense(3, param_dtype=jax.numpy.bfloat16)(x)


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(0), X)


@pytest.fixture
def plain(variables, tmp_path):
    path = tmp_path / "m.msgpack"
    path.write_bytes(flax.serialization.to_bytes(variables))
    return path


def assert_same(mine, theirs):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert type(one) is type(two)
        assert one.dtype == two.dtype
        assert numpy.array_equal(one, two)


def test_msgpack_restore(plain, seal, key):
    mine = loader.msgpack_restore(seal(plain), key=key)
    assert_same(mine, flax.serialization.msgpack_restore(plain.read_bytes()))
    assert mine["params"]["Dense_1"]["kernel"].dtype == jax.numpy.bfloat16


def test_from_bytes(plain, variables, seal, key):
    target = Net().init(jax.random.key(1), X)
    mine = loader.from_bytes(target, seal(plain), key=key)
    assert_same(mine, flax.serialization.from_bytes(target, plain.read_bytes()))
    assert numpy.array_equal(Net().apply(mine, X), Net().apply(variables, X))
    assert not numpy.array_equal(Net().apply(mine, X), Net().apply(target, X))


def test_from_bytes_of_another_structure(plain, seal, key):
    with pytest.raises(ValueError, match="keys do not match") as error:
        loader.from_bytes({"params": {"other": 1}}, seal(plain), key=key)
    assert type(error.value) is ValueError


def test_every_kind_of_value(tmp_path, seal, key):
    tree = {
        "half": numpy.arange(6, dtype="f2").reshape(2, 3),
        "big": numpy.arange(5, dtype=">i8"),
        "empty": numpy.zeros((0, 4), "f4"),
        "scalar": numpy.float32(1.5),
        "complex": 1 + 2j,
        "text": "ä",
        "bytes": b"\0\xff",
        "none": None,
        "list": [1, 2.5, True],
    }
    (tmp_path / "m").write_bytes(flax.serialization.msgpack_serialize(tree))
    mine = loader.msgpack_restore(seal(tmp_path / "m"), key=key)
    theirs = flax.serialization.msgpack_restore((tmp_path / "m").read_bytes())
    assert list(mine) == list(theirs)
    assert repr(mine) == repr(theirs)
    assert mine["big"].dtype == theirs["big"].dtype


def test_arrays_in_pieces(tmp_path, seal, key, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    tree = {"large": numpy.arange(1000.0).reshape(10, 100)}
    (tmp_path / "m").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "m").read_bytes()
    assert_same(loader.msgpack_restore(seal(tmp_path / "m"), key=key), tree)


def test_a_single_array(tmp_path, seal, key):
    (tmp_path / "m").write_bytes(flax.serialization.msgpack_serialize(numpy.arange(7)))
    assert_same(loader.msgpack_restore(seal(tmp_path / "m"), key=key), numpy.arange(7))


def test_file_of_a_directory(plain, tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    content = plain.read_bytes()
    (folder / "flax_model.msgpack").write_bytes(content)
    (folder / "config.json").write_text("{}")
    sealed = seal(folder)
    theirs = flax.serialization.msgpack_restore(content)
    assert_same(loader.msgpack_restore(sealed, key=key), theirs)
    with strongroom.open(sealed, key=key) as model:
        assert_same(loader.msgpack_restore(model, path="flax_model.msgpack"), theirs)
        with pytest.raises(NotFound, match=r"none\.msgpack"):
            loader.msgpack_restore(model, path="none.msgpack")


BAD = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "text": b"secret text",
    "cut": None,
    "more": None,
    "a list as a key": b"\x81\x90\x01",
    "not UTF-8": b"\x81\xa6secre\xff\x01",
    "a cut array": b"\xc7\x03\x01\x93\x01\x02",
    "a short complex": b"\x81\xa1a\xc7\x02\x02\x91\x01",
    "too deep": b"\x91" * 5000,
    "pieces of nothing": b"\x81\xb9__msgpack_chunked_array__\xc3",
    "an unknown dtype": b"\xc7\x0a\x01\x93\x90\xa6secret\xc4\x00",
}


@pytest.mark.parametrize("name", BAD)
def test_not_of_the_format(name, plain, tmp_path, seal, key):
    whole = plain.read_bytes()
    content = {"cut": whole[:-9], "more": whole + b"secret"}.get(name, BAD[name])
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(FormatError, match="bad is not a Flax msgpack file") as error:
        loader.msgpack_restore(seal(tmp_path / "bad"), key=key)
    assert "secret" not in str(error.value)
    assert error.value.__suppress_context__


def test_tampered_and_wrong_key(plain, seal, key):
    sealed = seal(plain)
    with pytest.raises(NoMatchingRecipient):
        loader.msgpack_restore(sealed, key=bytes(32))
    raw = bytearray(sealed.read_bytes())
    raw[-100] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.msgpack_restore(sealed, key=key)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("flax", "flax"),
        ("xgboost", "xgboost"),
        ("lightgbm", "lightgbm"),
        ("llama_cpp", "llama-cpp"),
        ("openvino", "openvino"),
    ],
)
def test_missing_extra(name, extra):
    script = f"""
import sys
sys.modules[{name!r}] = None
from strongroom.errors import MissingExtra
try:
    import strongroom.loaders.{name}
except MissingExtra as error:
    sys.exit("strongroom[{extra}]" not in error.hint)
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
