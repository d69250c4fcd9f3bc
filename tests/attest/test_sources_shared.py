"""A cache of endorsements on disk, under many processes and with whatever somebody puts into it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources import SharedDirectory, shared
from strongroom.errors import MissingEndorsement, UsageError

WANTED = Wanted("nvidia-rim", {"id": "A"})


def wanted(number: int) -> Wanted:
    return Wanted("nvidia-rim", {"id": f"R{number}"})


def test_what_is_written_is_read_until_it_is_replaced(tmp_path: Path) -> None:
    here = SharedDirectory(tmp_path / "new" / "cache")
    assert here.read(WANTED) is None
    before = time.time()
    for data in (b"first", b"second"):
        here.write(WANTED, data)
        found = here.read(WANTED)
        assert found is not None
        assert found.data == data
        assert before - 1 <= found.written.timestamp() <= time.time() + 1
    assert [one.name for one in (tmp_path / "new/cache/nvidia-rim").iterdir()] == ["A.xml"]
    assert (tmp_path / "new/cache").stat().st_mode & 0o777 == 0o700
    with pytest.raises(MissingEndorsement):
        here.read(Wanted("nothing", {}))


def test_what_can_be_no_endorsement_is_not_read(tmp_path: Path) -> None:
    """Nothing that lies there makes a worker wait, or read without an end."""
    here = SharedDirectory(tmp_path)
    here.write(WANTED, b"x")
    path = tmp_path / "nvidia-rim" / "A.xml"
    (tmp_path / "elsewhere").write_bytes(b"x")
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(tmp_path / "elsewhere"),
        lambda: path.symlink_to("/dev/zero"),
        path.mkdir,
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(bytes((1 << 20) + 1)),
    ):
        path.unlink()
        make()
        assert here.read(WANTED) is None
        if path.is_dir():
            with pytest.raises(UsageError):
                here.write(WANTED, b"y")
            path.rmdir()
            path.touch()
        else:
            here.write(WANTED, b"y")
            assert (tmp_path / "elsewhere").read_bytes() == b"x"
            assert (stored := here.read(WANTED)) is not None and stored.data == b"y"


@pytest.mark.parametrize("bound", ["MAX_FILES", "MAX_BYTES"])
def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(shared, bound, {"MAX_FILES": 10, "MAX_BYTES": 1000}[bound])
    here = SharedDirectory(tmp_path)
    for number in range(15):
        here.write(wanted(number), bytes(100))
        path = tmp_path / "nvidia-rim" / f"R{number}.xml"
        os.utime(path, (1000 + number, 1000 + number))
    left = {one.name for one in (tmp_path / "nvidia-rim").iterdir()}
    assert left == {f"R{number}.xml" for number in range(5, 15)}


def test_what_killed_processes_have_left_goes(tmp_path: Path) -> None:
    here = SharedDirectory(tmp_path)
    here.write(WANTED, b"x")
    for name, age in ((".new-old", 3600), (".new-now", 0)):
        path = tmp_path / "nvidia-rim" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    here.write(WANTED, b"y")
    left = {one.name for one in (tmp_path / "nvidia-rim").iterdir()}
    assert left == {"A.xml", ".new-now"}


# Writes for ever, each time what names itself by its digest; reads what others write, and says so when it
# is anything else.
WRITER = """
import hashlib, os, random, sys
from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources import SharedDirectory, shared
shared.MAX_FILES = 12
here = SharedDirectory(sys.argv[1])
print("ready", flush=True)
while True:
    wanted = Wanted("nvidia-rim", {"id": f"R{random.randrange(20)}"})
    body = os.urandom(random.randrange(1, 300_000))
    here.write(wanted, hashlib.sha256(body).digest() + body)
    found = here.read(wanted)
    if found is not None and hashlib.sha256(found.data[32:]).digest() != found.data[:32]:
        print("broken", flush=True)
        break
"""


def test_processes_that_write_at_once_and_are_killed_break_nothing(tmp_path: Path) -> None:
    processes = []

    def start() -> None:
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def said(one: subprocess.Popen[str]) -> str:
        assert one.stdout is not None
        with one.stdout:
            return one.stdout.read()

    for _ in range(4):
        start()
    for one in processes:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    here, good = SharedDirectory(tmp_path), 0
    began, turn = time.monotonic(), 0
    while time.monotonic() < began + 3 or good <= 100:
        assert time.monotonic() < began + 120
        turn += 1
        found = here.read(wanted(turn % 20))
        if found is not None:
            assert hashlib.sha256(found.data[32:]).digest() == found.data[:32]
            good += 1
    for one in processes:
        one.send_signal(signal.SIGKILL)
        one.wait()
        assert said(one) == ""
    assert good > 100
    # Whoever comes next finds it whole, within the bound but for what was under way.
    files = [one for one in (tmp_path / "nvidia-rim").iterdir() if not one.name.startswith(".new-")]
    assert len(files) <= 12 + 4
    for path in files:
        data = path.read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
