"""Files that change while they are open, many readers at once, forks: right bytes or an error."""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import strongroom
from left_over import no_file_left_open, open_files
from strongroom import SymmetricKey
from strongroom.errors import IntegrityError, ManifestMismatch, StrongroomError
from strongroom.testing.raw import pattern

KEY = SymmetricKey.generate()
S = 65536
DATA = pattern("changing files", 20 * S)


@pytest.fixture
def path(tmp_path):
    with strongroom.create(tmp_path / "x.sealed", key=KEY, segment_size=S) as file:
        file.write(DATA)
    return tmp_path / "x.sealed"


def other(path, data):
    with strongroom.create(path, key=KEY, path="x", segment_size=S, overwrite=True) as file:
        file.write(data)


def test_renamed_over(path):
    """The open model goes on with the file that it opened."""
    with strongroom.open(path, key=KEY) as model:
        other(path, b"another")
        assert model.read() == DATA
    with strongroom.open(path, key=KEY) as model:
        assert model.read() == b"another"


def test_removed(path):
    with strongroom.open(path, key=KEY) as model:
        path.unlink()
        assert model.read() == DATA


@pytest.mark.parametrize("size", [0, 100, 4096, 4096 + 40, 4096 + S, 4096 + 10 * S + 7])
def test_truncated(path, size):
    with strongroom.open(path, key=KEY) as model:
        os.truncate(path, size)
        with pytest.raises(IntegrityError):
            model.read()
        with pytest.raises(IntegrityError):
            model.read()


def test_overwritten_in_place(path, tmp_path):
    other(tmp_path / "other", DATA[::-1])
    with strongroom.open(path, key=KEY) as model:
        content = (tmp_path / "other").read_bytes()
        with open(path, "r+b") as file:
            file.write(content)
        with pytest.raises(IntegrityError):
            model.read()


def test_overwritten_while_it_is_read(path):
    """A writer flips bytes all the time: every read is right or refused, never something else."""
    stop = threading.Event()
    original = path.read_bytes()

    def writer():
        chance = random.Random(2)
        with open(path, "r+b", buffering=0) as file:
            while not stop.is_set():
                at = chance.randrange(4096 + 40, len(original))
                os.pwrite(file.fileno(), bytes([original[at] ^ 1]), at)
                os.pwrite(file.fileno(), original[at : at + 1], at)

    thread = threading.Thread(target=writer)
    thread.start()
    outcomes = set()
    try:
        for _ in range(150):
            try:
                with strongroom.open(path, key=KEY) as model:
                    outcomes.add(model.read() == DATA)
            except IntegrityError:
                outcomes.add("refused")
    finally:
        stop.set()
        thread.join()
    assert False not in outcomes
    assert outcomes


def test_member_replaced_by_one_of_another_sealing(tmp_path):
    (tmp_path / "m").mkdir()
    for name in "ab":
        (tmp_path / "m" / name).write_bytes(name.encode() * 1000)
    strongroom.seal(tmp_path / "m", tmp_path / "one", key=KEY)
    strongroom.seal(tmp_path / "m", tmp_path / "two", key=KEY)
    with strongroom.open(tmp_path / "one", key=KEY) as model:
        assert model.read("a") == b"a" * 1000
        os.replace(tmp_path / "two" / "b.sealed", tmp_path / "one" / "b.sealed")
        with pytest.raises(ManifestMismatch):
            model.read("b")


def test_many_readers(path):
    """Eight threads, random ranges through every way to read, one model."""
    wrong = []

    def reader(seed):
        chance = random.Random(seed)
        try:
            with model.open() as file:
                for _ in range(60):
                    offset, count = chance.randrange(len(DATA) + 10), chance.randrange(3 * S)
                    expected = DATA[offset : offset + count]
                    way = chance.randrange(3)
                    if way == 0:
                        file.seek(offset)
                        found = file.read(count)
                    elif way == 1:
                        buffer = bytearray(count)
                        found = buffer[: model.read_into(None, buffer, offset)]
                    else:
                        expected, found = DATA, model.read()
                    if found != expected:
                        wrong.append((seed, way, offset, count))
        except BaseException as error:
            wrong.append(error)

    with strongroom.open(path, key=KEY) as model:
        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_many_openings_of_the_files_of_one_model(tmp_path):
    (tmp_path / "m").mkdir()
    for number in range(30):
        (tmp_path / "m" / str(number)).write_bytes(pattern(str(number), 1000))
    strongroom.seal(tmp_path / "m", tmp_path / "s", key=KEY)
    wrong = []

    def reader(seed):
        names = list(model.files)
        random.Random(seed).shuffle(names)
        try:
            wrong.extend(name for name in names if model.read(name) != pattern(name, 1000))
        except BaseException as error:
            wrong.append(error)

    with strongroom.open(tmp_path / "s", key=KEY) as model:
        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def in_child(work):
    """What ``work`` returned in a fork, by its exit status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fork_while_open(tmp_path):
    # In a process that no framework has filled with threads: those do not survive a fork.
    script = (
        f"from robustness.test_changing_files import fork_while_open as run; run({str(tmp_path)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 0


def fork_while_open(folder):
    path = Path(folder, "x.sealed")
    other(path, DATA)
    with strongroom.open(path, key=KEY) as model, model.open() as file:
        assert file.read(100) == DATA[:100]
        assert in_child(lambda: model.read() == DATA and file.read(100) == DATA[100:200]) == 0
        assert in_child(lambda: model.close() is None) == 0
        assert file.read(100) == DATA[100:200]
        assert model.read() == DATA


def test_no_descriptor_is_leaked(path, tmp_path):
    (tmp_path / "m").mkdir()
    for name in "ab":
        (tmp_path / "m" / name).write_bytes(b"x")

    def everything():
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=KEY, overwrite=True, clear=["b"])
        strongroom.seal(tmp_path / "m" / "a", tmp_path / "a.sealed", key=KEY, overwrite=True)
        strongroom.verify(tmp_path / "s", key=KEY)
        strongroom.inspect(tmp_path / "s")
        strongroom.rewrap(tmp_path / "s", key=KEY, new_key=KEY)
        strongroom.rewrap(path, key=KEY, new_key=KEY)
        strongroom.unseal(tmp_path / "s", tmp_path / "u", key=KEY, overwrite=True)
        with strongroom.open(path, key=KEY) as model, model.open() as file:
            file.read(10)
            model.load()
        for location in (tmp_path / "m", tmp_path / "no", tmp_path / "m" / "a"):
            with pytest.raises(StrongroomError):
                strongroom.open(location, key=KEY)

    everything()
    with no_file_left_open():
        for _ in range(3):
            everything()


def test_an_abandoned_model_closes_its_file(path):
    with no_file_left_open():
        model = strongroom.open(path, key=KEY)
        assert str(path.resolve()) in open_files()
        del model
