"""Run the command line: in this process where speed matters, as the installed program elsewhere."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from strongroom.cli.process import run

PROGRAM = Path(sys.executable).with_name("strongroom")
TIMEOUT = 120


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def error(self):
        """The sentence, when there is exactly one, and nothing of a traceback."""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        sentences = [line for line in lines if line.startswith("error: ")]
        assert len(sentences) == 1, self.err
        assert sentences[0].endswith((".", "?")), sentences[0]
        return sentences[0].removeprefix("error: ")

    def hint(self):
        return next(
            line.removeprefix("hint: ") for line in self.err.splitlines() if line.startswith("hint: ")
        )


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch):
    for name in ("STRONGROOM_KEY", "STRONGROOM_KEY_FILE", "STRONGROOM_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(here, capsys):
    """``cli("seal", …)`` in this process, in an empty directory."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def key(cli, here):
    assert cli("keygen", "-o", "key.txt").code == 0
    return here / "key.txt"


@pytest.fixture
def folder(here):
    """A directory to seal: 300 kB in three files."""
    folder = here / "model"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "weights.bin").write_bytes(os.urandom(300_000))
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def weights(here):
    """A file of three segments of 64 KiB and a bit."""
    path = here / "weights.bin"
    path.write_bytes(os.urandom(200_000))
    return path


@pytest.fixture
def sealed(cli, key, weights, here):
    assert cli("seal", weights, "-o", "w.sealed", "-k", key, "--segment-size", 65536).code == 0
    return here / "w.sealed"


@pytest.fixture
def program(here):
    """``program("seal", …)`` as a user starts it. Standard input is empty unless given."""

    def call(*arguments, stdin=b"", pass_fds=(), text=True, **environment):
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            pass_fds=pass_fds,
            env={**os.environ, **environment},
            check=False,
        )
        out = done.stdout.decode() if text else done.stdout
        return Outcome(done.returncode, out, done.stderr.decode())

    return call


# Makes the terminal on descriptor 0 the controlling one, as a login does, and becomes the program.
_LOGIN = (
    "import fcntl, os, sys, termios;"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """The program with a terminal of its own; what it prints there is in ``screen``."""

    def __init__(self, arguments, out_to_pipe=False):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\x00\x78\x00" + bytes(4))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOGIN, PROGRAM, *map(str, arguments)],
            stdin=slave,
            stdout=subprocess.PIPE if out_to_pipe else slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(slave)
        self.screen = ""

    def _read(self, wait):
        if not select.select([self.master], [], [], wait)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last one on the other side is gone
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)

    def expect(self, text):
        end = time.monotonic() + TIMEOUT
        seen = len(self.screen) if text in self.screen else 0
        while text not in self.screen[seen:]:
            assert time.monotonic() < end and self._read(1), self.screen

    def type(self, text):
        os.write(self.master, text.encode())

    def wait(self):
        """The exit code, when everything has been read."""
        end = time.monotonic() + TIMEOUT
        while self._read(1):
            assert time.monotonic() < end, self.screen
        return self.process.wait(TIMEOUT)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        os.close(self.master)


@pytest.fixture
def terminal(here):
    opened = []

    def start(*arguments, **options):
        opened.append(Terminal(arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
