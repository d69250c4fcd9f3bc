"""``strongroom run``: what its command sees, hears and answers."""

import fcntl
import http.server
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from mounts import PROGRAM, mount_options
from running import (
    BACKENDS,
    NO_NAMESPACES,
    TIMEOUT,
    environment,
    flipped,
    make_models,
    needs_fuse,
    needs_namespaces,
    own_memory,
    runs,
    wait_for,
    weaker,
)

import strongroom


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(place, monkeypatch):
    """``run("--model", …, "--", command)`` with the key of the models."""
    monkeypatch.chdir(place)
    with runs() as start:
        yield lambda *arguments, key=("-k", "key.txt"), **options: start(*key, *arguments, **options)


def shell(script):
    return "--model", "m=m.sealed", "--", "sh", "-c", script


LOOK = """
import os, sys
place = sys.argv[1]
for folder, folders, files in sorted(os.walk(place)):
    for name in files:
        path = os.path.join(folder, name)
        plain = os.path.join("plain", os.path.relpath(path, os.path.join(place, "m")))
        if name == "w":
            plain = "plain/1/weights.bin"
        with open(path, "rb") as a, open(plain, "rb") as b:
            print(os.path.relpath(path, place), a.read() == b.read())
for how in ("x", "m/config.json"):
    try:
        open(os.path.join(place, how), "ab")
    except OSError as error:
        print(error.strerror)
print(os.environ["STRONGROOM_MODELS"] == place, os.environ["ELSEWHERE"] == place + "/m")
print(place, flush=True)
input()
"""


@needs_namespaces
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_sees_its_models_and_nobody_else_does(run, backend):
    models = ("--model", "m=m.sealed", "--model", "w=w.sealed", "--env", "ELSEWHERE={models}/m")
    command = (sys.executable, "-c", LOOK, "{models}")
    running = run(*models, "--backend", backend, "--", *command)
    lines = [running.line() for _ in range(8)]
    assert sorted(lines[:4]) == ["m/1/weights.bin True", "m/config.json True", "m/empty True", "w True"]
    assert lines[4:6] == ["Read-only file system"] * 2
    assert lines[6] == "True True"
    directory = running.directory()
    assert lines[7] == str(directory)
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert directory.stat().st_mode & 0o777 == 0o700
    running.say()
    assert running.end()[0] == 0
    assert not directory.exists()


@needs_namespaces
@pytest.mark.parametrize("backend", BACKENDS)
def test_how_the_models_are_mounted(run, backend):
    options = {"ro", "nosuid", "nodev", "noexec"}
    for more, expected in (((), options), (("--allow-native-code",), options - {"noexec"})):
        running = run("--backend", backend, *more, *shell("echo {models}; cat /proc/self/mountinfo"))
        code, out, _ = running.end()
        directory, _, listed = out.partition("\n")
        assert code == 0
        assert mount_options(directory, listed) & options == expected


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("cat; echo to standard error >&2; exit 7", 7),
        ("kill -KILL $$", 137),
    ],
)
def test_exit_code_and_streams(run, script, code):
    running = run("-q", *shell(script))
    running.say("through standard input")
    found, out, err = running.end()
    assert found == code
    if code == 7:
        assert out == "through standard input\n"
        assert "to standard error" in err


def test_a_program_that_is_not_there(run):
    code, _, err = run("--model", "nothing.sealed", "--", "no-such-program").end()
    assert code == 127  # before the model is looked for
    assert "no-such-program" in err


def test_one_that_cannot_be_run(run, place):
    (place / "text").write_text("no program")
    (place / "text").chmod(0o755)
    code, _, err = run("--model", "m.sealed", "--", "./text").end()
    assert code == 126
    assert "./text: exec format error." in err


SAY_SIGNALS = """
import os, signal, time
def say(number, frame):
    os.write(1, (signal.Signals(number).name + "\\n").encode())
    if number == signal.SIGTERM:
        os._exit(3)
for one in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"):
    signal.signal(getattr(signal, "SIG" + one), say)
os.write(1, b"ready\\n")
while True:  # not pause(): a signal just before it would not end it
    time.sleep(0.05)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_signals_are_passed_on(run, backend):
    # A group of its own: what is sent to the group of the tests would reach the command by itself.
    command = ("--backend", backend, "--", sys.executable, "-c", SAY_SIGNALS)
    running = run("--model", "m.sealed", *command, start_new_session=True)
    assert running.line() == "ready"
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM"):
        running.process.send_signal(getattr(signal, name))
        assert running.line() == name
    assert running.end()[0] == 3


EARLY = """
import os, signal, sys
from strongroom.mount.private import Privacy
from strongroom.mount.run_keeper import Command, Keeper
with Keeper(Command(["sleep", "100"], os.environ, sys.argv[1]), Privacy.NONE) as keeper:
    keeper.send(signal.SIGTERM)
    keeper.launch()
    sys.exit(keeper.wait())
