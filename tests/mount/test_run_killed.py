"""kill -9 of whatever ``strongroom run`` consists of: everything ends, daemons too, and no plaintext is left."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from running import (
    Run,
    environment,
    gone,
    make_models,
    needs_fuse,
    needs_namespaces,
    own_memory,
    runs,
    wait_for,
    weaker,
)

# It leaves a daemon behind, which ignores signals and has a file of the model open.
DAEMON = """
import os, signal, sys, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_IGN)
    file = open(sys.argv[1] + "/m/1/weights.bin", "rb")
    file.read(10)
    os.write(1, b"daemon\\n")
    os.write(writing, b".")
    time.sleep(100000)
os.wait()
os.read(reading, 1)
print("command", flush=True)
if sys.argv[2] == "stay":
    time.sleep(100000)
"""

WEAKER = {
    "all": None,
    "no processes": "pid",
    "no mounts": "mnt user",
}
WAYS = [
    pytest.param("fuse", None, id="fuse", marks=needs_fuse),
    *(pytest.param("tmpfs", kinds, id=f"tmpfs-{name}") for name, kinds in WEAKER.items()),
]
pytestmark = needs_namespaces


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("killed"))


@pytest.fixture
def start(place, monkeypatch):
    monkeypatch.chdir(place)
    with runs() as start:

        def call(backend, kinds, then="stay", own=((), Path("/"))):
            options = ("-k", "key.txt", "--model", "m.sealed", "--backend", backend)
            command = ("--", sys.executable, "-c", DAEMON, "{models}", then)
            before = [*own[0], *(weaker(kinds) if kinds else ())]
            return start(*options, *command, before=before, root=own[1])

        yield call


def running(start, backend, kinds, **options):
    """A run whose command and daemon are there, the processes below it, and its directory."""
    one = start(backend, kinds, **options)
    assert (one.line(), one.line()) == ("daemon", "command")
    return one, one.below(), one.directory()


@pytest.mark.parametrize(("backend", "kinds"), WAYS)
def test_strongroom_is_killed(start, backend, kinds):
    one, below, directory = running(start, backend, kinds)
    one.process.kill()
    gone(below)
    wait_for(lambda: not directory.exists(), "the removal of the directory")


@pytest.mark.parametrize(("backend", "kinds"), WAYS)
def test_the_command_is_killed(start, backend, kinds):
    run, below, directory = running(start, backend, kinds)
    # Of two with this command line, the daemon has a session of its own.
    session = os.getsid(run.pid)
    (command,) = [one for one in below if one.cmdline()[1] == "-c" and os.getsid(one.pid) == session]
    command.kill()
    assert run.end()[0] == 137
    gone(below)
    assert not directory.exists()


@pytest.mark.parametrize("kinds", WEAKER.values(), ids=WEAKER)
def test_the_keeper_is_killed(start, kinds):
    one, below, directory = running(start, "tmpfs", kinds)
    below[0].kill()
    assert one.end()[0] == 137
    gone(below)
    assert not directory.exists()


@pytest.fixture
def own(start):
    with own_memory() as found:
        yield found


def test_all_are_killed_at_once_and_the_next_run_sweeps(start, own):
    one, below, directory = running(start, "tmpfs", "mnt user", own=own)
    living, _, other = running(start, "tmpfs", "mnt user", own=own)
    for process in (*below, psutil.Process(one.pid)):
        process.suspend()
    for process in (psutil.Process(one.pid), *below):
        process.kill()
    gone(below)
    assert (directory / "m" / "1" / "weights.bin").stat().st_size
    assert start("tmpfs", None, "leave", own=own).end()[0] == 0
    assert not directory.exists()
    assert (other / "m" / "1" / "weights.bin").stat().st_size  # that of the one that runs
    living.process.terminate()
    assert living.end()[0] == 143
    assert not other.exists()


def test_interrupted_before_the_command_starts(start, place):
    os.mkfifo(place / "slow.key")
    command = ["-k", "slow.key", "--model", "m.sealed", "--", "echo", "started"]
    one = Run(*command, env=environment())
    directory = wait_for(one.directory, "its directory")
    wait_for(one.below, "its keeper")
    one.process.send_signal(signal.SIGTERM)
    code, out, _ = one.end()
    assert (code, out) == (143, "")
    assert not directory.exists()
    one.close()
