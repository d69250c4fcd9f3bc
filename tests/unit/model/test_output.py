import errno
import io
import os
import sys

import pytest

from left_over import no_file_left_open
from strongroom.errors import AlreadyExists, NotFound, StorageError, UsageError
from strongroom.model import output as module
from strongroom.model.output import open_file_output, open_tree_output


@pytest.fixture(params=["tmpfile", "named", "named without links"])
def system(request, monkeypatch):
    """File systems with unnamed files, without, and without hard links either."""
    real_open = os.open

    def no_tmpfile(path, flags, mode=0o777, *, dir_fd=None):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def no_link(*args, **kwargs):
        raise PermissionError(errno.EPERM, "not permitted")

    if request.param != "tmpfile":
        monkeypatch.setattr(module.os, "open", no_tmpfile)
    if request.param == "named without links":
        monkeypatch.setattr(module.os, "link", no_link)
    return request.param


def begin(path, overwrite=False, private=False):
    return open_file_output(path, overwrite=overwrite, private=private)


class TestFile:
    def test_complete_or_not_there(self, tmp_path, system):
        path = tmp_path / "x"
        output = begin(path)
        output.write(b"one ")
        output.write(memoryview(b"two"))
        assert not path.exists()
        output.commit()
        assert path.read_bytes() == b"one two"
        assert os.listdir(tmp_path) == ["x"]

    def test_abort_leaves_nothing(self, tmp_path, system):
        output = begin(tmp_path / "x")
        output.write(b"x")
        output.abort()
        output.abort()
        assert os.listdir(tmp_path) == []

    def test_abort_after_commit_does_nothing(self, tmp_path, system):
        output = begin(tmp_path / "x")
        output.commit()
        output.abort()
        assert os.listdir(tmp_path) == ["x"]

    def test_existing_file_stays(self, tmp_path, system):
        (tmp_path / "x").write_bytes(b"old")
        with pytest.raises(AlreadyExists) as caught:
            begin(tmp_path / "x")
        assert "--force" in caught.value.hint
        assert (tmp_path / "x").read_bytes() == b"old"

    def test_file_that_appears_meanwhile_stays(self, tmp_path, system):
        output = begin(tmp_path / "x")
        output.write(b"new")
        (tmp_path / "x").write_bytes(b"theirs")
        with pytest.raises((AlreadyExists, UsageError)):
            output.commit()
        output.abort()
        assert (tmp_path / "x").read_bytes() == b"theirs"
        assert os.listdir(tmp_path) == ["x"]

    def test_overwrite(self, tmp_path, system):
        (tmp_path / "x").write_bytes(b"old")
        output = begin(tmp_path / "x", overwrite=True)
        output.write(b"new")
        assert (tmp_path / "x").read_bytes() == b"old"
        output.commit()
        assert (tmp_path / "x").read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["x"]

    def test_overwrite_aborted(self, tmp_path, system):
        (tmp_path / "x").write_bytes(b"old")
        output = begin(tmp_path / "x", overwrite=True)
        output.write(b"new")
        output.abort()
        assert (tmp_path / "x").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["x"]

    def test_broken_link_counts_as_existing(self, tmp_path, system):
        (tmp_path / "x").symlink_to("nowhere")
        with pytest.raises(AlreadyExists):
            begin(tmp_path / "x")

    @pytest.mark.parametrize("private", [False, True])
    def test_mode(self, tmp_path, system, private):
        old = os.umask(0o027)
        try:
            output = begin(tmp_path / "x", private=private)
        finally:
            os.umask(old)
        output.commit()
        assert (tmp_path / "x").stat().st_mode & 0o777 == (0o600 if private else 0o640)

    def test_in_the_working_directory(self, tmp_path, system, monkeypatch):
        monkeypatch.chdir(tmp_path)
        output = begin("x")
        output.write(b"x")
        output.commit()
        assert (tmp_path / "x").read_bytes() == b"x"

    def test_long_name(self, tmp_path, system):
        for name in ("n" * 255, "ü" * 127):
            output = begin(tmp_path / name, overwrite=system != "named without links")
            output.commit()
        output = begin(tmp_path / ("n" * 256))
        with pytest.raises(UsageError, match="too long"):
            output.commit()
        output.abort()
        assert len(os.listdir(tmp_path)) == 2

    def test_directory_in_its_place(self, tmp_path, system):
        (tmp_path / "x").mkdir()
        with pytest.raises(UsageError, match="is a directory"):
            begin(tmp_path / "x", overwrite=True)

    def test_no_folder(self, tmp_path, system):
        (tmp_path / "file").write_bytes(b"")
        with no_file_left_open():
            with pytest.raises(NotFound):
                begin(tmp_path / "no" / "x")
            with pytest.raises(UsageError):
                begin(tmp_path / "file" / "x")

    def test_failing_write(self, tmp_path, system, monkeypatch):
        output = begin(tmp_path / "x")

        def full(*args):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(module.os, "write", full)
        with pytest.raises(StorageError) as caught:
            output.write(b"x")
        assert "space" in caught.value.hint
        output.abort()
        assert os.listdir(tmp_path) == []

    def test_short_writes_are_continued(self, tmp_path, system, monkeypatch):
        real = os.write
        monkeypatch.setattr(module.os, "write", lambda fd, data: real(fd, bytes(data[:3])))
        output = begin(tmp_path / "x")
        output.write(b"0123456789")
        output.commit()
        assert (tmp_path / "x").read_bytes() == b"0123456789"