"""


def test_a_signal_before_the_command_is_there_is_not_lost(tmp_path):
    done = subprocess.run([sys.executable, "-c", EARLY, tmp_path], timeout=TIMEOUT, check=False)
    assert done.returncode == 128 + signal.SIGTERM


ELSEWHERE = """
import os, signal, sys, threading, time
from pathlib import Path
from strongroom.mount.private import Privacy
from strongroom.mount.run_keeper import Command, Keeper

def hit():
    status = Path(f"/proc/self/task/{os.getpid()}/stat")
    # Long enough asleep that it waits for the command.
    asleep = 0
    while asleep < 100:
        asleep = asleep + 1 if status.read_text().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGUSR1)

with Keeper(Command(["sleep", "1000"], os.environ, sys.argv[1]), Privacy.NONE) as keeper:
    signal.signal(signal.SIGUSR1, lambda *_: keeper.send(signal.SIGTERM))
    keeper.launch()
    thread = threading.Thread(target=hit)
    thread.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    sys.exit(keeper.wait())
"""


def test_a_signal_that_another_thread_takes_is_not_lost(tmp_path):
    """As one that comes between the handler of another and the next wait: it interrupts no system call."""
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path], timeout=TIMEOUT, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_what_is_ignored_stays_so(run):
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    running = run(*shell("echo ready; read line; exit 5"), before=nohup)
    assert running.line() == "ready"
    running.process.send_signal(signal.SIGHUP)
    running.say()
    assert running.end()[0] == 5


def test_python_ignores_signals_that_its_command_does_not(run):
    # The C library's own signals (32, 33) cannot be set; some machines start everything with one ignored.
    def named(line):
        return int(line.split()[1], 16) & (1 << 31) - 1

    running = run(*shell("grep -E 'Sig(Blk|Ign)' /proc/self/status"))
    assert [named(running.line()) for _ in range(2)] == [0, 0]


_LOGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_terminal_reaches_the_command_once(run, place):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\x00\x50\x00" + bytes(4))
    command = [PROGRAM, "run", "-q", "-k", "key.txt", "--model", "m.sealed", "--"]
    script = SAY_SIGNALS.replace('b"ready\\n"', "str((os.isatty(0), os.get_terminal_size())).encode()")
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGIN, *command, sys.executable, "-c", script],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        start_new_session=True,
        env=environment(),
    )
    os.close(slave)
    screen = b""

    def expect(text, count=1):
        nonlocal screen
        while screen.count(text) < count:
            assert select.select([master], [], [], TIMEOUT)[0], screen
            screen += os.read(master, 4096)

    expect(b"(True, os.terminal_size(columns=80, lines=24))")
    for count in range(1, 6):  # two at the same moment would be one
        os.write(master, b"\x03")
        expect(b"SIGINT\r\n", count)
    fcntl.ioctl(master, termios.TIOCSWINSZ, b"\x20\x00\x50\x00" + bytes(4))
    expect(b"SIGWINCH\r\n")
    process.send_signal(signal.SIGUSR1)  # behind whatever else there may be
    expect(b"SIGUSR1\r\n")
    process.terminate()
    assert process.wait(TIMEOUT) == 3
    os.close(master)
    assert (screen.count(b"SIGINT"), screen.count(b"SIGWINCH")) == (5, 1)


PEEK = """
import os, sys
print(sorted(name for name in os.environ if name.startswith("STRONGROOM") or name == "OTHER"))
print([int(name) for name in os.listdir("/proc/self/fd")][:3], len(os.listdir("/proc/self/fd")))
wanted = sys.stdin.readline().strip().encode()
found = []
for pid in (name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()):
    for what in ("environ", "cmdline"):
        try:
            with open(f"/proc/{pid}/{what}", "rb") as file:
                content = file.read()
            found.append((what, wanted in content, b"CONTROL=yes" in content))
        except OSError:
            pass
