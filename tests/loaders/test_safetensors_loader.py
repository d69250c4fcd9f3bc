import json
import re
import struct
import subprocess
import sys

import numpy
import pytest
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

import strongroom
from strongroom.errors import NotFound, PayloadTampered, UsageError
from strongroom.loaders import safetensors as loader

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
INTS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
INTS += [torch.uint64, torch.uint32, torch.uint16]
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
EIGHT_BITS += [torch.float8_e8m0fnu]


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_same(one, two):
    assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
    if one.numel():
        assert torch.equal(raw(one), raw(two))


def tensors():
    torch.manual_seed(6)
    found = {str(dtype): torch.randint(0, 2, (5, 7)).to(dtype) for dtype in FLOATS + INTS + EIGHT_BITS}
    return found | {
        "f4": torch.randint(0, 256, (4, 6), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "empty inside": torch.empty(2, 0, dtype=torch.float64),
        "odd bytes": torch.arange(13, dtype=torch.uint8),
        "large": torch.randn(1200, 600),
    }


@pytest.fixture
def plain(tmp_path):
    save_file(tensors(), tmp_path / "m.safetensors", metadata={"format": "pt", "who": "x"})
    return tmp_path / "m.safetensors"


def test_load_file_is_what_the_library_gives(plain, seal, key):
    mine = loader.load_file(seal(plain), key=key)
    theirs = load_file(plain)
    assert list(mine) == list(theirs)
    for name in theirs:
        assert_same(mine[name], theirs[name])
        mine[name].untyped_storage().fill_(1)  # writable, and of this tensor alone
        assert mine[name].untyped_storage().nbytes() == theirs[name].untyped_storage().nbytes()


def test_tensors_are_views_of_one_block(plain, seal, key):
    mine = [t for t in loader.load_file(seal(plain), key=key).values() if t.numel()]
    low, high = (f(t.data_ptr() for t in mine) for f in (min, max))
    assert high - low < plain.stat().st_size


def test_one_tensor_outlives_the_others_and_the_model(plain, seal, key):
    large = loader.load_file(seal(plain), key=key)["large"]
    assert torch.equal(large, tensors()["large"])


def test_numpy(tmp_path, seal, key):
    arrays = {
        "a": numpy.arange(24.0, dtype="f4").reshape(4, 6),
        "b": numpy.arange(5, dtype="u2"),
        "c": numpy.ones((2, 0)),
        "d": numpy.array(True),
    }
    save_numpy(arrays, tmp_path / "m.safetensors")
    sealed = seal(tmp_path / "m.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    mine = loader.load_file(sealed, key=key, framework="np")
    assert list(mine) == list(theirs)
    with loader.safe_open(sealed, "numpy", key=key) as file:
        for name in arrays:
            for array in (mine[name], file.get_tensor(name)):
                assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
                assert numpy.array_equal(array, theirs[name])
                assert array.flags.writeable


def test_numpy_without_such_a_dtype(tmp_path, seal, key):
    save_file({"f8": torch.zeros(3, dtype=torch.float8_e8m0fnu)}, tmp_path / "m.safetensors")
    with loader.safe_open(seal(tmp_path / "m.safetensors"), "np", key=key) as file:
        if "ml_dtypes" not in __import__("sys").modules:  # it teaches NumPy these types
            with pytest.raises(TypeError, match="float8_e8m0fnu"):
                file.get_tensor("f8")


def test_safe_open_is_what_the_library_gives(plain, seal, key):
    with (
        safetensors.safe_open(plain, "pt") as theirs,
        loader.safe_open(seal(plain), framework="pt", key=key) as mine,
    ):
        assert mine.keys() == theirs.keys()
        assert mine.offset_keys() == theirs.offset_keys()
        assert mine.metadata() == theirs.metadata()
        for name in theirs.keys():  # noqa: SIM118 - not a dict
            assert_same(mine.get_tensor(name), theirs.get_tensor(name))
            views = [file.get_slice(name) for file in (mine, theirs)]
            assert views[0].get_shape() == views[1].get_shape()
            assert views[0].get_dtype() == views[1].get_dtype()
        assert list(mine.get_tensors()) == list(theirs.get_tensors())


INDEXES = [
    numpy.s_[:],
    numpy.s_[...],
    numpy.s_[1],
    numpy.s_[-1],
    numpy.s_[1:3],
    numpy.s_[3:1],
    numpy.s_[4:],
    numpy.s_[-3:-1],
    numpy.s_[2:100],
    numpy.s_[-10:2],
    numpy.s_[::2],
    numpy.s_[1::2],
    numpy.s_[1:4:2, ::3],
    numpy.s_[:, 2],
    numpy.s_[1:3, ..., 2],
    numpy.s_[..., 1],
    numpy.s_[2, 3],
    numpy.s_[1, ...],
    numpy.s_[None],
    numpy.s_[1, None],
    numpy.s_[:, None, 1],
    (),
    True,
    [0, 2],
    numpy.s_[:, [0, 2]],
    numpy.s_[1:3, [0, 2]],
    numpy.int64(1),
    torch.tensor(1),
    torch.tensor([True, False, True, False, True]),
    # those it refuses
    10,
    -6,
    numpy.s_[:, 10],
    numpy.s_[1, 2, 3],
    numpy.s_[:, ::-1],
    numpy.s_[::-1],
    1.0,
    [0, 9],
    "x",
]


@pytest.mark.parametrize("index", INDEXES, ids=repr)
@pytest.mark.parametrize("name", ["torch.float32", "torch.bfloat16", "scalar", "empty"])
def test_slices_are_what_the_library_gives(plain, seal, key, index, name):
    with (
        safetensors.safe_open(plain, "pt") as theirs,
        loader.safe_open(seal(plain), "pt", key=key) as mine,
    ):
        try:
            expected = theirs.get_slice(name)[index]
        except Exception as error:
            with pytest.raises(type(error)) as raised:
                mine.get_slice(name)[index]
            assert str(raised.value) == str(error)
        else:
            found = mine.get_slice(name)[index]
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "index",
    [numpy.s_[:], 1, -1, numpy.s_[1:3], numpy.s_[::2, 1:4], numpy.s_[..., 2], numpy.s_[0:0], ()],
    ids=repr,
)
def test_slices_in_numpy(plain, seal, key, index):
    with (
        safetensors.safe_open(plain, "np") as theirs,
        loader.safe_open(seal(plain), "np", key=key) as mine,
    ):
        expected = theirs.get_slice("torch.float32")[index]
        found = mine.get_slice("torch.float32")[index]
        assert (type(found), found.dtype, found.shape) == (
            numpy.ndarray,
            expected.dtype,
            expected.shape,
        )
        assert numpy.array_equal(found, expected)


def test_numpy_slice_out_of_bounds(plain, seal, key):
    with loader.safe_open(seal(plain), "np", key=key) as mine:
        for index in (9, (0, 9), (0, 0, 0)):
            with pytest.raises(SafetensorError):
                mine.get_slice("torch.float32")[index]


def test_half_byte_types_have_no_slices(plain, seal, key):
    with (
        loader.safe_open(seal(plain), "pt", key=key) as mine,
        pytest.raises(SafetensorError, match="F4"),
    ):
        mine.get_slice("f4")[0]


SEGMENT = 65536


@pytest.fixture
def rows(tmp_path, seal):
    """512 rows of 16 KiB between two other tensors; 4 rows in each sealed segment."""
    torch.manual_seed(7)
    content = {"a": torch.randn(1 << 20), "rows": torch.randn(512, 4096), "z": torch.randn(1 << 20)}
    save_file(content, tmp_path / "rows.safetensors")
    return seal(tmp_path / "rows.safetensors", segment_size=SEGMENT), content


def spent(ranges):
    total = sum(size for _, size in ranges)
    ranges.clear()
    return total


def test_only_the_needed_segments_are_read(rows, key, ranges):
    sealed, content = rows
    with loader.safe_open(sealed, "pt", key=key) as file:
        # headers, the last segment, the first one
        assert spent(ranges) < 4 * SEGMENT
        file.keys()
        file.get_slice("rows").get_shape()
        assert spent(ranges) == 0
        whole = 512 * 4 * 4096
        assert torch.equal(file.get_tensor("rows"), content["rows"])
        assert whole <= spent(ranges) <= whole * 1.01 + 3 * SEGMENT
        view = file.get_slice("rows")
        for index, count in [
            (numpy.s_[100], 1),
            (numpy.s_[-1], 1),
            (numpy.s_[100, 5:9], 1),
            (numpy.s_[40:80], 40),
            (numpy.s_[40:80:7, ::2], 40),
            (numpy.s_[200:0], 0),
        ]:
            assert torch.equal(view[index], content["rows"][index])
            assert spent(ranges) <= (count * 4 * 4096) * 1.01 + 2 * SEGMENT
        with pytest.raises(IndexError):
            view[600]
        with pytest.raises(IndexError):
            view[5, 5000]
        assert spent(ranges) == 0


def test_closed_file(plain, seal, key):
    file = loader.safe_open(seal(plain), "pt", key=key)
    assert len(file.keys()) == len(tensors())  # usable without with, as in the library
    view = file.get_slice("large")
    with file:
        pass
    for call in (file.keys, file.metadata, file.offset_keys, file.get_tensors, file.__enter__):
        with pytest.raises(SafetensorError, match="File is closed"):
            call()
    for use in (lambda: view[0], lambda: file.get_tensor("large"), lambda: file.get_slice("large")):
        with pytest.raises(SafetensorError, match="File is closed"):
            use()


@pytest.mark.parametrize("call", ["get_tensor", "get_slice"])
def test_missing_tensor(plain, seal, key, call):
    with (
        safetensors.safe_open(plain, "pt") as theirs,
        loader.safe_open(seal(plain), "pt", key=key) as mine,
    ):
        with pytest.raises(SafetensorError) as expected:
            getattr(theirs, call)("none")
        with pytest.raises(SafetensorError) as error:
            getattr(mine, call)("none")
        assert str(error.value) == str(expected.value)


@pytest.mark.parametrize(
    ("framework", "device"), [("foo", "cpu"), ("pt", "banana"), ("np", "cuda:0"), ("pt", "meta")]
)
def test_framework_and_device_as_the_library_refuses_them(plain, seal, key, framework, device):
    with pytest.raises(SafetensorError) as expected:
        safetensors.safe_open(plain, framework, device).get_tensor("large")
    with pytest.raises(SafetensorError) as error:
        loader.safe_open(seal(plain), framework, device, key=key)
    assert str(error.value) == str(expected.value)


def test_other_devices_get_one_tensor_at_a_time(plain, seal, key, monkeypatch):
    """No GPU is needed: what is moved, and where, is recorded instead."""
    moved = []

    def move(self, tensor, device):
        moved.append((tensor.device.type, device))
        return tensor

    monkeypatch.setattr(loader._Torch, "move", move)
    whole = []
    monkeypatch.setattr(strongroom.SealedModel, "load", lambda *a: whole.append(a))
    with loader.safe_open(seal(plain), "pt", "cuda:1", key=key) as file:
        found = file.get_tensors()
        assert list(found) == list(load_file(plain))
        assert torch.equal(found["large"], tensors()["large"])
        assert moved == [("cpu", "cuda:1")] * len(found)
        moved.clear()
        file.get_slice("large")[3:4]
        assert moved[-1] == ("cpu", "cuda:1")
    assert whole == []


def test_frameworks_that_are_not_served(plain, seal, key):
    with pytest.raises(UsageError, match="flax"):
        loader.safe_open(seal(plain), "flax", key=key)


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
HUGE = 1 << 62


def header(content, body=b"\0" * 8, length=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(**changes):
    return header({"a": GOOD["a"] | changes})


HOSTILE = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "no header": header(b""),
    "header beyond the file": header(GOOD, length=4096),
    "header of 100 MB and one": header(GOOD, length=100_000_001),
    "header of 2^64-1": header(GOOD, length=2**64 - 1),
    "not JSON": header(b"{"),
    "not UTF-8": header(b"\xff\xfe"),
    "a list": header(b"[]"),
    "bytes left over": header(GOOD, body=b"\0" * 9),
    "bytes missing": header(GOOD, body=b"\0" * 7),
    "no tensor, but bytes": header({}),
    "unknown dtype": one(dtype="F99"),
    "shape larger than the bytes": one(shape=[3]),
    "shape that overflows": one(shape=[HUGE, 8]),
    "negative shape": one(shape=[-2]),
    "offsets backwards": one(data_offsets=[8, 0]),
    "offsets beyond the end": one(data_offsets=[0, 16], shape=[4]),
    "a gap before": one(data_offsets=[4, 8], shape=[1]),
    "negative offset": one(data_offsets=[-8, 0]),
    "two tensors on the same bytes": header(GOOD | {"b": GOOD["a"]}),
    "overlap": header(
        GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, body=b"\0" * 12
    ),
    "a gap between": header(
        GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, body=b"\0" * 20
    ),
    "metadata that is no text": header({"__metadata__": {"a": 1}} | GOOD),
    "half a byte": header({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 8]}}),
    "repeated name, second one wrong": header(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_as_by_the_library(tmp_path, seal, key, name):
    path = tmp_path / "m.safetensors"
    path.write_bytes(HOSTILE[name])
    try:
        with safetensors.safe_open(path, "np"):
            pytest.fail("the library accepts it")
    except SafetensorError as error:
        expected = str(error)
    sealed = seal(path)
    for call in (loader.load_file, lambda f, **k: loader.safe_open(f, "np", **k)):
        with pytest.raises(SafetensorError) as error:
            call(sealed, key=key)
        # Which of two equal tensors it names is the library's hash order.
        assert re.sub("`.`", "", str(error.value)) == re.sub("`.`", "", expected)


def test_repeated_name_is_read_as_the_library_does(tmp_path, seal, key):
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        header(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]}}',
            body=struct.pack("<2i", 7, 8),
        )
    )
    theirs, mine = load_file(path), loader.load_file(seal(path), key=key)
    assert_same(mine["a"], theirs["a"])


