"""``strongroom run`` as its users start it, and what it leaves behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mounts import PROBLEM, PROGRAM, write_key_file

import strongroom
from strongroom.mount.private import Privacy

TIMEOUT = 300
SHM = Path("/dev/shm")
PREFIX = "strongroom-run-"

# A user namespace in which there can be no further ones of some kinds: a container that does not allow them.
_WEAKER = 'for one in $0; do echo 0 > /proc/sys/user/max_${one}_namespaces || exit 99; done; exec "$@"'


def weaker(kinds):
    """What to put before a command that may not make namespaces of these kinds."""
    return ["unshare", "--user", "--map-root-user", "sh", "-c", _WEAKER, kinds]


def wait_for(found, what="it"):
    end = time.monotonic() + TIMEOUT
    while not (value := found()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def own_memory():
    """A ``/dev/shm`` that no other test's runs sweep or fill, where there is root for it.

    Yields what to put before a command that shall have it, and the root directory that it then sees.
    """
    if os.geteuid() != 0 or NO_NAMESPACES:
        yield [], Path("/")
        return
    script = f"mount -t tmpfs -o mode=1777 none {SHM} && echo && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:  # it ends with its input
        assert holder.stdout.readline()
        there = ["sh", "-c", 'cd "$0" && exec "$@"', os.getcwd()]
        yield ["nsenter", "--mount", f"--target={holder.pid}", *there], Path(f"/proc/{holder.pid}/root")
        holder.stdin.close()


def gone(processes):
    """Wait until processes have ended, whoever is to reap them."""

    def ended(one):
        with contextlib.suppress(psutil.NoSuchProcess):
            return one.status() == psutil.STATUS_ZOMBIE
        return True

    for one in processes:
        wait_for(lambda one=one: ended(one), f"the end of {one}")


FILES = {"config.json": b"{}", "1/weights.bin": os.urandom(700_000), "empty": b""}
SEGMENT = 65536


def make_models(place):
    """A key, ``m.sealed``, a directory of ``plain/``, and ``w.sealed``, a single file."""
    key = write_key_file(place)
    for path, data in FILES.items():
        file = place / "plain" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    strongroom.seal(place / "plain", place / "m.sealed", key=key, segment_size=SEGMENT)
    strongroom.seal(place / "plain/1/weights.bin", place / "w.sealed", key=key)
    return place


def flipped(place, name):
    """The sealed file of weights with one bit changed in its third segment."""
    model = place / name
    subprocess.run(["cp", "-r", place / "m.sealed", model], check=True)
    file = model / "1" / "weights.bin.sealed"
    data = bytearray(file.read_bytes())
    data[len(data) - 700_000 + 3 * SEGMENT] ^= 1
    file.write_bytes(data)
    return model


class Run:
    """A run of a program that has models; its output is read line by line. ``root`` is what it sees."""

    def __init__(self, *arguments, before=(), stdin=subprocess.PIPE, root=Path("/"), **options):
        self.root = root
        self.process = subprocess.Popen(
            [*before, PROGRAM, "run", *map(str, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid

    def line(self):
        found = self.process.stdout.readline()
        assert found, self.process.stderr.read()
        return found.rstrip("\n")

    def say(self, text=""):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def below(self):
        """The keeper first, the command and its children last."""
        return psutil.Process(self.pid).children(recursive=True)

    def directory(self):
        """The one that it keeps open for its lock, once it does."""
        opened = Path(f"/proc/{self.pid}/fd")
        for name in os.listdir(opened):
            with contextlib.suppress(FileNotFoundError):
                path = (opened / name).readlink()
                if path.parent == SHM and path.name.startswith(PREFIX):
                    return self.root / path.relative_to("/")
        return None

    def end(self):
        """Exit code, and the rest of standard output and error."""
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()


@contextlib.contextmanager
def runs():
    """Starts runs as :class:`Run` does, with :func:`environment`; they have ended after the block."""
    with contextlib.ExitStack() as started:

        def start(*arguments, **options):
            options.setdefault("env", environment())
            one = Run(*arguments, **options)
            started.callback(one.close)
            return one

        yield start


def _privacy():
    """What this machine allows, found by another process."""
    code = "import sys; from strongroom.mount.private import possible; sys.exit(possible(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", code, SHM], check=False).returncode


NO_NAMESPACES = None if _privacy() == Privacy.PROCESSES else "namespaces are not allowed here"
NO_FUSE = NO_NAMESPACES or PROBLEM
needs_namespaces = pytest.mark.skipif(NO_NAMESPACES is not None, reason=str(NO_NAMESPACES))
needs_fuse = pytest.mark.skipif(NO_FUSE is not None, reason=str(NO_FUSE))

FUSE = pytest.param("fuse", marks=needs_fuse)
BACKENDS = [FUSE, "tmpfs"]


def environment(**more):
    """Without strongroom's variables of whoever runs the tests."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    return {**found, **more}