print(found)
"""


@needs_namespaces
def test_no_key_reaches_the_command(run, place):
    key = (place / "key.txt").read_text().strip()
    reading, writing = os.pipe()
    os.write(writing, b"x")
    running = run(
        *("--model", "m.sealed", "--", sys.executable, "-c", PEEK),
        key=("-k", "env:OTHER"),
        env=environment(OTHER=key, STRONGROOM_TOKEN="t", STRONGROOM_KEY_FILE="k", CONTROL="yes"),
        pass_fds=[reading, writing],
    )
    assert running.line() == "['STRONGROOM_MODELS']"
    assert running.line() == "[0, 1, 2] 4"
    running.say(key)
    # As root it can read these of process 1, which has the other variables still.
    found = running.line()
    assert "('environ', False, True)" in found
    assert "True, True" not in found
    assert running.end()[0] == 0
    os.close(reading)
    os.close(writing)


def test_variables_that_are_taken_from_the_command(run):
    """Those of clouds stay, since a server may need them, unless somebody says otherwise."""
    given = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "r",
        "VAULT_TOKEN": "v",
        "PIN": "1",
        "PINS": "2",
    }
    names = "env | grep -E '^(AWS_|VAULT_|PIN)' | cut -d= -f1 | sort | xargs echo; tr '\\0' '\\n' < /proc/1/environ || true"
    command = ("--model", "m.sealed", "--", "sh", "-c", names)

    def left(*options):
        code, out, err = run(*options, *command, env={"PATH": os.environ["PATH"], **given}).end()
        assert code == 0, err
        first, *others = out.splitlines()
        return first.split(), others

    assert left()[0] == sorted(given)
    options = ("--unset", "AWS_*", "--unset", "PIN", "--unset", "NOT_THERE", "--env", "AWS_REGION=x")
    names, others = left(*options)
    assert names == ["AWS_REGION", "PINS", "VAULT_TOKEN"]
    if NO_NAMESPACES is None:
        # Nor does the process above it have them.
        assert "VAULT_TOKEN=v" in others
        assert not any(one.startswith(("AWS_", "PIN=")) for one in others)


def test_tmpfs_starts_nothing_that_is_tampered_with(run, place):
    flipped(place, "bad.sealed")
    command = ("--backend", "tmpfs", "--", "sh", "-c", "echo started")
    code, out, err = run("--model", "m=bad.sealed", *command).end()
    assert (code, out) == (5, "")
    assert "1/weights.bin: segment" in err


@needs_fuse
def test_fuse_gives_an_error_for_what_is_tampered_with(run, place):
    flipped(place, "worse.sealed")
    script = "cat {models}/m/config.json; cat {models}/m/1/weights.bin | wc -c; exit 4"
    code, out, err = run(
        "--model", "m=worse.sealed", "--backend", "fuse", "--", "sh", "-c", script
    ).end()
    assert code == 4
    assert out.startswith("{}")
    assert int(out[2:]) < 700_000
    assert "Input/output error" in err
    assert "1/weights.bin: segment" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "m.sealed", "--backend", "fuse", "--wipe-when", "http://x/"), "wiped"),
        (("--model", "m.sealed", "--wipe-when", "ready"), "no URL"),
        (("--model", "m=m.sealed", "--model", "m=w.sealed"), "two models m"),
        (("--model", "missing.sealed"), "missing.sealed"),
    ],
)
def test_wrong_usage(run, arguments, words):
    with own_memory() as (before, root):
        code, out, err = run(*arguments, "--", "echo", "started", before=before).end()
        assert (code, out) == (2, "")
        assert words in err
        if before:
            assert list((root / "dev/shm").iterdir()) == []


class _NotYet(http.server.BaseHTTPRequestHandler):
    ready = threading.Event()
    asked = threading.Event()

    def do_GET(self):
        self.asked.set()
        self.send_response(200 if self.ready.is_set() else 503)
        self.end_headers()

    def log_message(self, *arguments):
        pass


HOLD = """
import mmap, os, sys
file = open(sys.argv[1] + "/m/1/weights.bin", "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print("loaded", flush=True)
input()
print(os.listdir(sys.argv[1]), mapped[:] == open("plain/1/weights.bin", "rb").read(), flush=True)
"""


@pytest.mark.parametrize("weak", [False, pytest.param(True, marks=needs_namespaces)])
def test_files_go_when_the_server_is_ready_and_its_maps_stay(run, weak):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotYet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _NotYet.ready.clear()
        _NotYet.asked.clear()
        url = f"http://127.0.0.1:{server.server_port}/ready"
        command = ("--wipe-when", url, "--", sys.executable, "-c", HOLD, "{models}")
        before = weaker("mnt user") if weak else ()
        running = run("--model", "m=m.sealed", *command, before=before)
        assert running.line() == "loaded"
        assert _NotYet.asked.wait(TIMEOUT)
        _NotYet.ready.set()
        wait_for(lambda: "are gone" in running.process.stderr.readline(), "the wiping")
        running.say()
        assert running.line() == "[] True"
        assert running.end()[0] == 0
        server.shutdown()


def test_a_passphrase_may_be_the_first_line(run, place):
    strongroom.seal(place / "plain", place / "p.sealed", key=strongroom.Passphrase("pass words"))
    command = (
        "--passphrase-fd",
        "0",
        "--",
        "sh",
        "-c",
        "read line; echo got $line; cat {models}/p/config.json",
    )
    running = run("--model", "p=p.sealed", *command, key=())
    running.say("pass words")
    running.say("more")
    assert running.line() == "got more"
    code, out, _ = running.end()
    assert (code, out) == (0, "{}")
