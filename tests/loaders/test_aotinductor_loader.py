"""Compiled packages. Making one takes a C++ compiler and some 20 seconds; all tests share it."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import aotinductor_package
import pytest
import torch

import strongroom
from strongroom.errors import (
    NoMatchingRecipient,
    NotFound,
    PayloadTampered,
    StorageError,
    UsageError,
)
from strongroom.loaders import aotinductor
from strongroom.loaders import torch as loader

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="packages are compiled with g++, which is not installed"
)
SIZE = aotinductor_package.SIZE
SLACK = 20 << 20  # the program itself, and what it allocates; less than a third copy
X = torch.linspace(-1, 1, 2 * aotinductor_package.COLUMNS).reshape(2, -1)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return aotinductor_package.make(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def expected():
    return aotinductor_package.network()(X)


@pytest.fixture(autouse=True)
def directories(monkeypatch):
    """The directories in /dev/shm that a test makes; they are gone when it ends."""
    made = []
    real = tempfile.mkdtemp

    def mkdtemp(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    yield made
    gc.collect()
    assert not [path for path in made if os.path.exists(path)]


def memory_files():
    places = Path("/proc/self/fd").iterdir()
    return [p for p in places if p.is_symlink() and "memfd:package" in str(p.readlink())]


def changed(package, place, change):
    """A copy of a package; ``change`` gives new content for a member, None to leave it out."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(place, "w") as new:
        for member in old.infolist():
            content = change(member.filename, old.read(member))
            if content is not None:
                new.writestr(member.filename, content, compress_type=zipfile.ZIP_DEFLATED)
    return place


def test_answers_are_those_of_the_plain_package(package, seal, key, expected):
    from torch.export.pt2_archive._package import AOTICompiledModel

    mine = loader.aoti_load_package(seal(package), key=key)
    # What torch's own function does in the end; before, it compiles programs to look at the CPU.
    theirs = AOTICompiledModel(
        torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
    )
    assert type(mine) is type(theirs)
    assert torch.equal(mine(X), theirs(X))
    torch.testing.assert_close(mine(X), expected)
    assert mine.get_metadata() == theirs.get_metadata()
    assert sorted(mine.get_constant_fqns()) == sorted(theirs.get_constant_fqns())


def test_nothing_but_the_mapping_is_kept(package, seal, key):
    model = loader.aoti_load_package(seal(package), key=key)
    model(X)
    assert "/memfd:package (deleted)" in Path("/proc/self/maps").read_text()
    assert not memory_files()