@pytest.fixture(params=["exchange", "two renames", "no renameat2"])
def exchange(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(module, "_exchange", lambda first, second: False)
    if request.param == "no renameat2":
        import ctypes

        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())


def fill(path, overwrite=False, private=False, text=b"new"):
    tree = open_tree_output(path, overwrite=overwrite, private=private)
    for name in ("a", "b/c/d"):
        member = tree.file(name)
        member.write(text)
        member.commit()
    return tree


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


NEW = {"a": b"new", "b/c/d": b"new"}


class TestTree:
    def test_complete_or_not_there(self, tmp_path):
        tree = fill(tmp_path / "t")
        assert not (tmp_path / "t").exists()
        tree.commit()
        assert content(tmp_path / "t") == NEW
        assert os.listdir(tmp_path) == ["t"]

    def test_trailing_slash(self, tmp_path):
        fill(f"{tmp_path}/t/").commit()
        assert content(tmp_path / "t") == NEW

    def test_abort(self, tmp_path):
        tree = fill(tmp_path / "t")
        open_member = tree.file("open")
        open_member.write(b"x")
        open_member.abort()
        tree.abort()
        tree.abort()
        assert os.listdir(tmp_path) == []

    def test_existing(self, tmp_path):
        (tmp_path / "t").mkdir()
        with pytest.raises(AlreadyExists):
            fill(tmp_path / "t")
        assert os.listdir(tmp_path) == ["t"]

    def test_overwrite(self, tmp_path, exchange):
        fill(tmp_path / "t", text=b"old").commit()
        (tmp_path / "t" / "more").write_bytes(b"old")
        fill(tmp_path / "t", overwrite=True).commit()
        assert content(tmp_path / "t") == NEW
        assert os.listdir(tmp_path) == ["t"]

    def test_overwrite_of_nothing(self, tmp_path, exchange):
        fill(tmp_path / "t", overwrite=True).commit()
        assert content(tmp_path / "t") == NEW

    def test_overwrite_of_a_link_leaves_what_it_points_to(self, tmp_path, exchange):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "precious").write_bytes(b"x")
        (tmp_path / "t").symlink_to("real")
        fill(tmp_path / "t", overwrite=True).commit()
        assert content(tmp_path / "t") == NEW
        assert content(tmp_path / "real") == {"precious": b"x"}
        assert sorted(os.listdir(tmp_path)) == ["real", "t"]

    def test_overwrite_of_a_file(self, tmp_path, exchange):
        (tmp_path / "t").write_bytes(b"x")
        fill(tmp_path / "t", overwrite=True).commit()
        assert content(tmp_path / "t") == NEW
        assert os.listdir(tmp_path) == ["t"]

    def test_the_old_one_comes_back_when_the_second_rename_fails(self, tmp_path, monkeypatch):
        fill(tmp_path / "t", text=b"old").commit()
        monkeypatch.setattr(module, "_exchange", lambda first, second: False)
        tree = fill(tmp_path / "t", overwrite=True)
        real, calls = os.rename, []

        def failing(source, target):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.EIO, "failed")
            real(source, target)

        monkeypatch.setattr(module.os, "rename", failing)
        with pytest.raises(StorageError):
            tree.commit()
        tree.abort()
        assert content(tmp_path / "t") == {"a": b"old", "b/c/d": b"old"}
        assert os.listdir(tmp_path) == ["t"]

    def test_private(self, tmp_path):
        fill(tmp_path / "t", private=True).commit()
        assert (tmp_path / "t").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "t" / "b/c/d").stat().st_mode & 0o777 == 0o600

    def test_two_files_of_one_name(self, tmp_path):
        tree = fill(tmp_path / "t")
        with pytest.raises(AlreadyExists):
            tree.file("a")
        tree.abort()

    def test_no_folder(self, tmp_path):
        with pytest.raises(NotFound):
            fill(tmp_path / "no" / "t")


def test_standard_output(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream))
    output = begin("-")
    output.write(b"x")
    output.commit()
    output.abort()
    assert stream.getvalue() == b"x"
