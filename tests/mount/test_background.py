"""``strongroom mount --background``: what its caller learns, and where the log goes."""

import contextlib
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from mounts import KEY, PROGRAM, SECONDS, mounts_below, needs_fuse, write_key_file
from running import environment, gone, needs_namespaces, wait_for

import strongroom
from strongroom.cli.log import system_log
from strongroom.errors import UsageError

DATA = {"a.bin": os.urandom(300_000), "b.bin": os.urandom(300_000)}
pytestmark = needs_fuse


def daemons(place):
    """What runs with a path below ``place`` in its command line."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word.startswith(f"{place}/") for word in one.cmdline()):
                found.append(one)
    return found


@pytest.fixture
def place(tmp_path):
    """A sealed directory and its key, and a directory to mount at."""
    write_key_file(tmp_path)
    (tmp_path / "plain").mkdir()
    for name, data in DATA.items():
        (tmp_path / "plain" / name).write_bytes(data)
    strongroom.seal(tmp_path / "plain", tmp_path / "m.sealed", key=KEY, segment_size=65536)
    (tmp_path / "at").mkdir()
    yield tmp_path
    left = daemons(tmp_path)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    for at in mounts_below(tmp_path):
        subprocess.run(["umount", "-l", at], check=False)
    assert left == []


def start(place, *, model="m.sealed", key="key.txt", log=("--log-file", "log")):
    command = [PROGRAM, "mount", place / model, place / "at", "-k", key, "--background"]
    return subprocess.Popen(
        list(map(str, [*command, *log])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment(),
    )


def end(process):
    """Its code and what it said; pipes that somebody else holds would keep this from returning."""
    out, err = process.communicate(timeout=SECONDS)
    assert out == ""
    return process.returncode, err


@pytest.mark.parametrize("how", ["umount", "kill"])
def test_it_returns_when_the_files_are_there(place, how):
    assert end(start(place)) == (0, "")
    for name, data in DATA.items():
        assert (place / "at" / name).read_bytes() == data
    (daemon,) = daemons(place)
    assert os.getsid(daemon.pid) == daemon.pid
    assert daemon.cwd() == "/"
    assert {os.readlink(f"/proc/{daemon.pid}/fd/{one}") for one in range(3)} == {"/dev/null"}
    if how == "umount":
        subprocess.run(["umount", place / "at"], check=True)
    else:
        daemon.terminate()
    gone([daemon])
    assert mounts_below(place) == []
    assert (place / "log").read_text().endswith(f"INFO {place}/at: 2 files, 600.0 kB\n")


_LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_it_asks_for_a_passphrase(place):
    """On the terminal of its caller, which it then leaves."""
    strongroom.seal(place / "plain", place / "p.sealed", key=strongroom.Passphrase("pass words"))
    master, slave = pty.openpty()
    command = [PROGRAM, "mount", place / "p.sealed", place / "at", "--passphrase", "--background"]
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGIN, *map(str, command), "--log-file", place / "log"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        start_new_session=True,
        env=environment(),
    )
    os.close(slave)
    screen = b""
    while not screen.endswith(b"Passphrase: "):
        assert select.select([master], [], [], SECONDS)[0], screen
        screen += os.read(master, 4096)
    os.write(master, b"pass words\n")
    assert process.wait(SECONDS) == 0
    os.close(master)  # hangs up
    assert (place / "at" / "a.bin").read_bytes() == DATA["a.bin"]
    (daemon,) = daemons(place)
    daemon.terminate()
    gone([daemon])


def test_one_file_is_no_files(place):
    strongroom.seal(place / "plain" / "a.bin", place / "one.sealed", key=KEY)
    assert end(start(place, model="one.sealed")) == (0, "")
    assert ": 1 file, 300.0 kB\n" in (place / "log").read_text()
    subprocess.run(["umount", place / "at"], check=True)
    gone(daemons(place))


def test_why_a_file_cannot_be_read_is_in_the_log(place):
    """In the file of this name, whatever has become of the one that was there."""
    for name in DATA:
        sealed = place / "m.sealed" / f"{name}.sealed"
        data = bytearray(sealed.read_bytes())
        data[100_000] ^= 1
        sealed.write_bytes(data)
    assert end(start(place)) == (0, "")
    with pytest.raises(OSError, match="Input/output"):
        (place / "at" / "a.bin").read_bytes()
    wait_for(lambda: "a.bin: not readable: a.bin: segment" in (place / "log").read_text(), "a line")
    (place / "log").rename(place / "log.1")
    with pytest.raises(OSError, match="Input/output"):
        (place / "at" / "b.bin").read_bytes()
    wait_for((place / "log").exists, "a new file")
    wait_for(lambda: "b.bin: not readable: b.bin: segment" in (place / "log").read_text(), "a line")
    subprocess.run(["umount", place / "at"], check=True)
    gone(daemons(place))


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({"model": "missing.sealed"}, 2, "missing.sealed"),
        ({"key": "other.txt"}, 4, "does not open this model"),
        ({"log": ("--log-file", "no/such/log")}, 2, "no/such/log"),
        ({"model": "m.sealed/../at"}, 3, "is not a sealed model"),
    ],
)
def test_what_is_wrong_is_said_to_the_caller(place, wrong, code, words):
    (place / "other.txt").write_text("A" * 43)
    (place / "other.txt").chmod(0o600)
    found, err = end(start(place, **wrong))
    assert found == code, err
    assert err.startswith("error: ")
    assert words in err
    assert mounts_below(place) == []
    assert daemons(place) == []


@pytest.fixture
def waiting(place):
    """A caller, and the process that waits for a key; and where that comes from."""
    os.mkfifo(place / "slow.key")
    process = start(place, key="slow.key")
    # It has opened the pipe when it can be opened to write without waiting.
    key = wait_for(lambda: _opened(place / "slow.key"), "the reading of the key")
    (child,) = psutil.Process(process.pid).children()
    with open(key, "wb", buffering=0) as file:
        yield process, child, file


def _opened(fifo):
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


def test_killed_before_it_is_ready(place, waiting):
    process, child, _ = waiting
    child.kill()
    code, err = end(process)
    assert code == 137
    assert "killed by SIGKILL before it was ready" in err
    assert mounts_below(place) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_before_it_is_ready(place, waiting, number):
    process, child, _ = waiting
    process.send_signal(number)
    assert end(process) == (128 + number, "")
    gone([child])
    assert mounts_below(place) == []


def test_the_caller_is_killed_before_it_is_ready(place, waiting):
    """Nobody would know of the mount, so there is none."""
    process, child, key = waiting
    process.kill()
    process.wait(SECONDS)
    key.write((place / "key.txt").read_bytes())
    key.close()
    gone([child])
    end(process)
    assert mounts_below(place) == []


def test_the_system_log():
    with tempfile.TemporaryDirectory() as place:
        with pytest.raises(UsageError, match="no system log") as caught:
            system_log("strongroom-mount", f"{place}/log")
        assert "--log-file" in caught.value.hint


# Devices of its own, with a system log or none.
_OWN_DEVICES = """
set -e
mkdir "$1/devices"; mount -t tmpfs none "$1/devices"
cp -a /dev/fuse /dev/null /dev/urandom "$1/devices"
[ "$2" = none ] || ln -s "$2" "$1/devices/log"
mount --move "$1/devices" /dev
shift 2; exec "$@"
"""


@needs_namespaces
def test_the_system_log_of_the_machine(place):
    """Where there is none and no file is named, nothing is mounted: who would say what goes wrong?"""
    before = ["unshare", "--mount", "sh", "-c", _OWN_DEVICES, "sh", place]
    command = [PROGRAM, "mount", place / "m.sealed", place / "at", "-k", "key.txt", "--background"]

    def run(log):
        done = subprocess.run(
            list(map(str, [*before, log, *command])),
            capture_output=True,
            text=True,
            cwd=place,
            check=False,
            timeout=SECONDS,
            env=environment(),
        )
        shutil.rmtree(place / "devices")
        return done

    done = run("none")
    assert (done.returncode, daemons(place)) == (2, [])
    assert "There is no system log here" in done.stderr
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        tempfile.TemporaryDirectory() as name,
    ):
        journal.bind(f"{name}/log")
        journal.settimeout(SECONDS)
        done = run(f"{name}/log")
        assert (done.returncode, done.stderr) == (0, "")
        (daemon,) = daemons(place)
        line = journal.recv(1000).decode()
        assert line == f"<30>strongroom-mount[{daemon.pid}]: {place}/at: 2 files, 600.0 kB"
        # Only where it was mounted.
        assert list((place / "at").iterdir()) == []
        inside = Path(f"/proc/{daemon.pid}/root{place}/at")
        assert (inside / "a.bin").read_bytes() == DATA["a.bin"]
        daemon.terminate()
        gone([daemon])