def test_two_copies(package, seal, key):
    """torch copies the weights out of the library, which stays mapped."""
    sealed = seal(package)
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("loading_cases.py"), "peak", "aotinductor"),
            *(sealed, sealed),
        ],
        env=os.environ | {"STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, kept = map(int, done.stdout.split())
    most = 2 * SIZE + SLACK
    assert 0.8 * SIZE < peak < most
    assert kept < most


def test_constants_can_be_replaced(package, seal, key, expected):
    model = loader.aoti_load_package(seal(package), key=key, num_runners=2)
    names = model.get_constant_fqns()
    state = aotinductor_package.network().state_dict()
    model.load_constants({name: state[name] * 2 for name in names}, check_full_update=True)
    assert not torch.equal(model(X), expected)
    model.load_constants({name: state[name] for name in names}, check_full_update=True)
    torch.testing.assert_close(model(X), expected)


def test_single_threaded(package, seal, key, expected):
    model = loader.aoti_load_package(seal(package), True, -1, key=key)
    torch.testing.assert_close(model(X), expected)


def test_a_file_of_a_directory(package, tmp_path, seal, key, expected):
    folder = tmp_path / "dir"
    folder.mkdir()
    shutil.copy(package, folder / "a.pt2")
    (folder / "README.md").write_text("x")
    sealed = seal(folder)
    with strongroom.open(sealed, key=key) as model:
        torch.testing.assert_close(loader.aoti_load_package(model)(X), expected)
        torch.testing.assert_close(loader.aoti_load_package(model, path="a.pt2")(X), expected)


def test_compressed_and_without_the_outer_folder(package, tmp_path, seal, key, expected):
    with (
        zipfile.ZipFile(package) as old,
        zipfile.ZipFile(tmp_path / "old.pt2", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name.partition("/")[2], old.read(name))
    sealed = seal(tmp_path / "old.pt2")
    torch.testing.assert_close(loader.aoti_load_package(sealed, key=key)(X), expected)


def test_several_models(package, tmp_path, seal, key, expected):
    place = tmp_path / "two.pt2"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(place, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
            if "/model/" in name:
                new.writestr(name.replace("/model/", "/other/"), old.read(name))
    sealed = seal(place)
    torch.testing.assert_close(
        loader.aoti_load_package(sealed, key=key, model_name="other")(X), expected
    )
    with pytest.raises(NotFound, match="no model 'third'") as error:
        loader.aoti_load_package(sealed, key=key, model_name="third")
    assert "model, other" in error.value.hint


def test_kernels_of_other_devices_stay_until_the_model_is_gone(
    package, seal, key, monkeypatch, directories
):
    """They are read when they are first used; seen here with the same package under another name."""
    real = aotinductor._load

    class OtherDevice:
        def __init__(self, made):
            self.loader = made.loader
            self.run = made

        def get_metadata(self):
            return {"AOTI_DEVICE_KEY": "cuda"}

    monkeypatch.setattr(aotinductor, "_load", lambda *arguments: OtherDevice(real(*arguments)))
    model = loader.aoti_load_package(seal(package), key=key)
    (directory,) = directories
    assert list(Path(directory).rglob("*.cpp"))
    assert memory_files()
    del model
    gc.collect()
    assert not Path(directory).exists()
    assert not memory_files()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torch", {"w": torch.zeros(3)}, "not an AOTInductor package"),
        ("bytes", b"PK\3\4" + bytes(50), "not an AOTInductor package"),
    ],
    ids=["torch", "bytes"],
)
def test_other_files(tmp_path, seal, key, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UsageError, match=message):
        loader.aoti_load_package(seal(tmp_path / name), key=key)


def test_for_another_cpu(package, tmp_path, seal, key, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    def needs_more(name, content):
        if name.endswith("wrapper_metadata.json"):
            return json.dumps(json.loads(content) | {"AOTI_CPU_ISA": "AVX512 AMX_TILE"})
        return content

    sealed = seal(changed(package, tmp_path / "m.pt2", needs_more))
    with pytest.raises(UsageError, match=r"CPU with .*AMX_TILE"):
        loader.aoti_load_package(sealed, key=key)


def test_source_alone(package, tmp_path, seal, key):
    place = changed(package, tmp_path / "m.pt2", lambda n, c: None if n.endswith(".so") else c)
    with pytest.raises(UsageError, match="source code"):
        loader.aoti_load_package(seal(place), key=key)


def test_names_that_lead_out(package, tmp_path, seal, key):
    shutil.copy(package, tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        archive.writestr("m/data/aotinductor/model/../../../../../evil", b"x")
    with pytest.raises(UsageError, match="leads out"):
        loader.aoti_load_package(seal(tmp_path / "m.pt2"), key=key)


def test_key_and_tampering(package, seal, key):
    sealed = seal(package)
    with pytest.raises(NoMatchingRecipient):
        loader.aoti_load_package(sealed, key=bytes(32))
    raw = bytearray(sealed.read_bytes())
    raw[len(raw) // 2] ^= 1
    sealed.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.aoti_load_package(sealed, key=key)
    assert not memory_files()


def failing(message):
    class Loader:
        def __init__(self, *_):
            raise RuntimeError(message)

    return Loader


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (
            "Error in dlopen: x.so: failed to map segment from shared object",
            StorageError,
            "run from memory",
        ),
        ("Failed to initialize zip archive: file open failed", UsageError, "temporary files"),
        ("something else", RuntimeError, "something else"),
    ],
)
def test_what_torch_says(package, seal, key, monkeypatch, message, kind, says):
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", failing(message))
    with pytest.raises(kind, match=says):
        loader.aoti_load_package(seal(package), key=key)


def test_where_shared_memory_holds_no_programs(package, seal, key, tmp_path):
    """As in containers: /dev/shm is mounted noexec. In a mount namespace of its own."""
    namespace = ["unshare", "--mount", "sh", "-c"]
    remount = "mount -o remount,noexec /dev/shm"
    if shutil.which("unshare") is None or subprocess.run([*namespace, remount]).returncode:
        pytest.skip("no right to mount in a namespace")
    done = subprocess.run(
        [
            *namespace,
            f'{remount} && exec "$@"',
            "sh",
            *(sys.executable, "-W", "ignore", Path(__file__).with_name("aotinductor_package.py")),
            *("load", seal(package)),
        ],
        env=os.environ | {"STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["loaded"]
