"""A disk that fills up while sealing, unsealing and rewrapping: nothing is left, nothing is lost."""

import contextlib
import ctypes
import os
import resource
import shutil

import pytest

import strongroom
from strongroom import SymmetricKey
from strongroom.errors import StorageError
from strongroom.testing.raw import pattern

MS_NOSUID_NODEV = 6
DATA = pattern("full disk", 600_000)
KEY = SymmetricKey.generate()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; without root, a limit on the size of files instead."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", MS_NOSUID_NODEV, b"size=1m") == 0
    if not mounted:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
    try:
        yield place
    finally:
        if mounted:
            assert libc.umount2(os.fsencode(place), 2) == 0
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "m" / name).write_bytes(DATA)
    strongroom.seal(tmp_path / "m", tmp_path / "s", key=KEY, segment_size=65536)
    strongroom.seal(tmp_path / "m" / "a", tmp_path / "a.sealed", key=KEY, segment_size=65536)
    return tmp_path


def fill(place):
    """Use half of the space up, so that not even one file fits into the rest."""
    with open(place / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(500_000))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["directory", "file"])
@pytest.mark.parametrize("verb", ["seal", "unseal"])
def test_seal_and_unseal(sealed, small_disk, verb, what, overwrite):
    fill(small_disk)
    sources = {
        ("seal", "directory"): "m",
        ("seal", "file"): "m/a",
        ("unseal", "directory"): "s",
        ("unseal", "file"): "a.sealed",
    }
    target = small_disk / "target"
    if overwrite and what == "directory":
        target.mkdir()
        (target / "old").write_bytes(b"old")
    elif overwrite:
        target.write_bytes(b"old")
    before = tree(small_disk)
    with pytest.raises(StorageError) as caught:
        getattr(strongroom, verb)(sealed / sources[verb, what], target, key=KEY, overwrite=overwrite)
    assert caught.value.exit_code == 7
    assert tree(small_disk) == before
    assert sorted(os.listdir(small_disk)) == sorted({path.split("/")[0] for path in before})


def test_create(small_disk):
    with pytest.raises(StorageError), strongroom.create(small_disk / "x", key=KEY) as file:
        for _ in range(40):
            file.write(bytes(100_000))
    assert os.listdir(small_disk) == []


def test_rewrap(sealed, small_disk):
    """The copy does not fit beside the original: the original stays."""
    target = small_disk / "a.sealed"
    os.truncate(sealed / "a.sealed", 400_000)
    try:
        os.link(sealed / "a.sealed", target)
    except OSError:  # the small disk is one
        shutil.copy(sealed / "a.sealed", target)
    fill(small_disk)
    before = tree(small_disk)
    with pytest.raises(StorageError):
        strongroom.rewrap(target, key=KEY, new_key=SymmetricKey.generate())
    assert tree(small_disk) == before


def test_standard_output_full(sealed, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(StorageError, match="no space"):
            strongroom.unseal(sealed / "a.sealed", "-", key=KEY)
        full.buffer.raw.close()
        monkeypatch.undo()
