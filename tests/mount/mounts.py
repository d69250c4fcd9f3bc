"""``strongroom mount`` as the installed program, and whether it can mount here at all."""

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import strongroom
from strongroom.errors import StrongroomError
from strongroom.mount.fuse import mounted
from strongroom.mount.tree import Tree

PROGRAM = Path(sys.executable).with_name("strongroom")
KEY = bytes(range(32))
SECONDS = 120
"""For what takes less than one on a machine with nothing else to do."""


def write_key_file(folder):
    """:data:`KEY` as a key file."""
    place = folder / "key.txt"
    place.write_bytes(base64.urlsafe_b64encode(KEY))
    place.chmod(0o600)
    return place


def fuse_problem():
    """Why nothing can be mounted here, or None."""
    with tempfile.TemporaryDirectory() as place:
        plain, sealed, shown = (Path(place, name) for name in ("plain", "sealed", "shown"))
        plain.write_bytes(b"x")
        shown.mkdir()
        strongroom.seal(plain, sealed, key=KEY)
        try:
            with strongroom.open(sealed, key=KEY) as model, mounted(Tree({"": model}), shown):
                return None
        except StrongroomError as error:
            return str(error)


PROBLEM = fuse_problem()
needs_fuse = pytest.mark.skipif(PROBLEM is not None, reason=f"no FUSE here: {PROBLEM}")


def mounts_below(directory):
    """What is mounted at or below a directory, by the kernel's list."""
    places = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [one for one in places if f"{one}/".startswith(f"{directory}/")]


def mount_options(directory, listed=None):
    """Of what is mounted at a directory, by a list such as the kernel's."""
    lines = (Path("/proc/self/mountinfo").read_text() if listed is None else listed).splitlines()
    (found,) = [one for line in lines if (one := line.split(" "))[4] == str(directory)]
    return set(found[5].split(","))


@dataclass
class Mounting:
    """A running ``strongroom mount``."""

    process: subprocess.Popen
    directory: Path
    log_file: Path

    def log(self):
        return self.log_file.read_text()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def strongroom_mount(*sealed, at, options=(), before=(), environ=None, key="key.txt"):
    """Start it and wait until it is ready; it is ended afterwards, unless it has by then.

    ``before`` is a command that starts it.
    """
    with (
        tempfile.TemporaryDirectory() as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        Path(place).chmod(0o755)
        ready.bind(f"{place}/ready")
        Path(place, "ready").chmod(0o777)
        ready.settimeout(0.2)
        log_file = Path(place, "log")
        command = [*before, PROGRAM, "mount", *sealed, at, "-k", key, *options]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {}), "NOTIFY_SOCKET": f"{place}/ready"},
            )
        try:
            for _ in range(SECONDS * 5):
                try:
                    assert ready.recv(100) == b"READY=1"
                    break
                except TimeoutError:
                    assert process.poll() is None, log_file.read_text()
            else:
                raise AssertionError("not ready")
            yield Mounting(process, Path(at), log_file)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(SECONDS)
            subprocess.run(["umount", "-l", at], capture_output=True, check=False)
