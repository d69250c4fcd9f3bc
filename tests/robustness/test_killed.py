"""kill -9 at any moment: whole files under final names, the old one or the new one."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import strongroom
from strongroom import SymmetricKey
from strongroom.testing.raw import pattern

KEY, NEW = SymmetricKey.generate(), SymmetricKey.generate()
OLD_DATA, NEW_DATA = pattern("old", 3_000_000), pattern("new", 3_000_000)

CHILD = """
import os, sys
import strongroom
import strongroom.model.rewrap, strongroom.model.seal
verb, source, target, key, new = sys.argv[1:]
print("ready", flush=True)
while True:
    if verb == "rewrap":
        strongroom.rewrap(target, key=[key, new], new_key=key)
        strongroom.rewrap(target, key=[key, new], new_key=new)
    else:
        getattr(strongroom, verb)(source, target, key=key, overwrite=True)
"""


def killed(verb, source, target, tmp_path, delay):
    arguments = [verb, source, target, tmp_path / "key", tmp_path / "new"]
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.fixture
def place(tmp_path):
    (tmp_path / "key").write_bytes(KEY.encode())
    (tmp_path / "new").write_bytes(NEW.encode())
    (tmp_path / "plain").write_bytes(NEW_DATA)
    (tmp_path / "model").mkdir()
    for name in ("a", "b"):
        (tmp_path / "model" / name).write_bytes(NEW_DATA[:500_000])
    (tmp_path / "out").mkdir()
    return tmp_path


def delays():
    chance = random.Random(1)
    return [chance.uniform(0, 0.06) for _ in range(10)]


def partials(folder):
    """What a kill between giving the new file a name beside the old one and swapping them leaves."""
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


def check_leftovers(folder):
    # A few microseconds between link and rename are the only time at which a file has such a name.
    for name in partials(folder):
        with strongroom.open(folder / name, key=[KEY, NEW]) as model:
            model.verify()
        os.unlink(folder / name)


def test_seal_a_file(place):
    target = place / "out" / "x.sealed"
    with strongroom.create(target, key=KEY, path="plain") as file:
        file.write(OLD_DATA)
    for delay in delays():
        killed("seal", place / "plain", target, place, delay)
        with strongroom.open(target, key=KEY) as model:
            assert model.read() in (OLD_DATA, NEW_DATA)
        check_leftovers(place / "out")
        assert os.listdir(place / "out") == ["x.sealed"]


def test_seal_a_new_file(place):
    target = place / "out" / "x.sealed"
    for delay in delays():
        killed("seal", place / "plain", target, place, delay / 2)
        check_leftovers(place / "out")
        assert os.listdir(place / "out") in ([], ["x.sealed"])
        if target.exists():
            with strongroom.open(target, key=KEY) as model:
                assert model.read() == NEW_DATA
            target.unlink()


def test_unseal_a_file(place):
    sealed, target = place / "x.sealed", place / "out" / "x"
    strongroom.seal(place / "plain", sealed, key=KEY)
    target.write_bytes(OLD_DATA)
    for delay in delays():
        killed("unseal", sealed, target, place, delay)
        assert target.read_bytes() in (OLD_DATA, NEW_DATA)
        for name in partials(place / "out"):
            assert (place / "out" / name).read_bytes() == NEW_DATA
            os.unlink(place / "out" / name)
        assert os.listdir(place / "out") == ["x"]


def test_rewrap(place):
    target = place / "out" / "x.sealed"
    strongroom.seal(place / "plain", target, key=KEY)
    for delay in delays():
        killed("rewrap", "-", target, place, delay)
        with strongroom.open(target, key=[KEY, NEW]) as model:
            assert model.read() == NEW_DATA
        check_leftovers(place / "out")
        assert os.listdir(place / "out") == ["x.sealed"]


def test_seal_a_directory(place):
    """A directory that was not finished lies under a hidden name, never under the final one."""
    target = place / "out" / "m"
    strongroom.seal(place / "model", target, key=KEY)
    for delay in delays():
        killed("seal", place / "model", target, place, delay)
        assert strongroom.verify(target, key=KEY) == 1_000_000
        others = set(os.listdir(place / "out")) - {"m"}
        assert all(name.startswith(".m.") and name.endswith(".partial") for name in others)
