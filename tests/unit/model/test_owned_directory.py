"""Private directories in memory that go with their owner."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strongroom.errors import StorageError
from strongroom.model.owned_directory import OwnedDirectory, sweep

PREFIX = "strongroom-owned-"

OWNER = f"""
import sys, time
from strongroom.model.owned_directory import OwnedDirectory
made = OwnedDirectory(sys.argv[1], "{PREFIX}")
open(made.path + "/weights", "wb").write(bytes(1 << 20))
print(made.path, flush=True)
time.sleep(600)
"""


@pytest.fixture
def memory():
    one = OwnedDirectory("/dev/shm", "strongroom-tests-")
    yield one.path
    one.remove()


@pytest.fixture
def owner(memory):
    command = [sys.executable, "-c", OWNER, memory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_only_its_user_enters(memory):
    one = OwnedDirectory(memory, PREFIX, 1 << 20)
    said = os.stat(one.path)
    assert (stat.S_IMODE(said.st_mode), said.st_uid) == (0o700, os.geteuid())
    (Path(one.path) / "deep" / "er").mkdir(parents=True)
    one.remove()
    one.remove()
    assert os.listdir(memory) == []


def test_what_is_open_stays_with_its_user(memory):
    one = OwnedDirectory(memory, PREFIX)
    (Path(one.path) / "weights").write_bytes(b"weights")
    with open(f"{one.path}/weights", "rb") as file:
        one.remove()
        assert file.read() == b"weights"


def test_those_of_the_living_stay(memory, owner):
    mine = OwnedDirectory(memory, PREFIX)
    assert sweep(memory, PREFIX) == 0
    assert (owner[1] / "weights").exists()
    assert os.path.isdir(mine.path)
    mine.remove()


def test_those_of_the_killed_go(memory, owner):
    process, path = owner
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert (path / "weights").exists()
    assert sweep(memory, PREFIX) == 1
    assert os.listdir(memory) == []


def test_others_and_links_are_left_alone(memory, tmp_path):
    (tmp_path / "mine").write_text("kept")
    os.symlink(tmp_path, f"{memory}/{PREFIX}link")
    os.mkdir(f"{memory}/another")
    Path(f"{memory}/{PREFIX}file").touch()
    assert sweep(memory, PREFIX) == 0
    assert sorted(os.listdir(memory)) == ["another", f"{PREFIX}file", f"{PREFIX}link"]
    assert (tmp_path / "mine").exists()


def test_sweeping_while_others_make_theirs(memory):
    stop = threading.Event()

    def sweep_on():
        while not stop.is_set():
            sweep(memory, PREFIX)

    thread = threading.Thread(target=sweep_on)
    thread.start()
    try:
        for _ in range(200):
            one = OwnedDirectory(memory, PREFIX)
            Path(one.path, "weights").write_bytes(b"weights")
            assert Path(one.path, "weights").read_bytes() == b"weights"
            one.remove()
    finally:
        stop.set()
        thread.join()


def test_a_disk_is_refused(tmp_path):
    with pytest.raises(StorageError, match="not a file system in memory"):
        OwnedDirectory(str(tmp_path), PREFIX)
    assert os.listdir(tmp_path) == []


def test_more_than_there_is_room_for(memory):
    with pytest.raises(StorageError, match="no room"):
        OwnedDirectory(memory, PREFIX, 1 << 50)
    assert os.listdir(memory) == []


def test_what_cannot_be_removed_stays_owned_and_keeps_nothing_else(memory, monkeypatch):
    one = OwnedDirectory(memory, PREFIX)
    left = [Path(memory, f"{PREFIX}{name}") for name in "ab"]
    for place in left:
        place.mkdir()
    kept, remove = [one.path, str(left[0])], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **more: path in kept or remove(path, **more))
    for _ in range(2):
        with pytest.raises(StorageError, match=f"{one.path} could not be removed"):
            one.remove()
    with pytest.raises(StorageError, match=f"{left[0]} could not be removed"):
        sweep(memory, PREFIX)
    assert set(os.listdir(memory)) == {os.path.basename(path) for path in kept}
    kept.clear()
    one.remove()
    assert sweep(memory, PREFIX) == 1
    assert os.listdir(memory) == []


def test_all_goes_but_what_cannot(memory, monkeypatch):
    one = OwnedDirectory(memory, PREFIX)
    for name in "abc":
        Path(one.path, name).mkdir()
        Path(one.path, name, "weights").write_bytes(b"weights")
    kept, remove = {"b"}, os.rmdir

    def refuse(name, **more):
        if name in kept:
            raise OSError(errno.EBUSY, "a mount")
        remove(name, **more)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(StorageError, match="could not be removed"):
        one.remove()
    assert [path.name for path in Path(one.path).rglob("*")] == ["b"]
    kept.clear()
    one.remove()
    assert os.listdir(memory) == []
