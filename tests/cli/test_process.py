"""The process around the verbs: help, completion, signals, pipes, bugs."""

import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import strongroom
from strongroom.cli.app import app
from strongroom.model.reader import SealedModel

from .conftest import PROGRAM, TIMEOUT


def commands(command, path=()):
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = list(commands(typer.main.get_command(app)))


def test_the_verbs():
    assert {path[0] for path in ALL if len(path) == 1} == {
        *("keygen", "seal", "unseal", "inspect", "verify", "rewrap", "import", "export"),
        *("bench", "plumbing", "attest", "policy", "keyserver", "keycache"),
        *("keys", "audit", "nodes", "tokens", "serve", "loadtest", "pki", "mount", "run", "triton"),
    }
    groups = {
        path[0]: {one[1] for one in ALL if len(one) == 2 and one[0] == path[0]} for path in ALL if path
    }
    assert groups["plumbing"] == {"header", "probe", "tink-keyset", "vectors"}
    assert groups["attest"] == {"collect", "verify", "show", "sgx-measure"}
    assert groups["keys"] == {"add", "list", "show", "rotate", "revoke", "destroy"}
    assert groups["audit"] == {"tail", "verify", "export"}
    assert groups["nodes"] == {"list", "evict", "admit", "enrol-tpm"}
    assert groups["tokens"] == {"add", "list", "drop"}
    assert groups["triton"] == {"install"}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_examples_that_parse(cli, path):
    result = cli(*path, "--help")
    assert (result.code, result.err) == (0, "")
    _, _, text = result.out.partition(" Examples\n")
    examples = [line.strip().removeprefix("$ ") for line in text.splitlines() if line.strip()]
    assert examples
    root = typer.main.get_command(app)
    for example in examples:
        line = re.split(r" \| | \d*[<>] ", example.split("strongroom ", 1)[1])[0]
        words = shlex.split(line)
        command, context = root, root.make_context("strongroom", words, resilient_parsing=True)
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        context = command.make_context(name, words, resilient_parsing=False)
        assert context.params


def test_version(program):
    assert program("--version").out == f"strongroom {strongroom.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"strongroom {strongroom.__version__}\n"


def test_a_terminal_that_knows_ascii_alone(program, sealed):
    for arguments in (("seal", "--help"), ("inspect", sealed), ("bench", sealed, "-k", "key.txt")):
        result = program(*arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert result.code == 0, result.err
        assert result.out.isascii() and result.err.isascii()


def test_no_arguments_show_the_help(program):
    result = program()
    assert result.code == 2
    assert "Usage: strongroom" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sael",), "Did you mean 'seal'"),
        (("seal",), "SRC"),
        (("seal", "x"), "--output"),
        (("verify", "x", "--nonsense"), "--nonsense"),
        (("bench", "x", "--runs", "0"), "--runs"),
    ],
)
def test_wrong_usage_is_one_sentence_and_points_to_the_help(cli, arguments, words):
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.error()
    assert result.hint().endswith("--help")


def test_without_the_extra_one_sentence_says_what_to_install(here):
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return None\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name in ('typer', 'rich') else real(name, *rest)\n"
        "sys.modules['typer'] = sys.modules['rich'] = None\n"
        "from strongroom.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "strongroom[cli]"' in done.stderr


