"""Models as files in memory, as ``strongroom run --backend tmpfs`` writes them."""

import mmap
import os
from contextlib import ExitStack

import pytest
from running import FILES, flipped, make_models

import strongroom
from strongroom.errors import PayloadTampered, StorageError
from strongroom.mount import tmpfs
from strongroom.mount.tree import Tree


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("tmpfs"))


@pytest.fixture
def tree(place):
    with strongroom.open(place / "m.sealed", key=place / "key.txt") as model:
        yield Tree({"m": model})


def test_files_are_there_whole_and_only_for_this_user(tree):
    before = os.umask(0o077)
    try:
        with tmpfs.run_directory() as directory:
            tmpfs.placed(tree, directory, private=False)
            assert os.stat(directory).st_mode & 0o777 == 0o700
            for path, data in FILES.items():
                with open(f"{directory}/m/{path}", "rb") as file:
                    assert file.read() == data
                # A server may change its user: the directory, or the mount, decides who gets here.
                assert os.stat(file.name).st_mode & 0o777 == 0o444
            assert os.stat(f"{directory}/m/1").st_mode & 0o777 == 0o755
        assert not os.path.exists(directory)
    finally:
        os.umask(before)


def test_what_is_cleared_stays_with_who_has_it(tree):
    with tmpfs.run_directory() as directory:
        tmpfs.placed(tree, directory, private=False)
        with (
            open(f"{directory}/m/1/weights.bin", "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            tmpfs.clear(directory)
            assert os.listdir(directory) == []
            assert mapped[:] == file.read() == FILES["1/weights.bin"]


def test_what_is_removed_at_the_end_is_taken_from_everybody(tree):
    with ExitStack() as later:
        with tmpfs.run_directory() as directory:
            tmpfs.placed(tree, directory, private=False)
            file = later.enter_context(open(f"{directory}/m/1/weights.bin", "rb"))
        assert file.read() == b""


def test_links_that_the_command_has_made_are_not_followed(tree, tmp_path):
    other, folder = tmp_path / "other", tmp_path / "folder"
    folder.mkdir()
    for one in (other, folder / "file"):
        one.write_bytes(b"kept")
        one.chmod(0o640)
    with tmpfs.run_directory() as directory:
        tmpfs.placed(tree, directory, private=False)
        os.symlink(other, f"{directory}/m/link")
        os.symlink(folder, f"{directory}/m/1/folder")
    assert not os.path.exists(directory)
    for one in (other, folder / "file"):
        assert one.read_bytes() == b"kept"
        assert one.stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_of_a_model_that_is_tampered_with(place):
    with (
        strongroom.open(flipped(place, "bad.sealed"), key=place / "key.txt") as model,
        pytest.raises(PayloadTampered),
        tmpfs.run_directory() as directory,
    ):
        tmpfs.placed(Tree({"m": model}), directory, private=False)
    assert not os.path.exists(directory)


def test_more_than_there_is_memory_for(tree, monkeypatch):
    monkeypatch.setattr(type(tree), "size", 1 << 60)
    with tmpfs.run_directory() as directory:
        with pytest.raises(StorageError, match="no room"):
            tmpfs.placed(tree, directory, private=False)
        monkeypatch.setattr(tmpfs, "mount_memory", lambda *arguments, **options: None)
        with pytest.raises(StorageError, match="bytes of memory"):
            tmpfs.placed(tree, directory, private=True)
        assert os.listdir(directory) == []
