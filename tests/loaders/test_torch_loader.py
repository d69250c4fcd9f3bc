import io
import logging
import os
import pickle
import zipfile

import pytest
import torch

import strongroom
from strongroom.errors import NotFound, PayloadTampered, UsageError
from strongroom.loaders import torch as loader

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64),
]


def assert_same(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert one.requires_grad == two.requires_grad
        flat = [t.detach().contiguous().view(-1).view(torch.uint8) for t in (one, two)]
        assert torch.equal(*flat)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    else:
        assert one == two


def state_dict():
    torch.manual_seed(5)
    shared = torch.randn(300, 700)
    tensors = {
        f"t.{dtype}".replace("torch.", ""): torch.randint(0, 2, (64, 33)).to(dtype) for dtype in DTYPES
    }
    return {
        **tensors,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(20, 30).t(),
        "parameter": torch.nn.Parameter(torch.randn(5, 5)),
        "view": shared[10:20],
        "whole": shared,
        "large": torch.randn(1500, 1500),
        "nested": {"step": 7, "names": ["a", "b"], "pair": (1, 2.5, None)},
    }


@pytest.fixture
def public_api_only(monkeypatch):
    """As if torch had not the private functions of the zero-copy way."""
    monkeypatch.delattr(torch, "_weights_only_unpickler")


@pytest.fixture(params=["in place", "public API"])
def way(request, monkeypatch):
    used = []
    real = loader._load_in_place
    monkeypatch.setattr(loader, "_load_in_place", lambda *a: used.append(1) or real(*a))
    if request.param == "public API":
        request.getfixturevalue("public_api_only")
    yield request.param
    assert bool(used) == (request.param == "in place")


@pytest.mark.parametrize("options", [{}, {"map_location": "cpu"}, {"weights_only": False}])
def test_state_dict_is_what_torch_load_gives(tmp_path, seal, key, way, options):
    torch.save(state_dict(), tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    mine = loader.load(sealed, key=key, **options)
    assert_same(mine, torch.load(tmp_path / "m.pt", **options))
    # Tensors that shared memory still do, and all of them can be changed.
    mine["whole"].zero_()
    assert not mine["view"].any()


def test_tensors_are_views_of_one_block(tmp_path, seal, key):
    tensors = {str(i): torch.randn(1000, 100) for i in range(20)}
    torch.save(tensors, tmp_path / "m.pt")
    mine = loader.load(seal(tmp_path / "m.pt"), key=key)
    addresses = [t.data_ptr() for t in mine.values()]
    size = (tmp_path / "m.pt").stat().st_size
    assert max(addresses) - min(addresses) < size
    assert all(address % 64 == 0 for address in addresses)


def test_one_tensor_outlives_the_others_and_the_model(tmp_path, seal, key):
    torch.save(state_dict(), tmp_path / "m.pt")
    large = loader.load(seal(tmp_path / "m.pt"), key=key)["large"]
    assert torch.equal(large, state_dict()["large"])


@pytest.mark.parametrize("weights_only", [True, False])
def test_legacy_format(tmp_path, seal, key, weights_only):
    path = tmp_path / "m.pt"
    # torch itself cannot read the newest dtypes back from this format.
    content = {k: v for k, v in state_dict().items() if "uint" not in k and "float8" not in k}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:4] != b"PK\3\4"
    mine = loader.load(seal(path), key=key, weights_only=weights_only)
    assert_same(mine, torch.load(path, weights_only=weights_only))


def test_mmap(tmp_path, seal, key):
    torch.save(state_dict(), tmp_path / "m.pt")
    mine = loader.load(seal(tmp_path / "m.pt"), key=key, mmap=True)
    assert_same(mine, torch.load(tmp_path / "m.pt", mmap=True))
    mine["large"].zero_()


def test_map_location(tmp_path, seal, key, way):
    torch.save(state_dict(), tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    seen = []

    def place(storage, location):
        seen.append(location)
        return storage

    assert_same(loader.load(sealed, place, key=key), torch.load(tmp_path / "m.pt"))
    assert seen
    assert set(seen) == {"cpu"}
    to_cpu = loader.load(sealed, {"cuda:1": "cpu"}, key=key)
    assert_same(to_cpu, torch.load(tmp_path / "m.pt"))
    on_device = loader.load(sealed, torch.device("cpu"), key=key)
    assert_same(on_device, torch.load(tmp_path / "m.pt"))


def test_meta_reads_no_weights(tmp_path, seal, key, ranges):
    torch.save({"w": torch.randn(2048, 2048)}, tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    ranges.clear()
    assert loader.load(sealed, "meta", key=key)["w"].device.type == "meta"
    assert sum(size for _, size in ranges) < 6 << 20 < sealed.stat().st_size


def test_module_needs_the_callers_word(tmp_path, seal, key, way):
    torch.save(torch.nn.Linear(4, 3), tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    with pytest.raises(pickle.UnpicklingError) as theirs:
        torch.load(tmp_path / "m.pt")
    with pytest.raises(pickle.UnpicklingError) as mine:
        loader.load(sealed, key=key)
    assert str(mine.value) == str(theirs.value)
    module = loader.load(sealed, key=key, weights_only=False)
    assert isinstance(module, torch.nn.Linear)
    expected = torch.load(tmp_path / "m.pt", weights_only=False)
    assert_same(dict(module.state_dict()), dict(expected.state_dict()))


def test_weights_only_none_is_the_default(tmp_path, seal, key):
    torch.save(torch.nn.Linear(4, 3), tmp_path / "m.pt")
    with pytest.raises(pickle.UnpicklingError):
        loader.load(seal(tmp_path / "m.pt"), key=key, weights_only=None)


def test_refused_globals_are_not_run(tmp_path, seal, key):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"w": torch.zeros(2), "x": Evil()}, tmp_path / "m.pt")
    with pytest.raises(pickle.UnpicklingError):
        loader.load(seal(tmp_path / "m.pt"), key=key)
    assert not (tmp_path / "touched").exists()


def test_storage_that_lies_about_its_size(tmp_path, seal, key):
    """A pickle that asks for more than its record has gives an error, or torch's own answer, no crash."""
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                changed = content.replace(b"M\xe8\x03", b"J\x00\x00\x00\x7f")
                assert changed != content
                content = changed
            new.writestr(member, content)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        loader.load(seal(tmp_path / "bad.pt"), key=key)


def test_recompressed_archive(tmp_path, seal, key):
    torch.save(state_dict(), tmp_path / "m.pt")
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert_same(loader.load(seal(packed), key=key), torch.load(packed))


def test_other_arguments_reach_torch(tmp_path, seal, key):
    torch.save({"s": "x"}, tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    assert loader.load(sealed, key=key, weights_only=False, encoding="latin1") == {"s": "x"}
    with pytest.raises(RuntimeError, match="pickle_module"):
        loader.load(sealed, key=key, pickle_module=pickle)


def test_forced_by_the_environment(tmp_path, seal, key, monkeypatch):
    torch.save(torch.nn.Linear(4, 3), tmp_path / "m.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError):
        loader.load(seal(tmp_path / "m.pt"), key=key, weights_only=False)


@pytest.mark.parametrize(
    "load", [lambda *a, **k: loader.load(*a, mmap=True, **k), loader.jit_load], ids=["mmap", "jit"]
)
def test_tampered_on_the_way_into_a_memory_file(tmp_path, seal, key, load):
    torch.save({"w": torch.randn(2048, 1024)}, tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    raw = bytearray(sealed.read_bytes())
    raw[len(raw) // 2] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        load(sealed, key=key)


@pytest.mark.parametrize("public", [False, True])
def test_tampered(tmp_path, seal, key, public, request):
    if public:
        request.getfixturevalue("public_api_only")
    torch.save(state_dict(), tmp_path / "m.pt")
    sealed = seal(tmp_path / "m.pt")
    raw = bytearray(sealed.read_bytes())
    raw[len(raw) // 2] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.load(sealed, key=key)


def test_neither_archive_nor_pickle(tmp_path, seal, key):
    (tmp_path / "m.pt").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(RuntimeError):
        loader.load(seal(tmp_path / "m.pt"), key=key)


def test_file_of_a_directory(tmp_path, seal, key):
    folder = tmp_path / "dir"
    folder.mkdir()
    torch.save({"a": torch.ones(3)}, folder / "a.pt")
    (folder / "README.md").write_text("x")
    sealed = seal(folder)
    assert loader.load(sealed, key=key)["a"].sum() == 3
    with strongroom.open(sealed, key=key) as model:
        assert loader.load(model)["a"].sum() == 3
        assert loader.load(model, path="a.pt")["a"].sum() == 3
        assert model.read("README.md") == b"x"  # still open
        with pytest.raises(UsageError, match="takes no key"):
            loader.load(model, key=key)
        with pytest.raises(NotFound, match=r"b\.pt"):
            loader.load(model, path="b.pt")
        with pytest.raises(NotFound, match=r"no torch\.export file"):
            loader.export_load(model)
    torch.save({}, folder / "b.pt")
    strongroom.seal(folder, sealed, key=key, overwrite=True)
    with pytest.raises(UsageError, match="2 PyTorch files") as error:
        loader.load(sealed, key=key)
    assert "a.pt" in error.value.hint
    assert "b.pt" in error.value.hint


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 32)
        self.second = torch.nn.Linear(32, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_torchscript(tmp_path, seal, key):
    module = torch.jit.trace(Net().eval(), torch.zeros(1, 16))
    torch.jit.save(module, tmp_path / "m.pt", _extra_files={"labels": b"one two"})
    sealed = seal(tmp_path / "m.pt")
    extra = {"labels": ""}
    mine = loader.jit_load(sealed, "cpu", extra, key=key)
    assert extra == {"labels": b"one two"}
    x = torch.randn(3, 16)
    assert torch.equal(mine(x), module(x))
    with (
        pytest.raises(RuntimeError, match="TorchScript archives"),
        pytest.warns(UserWarning, match="TorchScript archive"),
    ):
        loader.load(sealed, key=key)


def test_exported_program(tmp_path, seal, key):
    x = torch.randn(1, 16)
    program = torch.export.export(Net().eval(), (x,))
    torch.export.save(program, tmp_path / "m.pt2", extra_files={"labels": "one two"})
    extra = {"labels": ""}
    mine = loader.export_load(seal(tmp_path / "m.pt2"), key=key, extra_files=extra)
    assert extra == {"labels": "one two"}
    assert torch.equal(mine.module()(x), program.module()(x))
    assert_same(dict(mine.state_dict), dict(program.state_dict))


class Touches:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickles_in_an_exported_program_are_not_run(tmp_path, seal, key, monkeypatch):
    """torch runs them, where it cannot read what it expects: here in the place of the sample inputs."""
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(1, 16),)), tmp_path / "m.pt2")
    ran = tmp_path / "ran"
    hostile = io.BytesIO()
    torch.save(Touches(ran), hostile)
    with (
        zipfile.ZipFile(tmp_path / "m.pt2") as old,
        zipfile.ZipFile(tmp_path / "hostile.pt2", "w") as new,
    ):
        for name in old.namelist():
            samples = "sample_inputs" in name
            new.writestr(name, hostile.getvalue() if samples else old.read(name))
    sealed = seal(tmp_path / "hostile.pt2")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError):
        loader.export_load(sealed, key=key)
    assert not ran.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    # torch says in its log that it does so, with a mistake in how.
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    with pytest.raises(AssertionError):  # what came out of the pickle is no sample
        loader.export_load(sealed, key=key, weights_only=False)
    assert ran.exists()
