"""``SealedModel.path``: plaintext under a path that is on no disk."""

import errno
import os
import subprocess
import sys
import threading

import pytest

import strongroom
from left_over import no_file_left_open
from strongroom.errors import NotFound, StorageError

KEY = bytes(range(32))


@pytest.fixture
def file_model(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + os.urandom(3 << 20))
    strongroom.seal(tmp_path / "model.gguf", tmp_path / "f.sealed", key=KEY)
    with strongroom.open(tmp_path / "f.sealed", key=KEY) as model:
        yield model


@pytest.fixture
def tree_model(tmp_path):
    source = tmp_path / "m"
    (source / "variables").mkdir(parents=True)
    (source / "saved_model.pb").write_bytes(b"graph")
    (source / "variables" / "variables.index").write_bytes(b"index")
    (source / "variables" / "empty").write_bytes(b"")
    strongroom.seal(source, tmp_path / "m.sealed", key=KEY, clear=["*.index"])
    with strongroom.open(tmp_path / "m.sealed", key=KEY) as model:
        yield model


def test_a_file(file_model):
    expected = file_model.read()
    with file_model.path() as place:
        with open(place, "rb") as file:
            assert file.read() == expected
        assert os.readlink(place).startswith("/memfd:model.gguf")
    assert not os.path.exists(place)


@pytest.mark.parametrize(("configured", "most"), [("8", 2), ("1", 1)])
def test_threads_that_write_do_not_wait_in_a_line(tmp_path, monkeypatch, configured, most):
    """A file in memory takes one write at a time."""
    monkeypatch.setenv("STRONGROOM_THREADS", configured)
    expected = os.urandom(16 << 20)
    (tmp_path / "m").write_bytes(expected)
    strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=KEY)
    found, threads = bytearray(len(expected)), set()

    def write_at(offset, piece):
        threads.add(threading.get_ident())
        found[offset : offset + len(piece)] = piece

    with strongroom.open(tmp_path / "m.sealed", key=KEY) as model:
        model.content().copy_at(write_at)
    assert found == expected
    assert 1 <= len(threads) <= most


def test_nobody_can_change_it(file_model):
    with file_model.path("model.gguf") as place:
        with pytest.raises(PermissionError), open(place, "r+b") as file:
            file.write(b"X")
        descriptor = os.open(place, os.O_RDONLY)
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def test_a_child_process_can_read_it(file_model):
    with file_model.path() as place:
        script = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
        done = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True)
    assert int(done.stdout) == file_model.size


def test_an_open_file_survives_the_block(file_model):
    with file_model.path() as place:
        file = open(place, "rb")  # noqa: SIM115 - it is to outlive the path
    assert file.read() == file_model.read()
    file.close()


@pytest.mark.parametrize("named", [False, True])
def test_an_empty_file(tree_model, named):
    with tree_model.path("variables/empty", named=named) as place, open(place, "rb") as file:
        assert file.read() == b""


def test_a_file_with_its_own_name(tree_model):
    with tree_model.path("variables/variables.index", named=True) as place:
        assert place.startswith("/dev/shm/")
        assert os.path.basename(place) == "variables.index"
        assert os.stat(place).st_mode & 0o777 == 0o600
        assert os.stat(os.path.dirname(place)).st_mode & 0o777 == 0o700
        with open(place, "rb") as file:
            assert file.read() == b"index"
    assert not os.path.exists(os.path.dirname(place))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, {"saved_model.pb", "variables/variables.index", "variables/empty"}),
        ("", {"saved_model.pb", "variables/variables.index", "variables/empty"}),
        ("variables", {"variables.index", "empty"}),
        ("variables/", {"variables.index", "empty"}),
    ],
)
def test_a_directory(tree_model, name, expected):
    with tree_model.path(name) as place:
        found = {
            os.path.relpath(os.path.join(folder, file), place)
            for folder, _, files in os.walk(place)
            for file in files
        }
        assert found == expected
    assert not os.path.exists(place)


def test_gone_after_an_exception(tree_model):
    with pytest.raises(KeyError), tree_model.path() as place:
        raise KeyError
    assert not os.path.exists(place)


@pytest.mark.parametrize("name", ["nothing", "variable", "../m", "saved_model.pb/"])
def test_what_is_not_there(tree_model, name):
    with pytest.raises(NotFound, match="has no file"), tree_model.path(name):
        pass


def test_memory_that_is_a_disk_is_refused(tree_model, monkeypatch):
    monkeypatch.setattr("strongroom.model.memory_directory._in_memory", lambda path: False)
    with pytest.raises(StorageError, match="not a file system in memory"), tree_model.path():
        pass


def test_what_was_tampered_with_gets_no_path(file_model, tmp_path):
    raw = bytearray((tmp_path / "f.sealed").read_bytes())
    raw[-1] ^= 1
    raw[1 << 20] ^= 1
    (tmp_path / "t.sealed").write_bytes(raw)
    with (
        no_file_left_open(),
        pytest.raises(strongroom.errors.IntegrityError),
        strongroom.open(tmp_path / "t.sealed", key=KEY) as model,
        model.path(),
    ):
        pass
