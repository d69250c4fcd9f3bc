"""Where the system is Gramine's in an enclave: without memory files, advice, and kinds of file systems."""

import ctypes
import errno
import mmap
import os
import stat

import pytest

import strongroom
from strongroom.crypto.secret import SecretBytes, advise
from strongroom.errors import StorageError
from strongroom.keys import SymmetricKey
from strongroom.model import memory_directory as directories

PLAIN = os.urandom(3_000_000)


def missing(*arguments, **named):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture
def model(tmp_path):
    (tmp_path / "net.onnx").write_bytes(PLAIN)
    key = SymmetricKey.generate()
    strongroom.seal(tmp_path / "net.onnx", tmp_path / "net.sealed", key=key)
    with strongroom.open(tmp_path / "net.sealed", key=key) as opened:
        yield opened


def test_a_path_without_memory_files(model, monkeypatch):
    monkeypatch.setattr(os, "memfd_create", missing)
    with model.path() as place:
        assert place.startswith("/dev/shm/strongroom-")
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(place)).st_mode) == 0o700
        with open(place, "rb") as file:
            assert file.read() == PLAIN
    assert not os.path.exists(os.path.dirname(place))


def test_no_other_error_of_memory_files_leads_to_a_directory(model, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(OSError, match="Too many open files"), model.path():
        pass


class Zeros:
    """A C library whose ``statfs`` says of no file system what it is."""

    def __init__(self, *arguments, **named):
        pass

    def statfs(self, path, found):
        return 0


@pytest.mark.parametrize(("says", "allowed"), [("dcap\n", True), ("none\n", False), (None, False)])
def test_who_says_nothing_of_its_file_systems_is_believed_in_an_enclave_alone(
    tmp_path, monkeypatch, says, allowed
):
    place = tmp_path / "attestation_type"
    if says is not None:
        place.write_text(says)
    monkeypatch.setattr(directories, "_GRAMINE", str(place))
    monkeypatch.setattr(ctypes, "CDLL", Zeros)
    if allowed:
        directories.check_memory("/dev/shm", 0)
        return
    with pytest.raises(StorageError, match="not a file system in memory"):
        directories.check_memory("/dev/shm", 0)


class Advised(mmap.mmap):
    code = errno.ENOSYS

    def madvise(self, *arguments):
        raise OSError(self.code, os.strerror(self.code))


def test_advice_that_is_not_there_is_not_missed(monkeypatch):
    advise(Advised(-1, 4096), "MADV_DONTDUMP")
    advise(Advised(-1, 4096), "MADV_NEVER_HEARD_OF")
    monkeypatch.setattr(mmap, "mmap", Advised)
    with SecretBytes(b"secret") as secret:
        assert bytes(secret.buffer) == b"secret"
    monkeypatch.setattr(Advised, "code", errno.EAGAIN)
    with pytest.raises(OSError, match="temporarily unavailable"):
        SecretBytes(b"secret")