def test_completion(program):
    completed = program(
        _STRONGROOM_COMPLETE="complete_bash", COMP_WORDS="strongroom unse", COMP_CWORD="1"
    )
    assert completed.out.split() == ["unseal"]
    completed = program(
        _STRONGROOM_COMPLETE="complete_bash", COMP_WORDS="strongroom seal --seg", COMP_CWORD="2"
    )
    assert completed.out.split() == ["--segment-size"]
    completed = program(
        _STRONGROOM_COMPLETE="complete_bash", COMP_WORDS="strongroom keygen --type ", COMP_CWORD="3"
    )
    assert completed.out.split() == ["symmetric", "hpke", "hpke-x25519"]
    shown = subprocess.run(
        ["bash", "-c", f"{PROGRAM} --show-completion; exit $?"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0
    assert "_STRONGROOM_COMPLETE=complete_bash" in shown.stdout


def start(*arguments, **options):
    options = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([PROGRAM, *map(str, arguments)], **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_sealing_a_pipe_leaves_nothing(key, here, number):
    process = start("seal", "-", "-o", "w.sealed", "-k", key)
    process.stdin.write(bytes(32 << 20))  # more than a pipe holds: it is being sealed
    process.stdin.flush()
    process.send_signal(number)
    assert process.wait(TIMEOUT) == 128 + number
    assert b"Traceback" not in process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert [path.name for path in here.iterdir()] == ["key.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_sealing_a_directory_leaves_nothing(key, here, number):
    (here / "model").mkdir()
    with open(here / "model" / "w.bin", "wb") as file:
        file.truncate(4 << 30)  # without blocks; far more than is sealed before the signal comes
    process = start("seal", "model", "-o", "m.sealed", "-k", key, stdin=subprocess.DEVNULL)
    end = time.monotonic() + TIMEOUT
    while not list(here.glob(".m.sealed.*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(number)
    process.send_signal(number)  # an impatient one must not cut the cleanup short
    assert process.wait(TIMEOUT) == 128 + number
    process.stderr.close()
    assert sorted(path.name for path in here.iterdir()) == ["key.txt", "model"]


def test_a_signal_while_a_library_is_imported_is_no_bug(here):
    # numpy, among others, turns what a signal raises there into an error of its own.
    (here / "odd.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    while True: pass\n"
        "except BaseException:\n    raise ImportError('failed to import') from None\n"
    )
    code = (
        "import sys; from strongroom.cli import process, inspect\n"
        "process.prepare(); process.typer.main.get_command = lambda app: __import__('odd')\n"
        "sys.exit(process.run(['inspect']))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=here, capture_output=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")


def test_a_signal_right_after_the_hidden_directory_was_made(key, folder, here, monkeypatch):
    real = os.mkdir

    def interrupted(path, *rest):
        real(path, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        strongroom.seal(folder, "m.sealed", key=key)
    gc.collect()
    assert sorted(path.name for path in here.iterdir()) == ["key.txt", "model"]


def test_a_reader_that_goes_away_is_no_error(key, weights, sealed):
    for arguments in (
        ("unseal", sealed, "-o", "-", "-k", key),
        ("inspect", sealed),
        ("inspect", sealed, "--json"),
        ("plumbing", "header", sealed),
        ("seal", "--help"),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        process = start(*arguments, stdin=subprocess.DEVNULL, stdout=writer)
        os.close(writer)
        errors = process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == 141, (arguments, errors)
        assert errors == b"" or (arguments[0] == "unseal" and errors.startswith(b"Unsealed")), errors


def test_a_full_disk_behind_standard_output(key, sealed):
    with open("/dev/full", "wb") as full:
        for arguments in (("unseal", sealed, "-o", "-", "-k", key), ("inspect", sealed)):
            process = start(*arguments, stdin=subprocess.DEVNULL, stdout=full)
            errors = process.communicate(timeout=TIMEOUT)[1].decode()
            assert process.returncode == 7, errors
            assert "no space left on device" in errors and "Traceback" not in errors


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(key, sealed, here, closed):
    command = f'"{PROGRAM}" unseal w.sealed -o out -k key.txt {closed}'
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    assert (here / "out").read_bytes() == (here / "weights.bin").read_bytes()
    command = f'"{PROGRAM}" unseal w.sealed -o - -k key.txt 1>&- 2>&-'
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 2


def test_a_bug_is_one_sentence_without_what_the_exception_says(cli, key, sealed, monkeypatch):
    def broken(*arguments):
        raise ValueError("the secret plaintext")

    monkeypatch.setattr(SealedModel, "verify", broken)
    result = cli("verify", sealed, "-k", key)
    assert (result.code, result.out) == (70, "")
    assert "This is a bug in strongroom: ValueError" in result.error()
    assert "STRONGROOM_DEBUG=1" in result.hint()
    assert "secret plaintext" not in result.err
    monkeypatch.setenv("STRONGROOM_DEBUG", "1")
    result = cli("verify", sealed, "-k", key)
    assert result.code == 70
    assert "Traceback" in result.err and "ValueError" in result.err


def test_too_little_memory_is_no_bug(cli, key, sealed, monkeypatch):
    def broken(*arguments):
        raise MemoryError

    monkeypatch.setattr(SealedModel, "verify", broken)
    assert cli("verify", sealed, "-k", key).code == 7


def test_the_process_leaves_no_core(key):
    process = start("seal", "-", "-o", "w.sealed", "-k", key)
    process.stdin.write(bytes(1 << 20))
    process.stdin.flush()
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert "Max core file size        0 " in limits
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_an_unprivileged_user_writes_files_from_a_process_without_dumps(here, weights):
    # Without dumps /proc/self belongs to root, and a file without a name gets one through it.
    here.chmod(0o777)
    weights.chmod(0o644)
    # Another user may not be able to read the interpreter's files: all is imported in a first round.
    script = """if True:
        import os, sys
        from strongroom.cli.process import prepare, run

        def all_verbs(folder):
            key = folder + "key"
            assert run(["keygen", "-o", key]) == 0
            assert run(["seal", "weights.bin", "-o", folder + "w.sealed", "-k", key]) == 0
            assert run(["unseal", folder + "w.sealed", "-o", folder + "out", "-k", key]) == 0

        prepare()
        os.mkdir("first")
        all_verbs("first/")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        prepare()
        assert os.stat("/proc/self/fd").st_uid == 0
        all_verbs("")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (here / "out").read_bytes() == weights.read_bytes()
