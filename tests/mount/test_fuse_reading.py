"""What is read from mounted models, in every way that programs read, is what was sealed."""

import ctypes
import errno
import mmap
import os
import random
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from mounts import KEY, mount_options, needs_fuse, strongroom_mount, write_key_file

import strongroom

pytestmark = needs_fuse

SEGMENT = 1 << 16
FIRST = SEGMENT - 40 - 16
"""Plaintext of a first segment; each further one has 40 more."""

FILES = {
    "config.pbtxt": b"name: 'resnet'\n",
    "1/model.bin": random.Random(1).randbytes(6_000_000),
    "1/data/empty": b"",
    "1/data/one segment": random.Random(2).randbytes(FIRST),
    "1/data/two segments": random.Random(3).randbytes(2 * FIRST + 40),
    "1/data/two and a byte": random.Random(4).randbytes(2 * FIRST + 41),
    "labels/Ünïcode.txt": "café\n".encode() * 5000,
}
SCRIPT = b"#!/bin/sh\necho run\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A key, a sealed directory with files in clear, and a sealed file."""
    place = tmp_path_factory.mktemp("models")
    write_key_file(place)
    for path, data in FILES.items():
        target = place / "resnet" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    strongroom.seal(
        place / "resnet",
        place / "resnet.sealed",
        key=KEY,
        segment_size=SEGMENT,
        clear=["*.txt", "config.*"],
    )
    (place / "llama.gguf").write_bytes(random.Random(5).randbytes(5_000_000))
    strongroom.seal(place / "llama.gguf", place / "llama.gguf.sealed", key=KEY)
    return place


@pytest.fixture(scope="module")
def shown(models):
    """All of them at a directory, in another process."""
    directory = models / "shown"
    directory.mkdir()
    sealed = [f"resnet={models}/resnet.sealed", models / "llama.gguf.sealed"]
    with strongroom_mount(*sealed, at=directory, key=models / "key.txt") as mounting:
        yield mounting.directory


def test_every_file_is_equal(models, shown):
    assert sorted(os.listdir(shown)) == ["llama.gguf", "resnet"]
    found = {}
    for folder, folders, files in os.walk(shown / "resnet"):
        for name in folders + files:
            status = os.stat(os.path.join(folder, name))
            assert status.st_uid == os.getuid()
            assert stat.S_IMODE(status.st_mode) == (0o500 if name in folders else 0o400)
        for name in files:
            path = Path(folder, name)
            found[str(path.relative_to(shown / "resnet"))] = path.read_bytes()
            assert path.stat().st_size == len(path.read_bytes())
    assert found == FILES
    assert (shown / "llama.gguf").read_bytes() == (models / "llama.gguf").read_bytes()


def test_sixty_four_readers_at_random_places(models, shown):
    plain = {path: models / path for path in ("llama.gguf", *(f"resnet/{one}" for one in FILES))}
    data = {path: place.read_bytes() for path, place in plain.items()}
    wrong = []

    def read(seed):
        chance = random.Random(seed)
        try:
            for _ in range(12):
                path = chance.choice(list(data))
                offset = chance.randrange(len(data[path]) + 1)
                size = chance.choice((1, 4096, 100_000, 3_000_000))
                descriptor = os.open(shown / path, os.O_RDONLY)
                try:
                    if os.pread(descriptor, size, offset) != data[path][offset : offset + size]:
                        wrong.append((path, offset, size))
                finally:
                    os.close(descriptor)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(64)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_mapped(models, shown, flags):
    with (
        (shown / "llama.gguf").open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapping,
    ):
        assert mapping[3_000_001:3_000_009] == (models / "llama.gguf").read_bytes()[3_000_001:3_000_009]
        assert mapping[:] == (models / "llama.gguf").read_bytes()


def test_past_the_end(shown):
    descriptor = os.open(shown / "resnet/1/model.bin", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 100, len(FILES["1/model.bin"])) == b""
        assert os.pread(descriptor, 100, 1 << 40) == b""
        assert len(os.pread(descriptor, 100, len(FILES["1/model.bin"]) - 7)) == 7
    finally:
        os.close(descriptor)


def test_nothing_can_be_changed(shown):
    for change in (
        lambda: (shown / "new").write_bytes(b"x"),
        lambda: (shown / "llama.gguf").open("r+b"),
        lambda: (shown / "llama.gguf").unlink(),
        lambda: (shown / "resnet").rename(shown / "other"),
        lambda: os.truncate(shown / "llama.gguf", 0),
        lambda: (shown / "folder").mkdir(),
        lambda: (shown / "llama.gguf").chmod(0o777),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS


def test_what_is_not_there(shown):
    for path in ("other", "resnet/2", "resnet/1/model", "resnet/config.pbtxt/x"):
        assert not (shown / path).exists()
    with pytest.raises(OSError):
        os.getxattr(shown / "llama.gguf", "user.x")
    status = os.statvfs(shown)
    assert status.f_bfree == 0
    assert status.f_flag & os.ST_RDONLY
    assert status.f_flag & os.ST_NOSUID
    assert status.f_flag & os.ST_NODEV


def resident(file):
    """How many pages of an open file the page cache holds."""
    size = os.fstat(file.fileno()).st_size
    mapping = mmap.mmap(
        file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    anchor = ctypes.c_char.from_buffer(mapping)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), pages) == 0
    del anchor
    mapping.close()
    return sum(one & 1 for one in pages)


def test_without_the_page_cache(models, tmp_path, shown):
    plain = (models / "llama.gguf").read_bytes()
    with (shown / "llama.gguf").open("rb") as file:
        assert file.read() == plain
        assert resident(file) > 0
    sealed = models / "llama.gguf.sealed"
    with (
        strongroom_mount(sealed, at=tmp_path, key=models / "key.txt", options=["--no-page-cache"]),
        (tmp_path / "llama.gguf").open("rb") as file,
    ):
        assert file.read() == plain
        assert os.pread(file.fileno(), 10, 4_000_000) == plain[4_000_000:4_000_010]
        assert resident(file) == 0
        with pytest.raises(OSError) as caught:
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        assert caught.value.errno == errno.ENODEV
        # A private mapping is filled by way of the page cache, until the file is closed.
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == plain


def test_programs_are_run_with_the_users_word_alone(models, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "library.so").write_bytes(SCRIPT)
    (tmp_path / "sealed").mkdir()
    sealed = tmp_path / "sealed" / "model.sealed"
    strongroom.seal(tmp_path / "plain", sealed, key=KEY)
    at = tmp_path / "shown"
    at.mkdir()

    def map_to_run():
        with (at / "library.so").open("rb") as file:
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()

    with strongroom_mount(sealed, at=at, key=models / "key.txt"):
        assert mount_options(at) >= {"ro", "nosuid", "nodev", "noexec"}
        with pytest.raises(PermissionError):
            map_to_run()
    with strongroom_mount(sealed, at=at, key=models / "key.txt", options=["--allow-native-code"]):
        assert mount_options(at) >= {"ro", "nosuid", "nodev"}
        map_to_run()
        assert (
            subprocess.run(["sh", at / "library.so"], capture_output=True, check=True).stdout
            == b"run\n"
        )