def test_six_bit_types_are_refused_clearly(tmp_path, seal, key):
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        header({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, body=b"abc")
    )
    with loader.safe_open(seal(path), "pt", key=key) as file:
        assert file.get_slice("a").get_dtype() == "F6_E2M3"
        with pytest.raises(SafetensorError, match="no dtype for F6_E2M3"):
            file.get_tensor("a")


def test_tampered_tensor_alone_is_refused(rows, key):
    sealed, content = rows
    changed = bytearray(sealed.read_bytes())
    changed[len(changed) // 2] ^= 1  # among the rows
    sealed.write_bytes(changed)
    with loader.safe_open(sealed, "pt", key=key) as file:
        assert torch.equal(file.get_tensor("a"), content["a"])
        with pytest.raises(PayloadTampered):
            file.get_tensor("rows")
        with pytest.raises(PayloadTampered):
            file.get_tensor("a")  # a reader that failed stays failed
    with pytest.raises(PayloadTampered):
        loader.load_file(sealed, key=key)


def test_file_of_a_directory(tmp_path, plain, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    plain.rename(folder / "m.safetensors")
    (folder / "config.json").write_text("{}")
    sealed = seal(folder)
    assert len(loader.load_file(sealed, key=key)) == len(tensors())
    with strongroom.open(sealed, key=key) as model:
        loader.load_file(model)
        with loader.safe_open(model, "pt", path="m.safetensors") as file:
            assert file.get_tensor("scalar") == 2.5
        assert model.read("config.json") == b"{}"  # still open
        with pytest.raises(NotFound):
            loader.load_file(model, path="other")
        with pytest.raises(SafetensorError):
            loader.load_file(model, path="config.json")


def test_a_missing_framework_is_named(plain, seal):
    script = (
        "import sys, strongroom\n"
        "sys.modules['torch'] = None\n"
        "try:\n"
        "    strongroom.load(sys.argv[1], key=bytes(range(32)))\n"
        "except strongroom.errors.MissingExtra as error:\n"
        "    print(error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, seal(plain)], capture_output=True, text=True, check=True
    )
    assert done.stdout == 'pip install "strongroom[torch]"\n'
