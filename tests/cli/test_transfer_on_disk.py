"""What an import writes, seen from outside: its system calls, by strace."""

import base64
import os
import re
import shutil
import subprocess

import pytest
from cryptography.fernet import Fernet

from .conftest import PROGRAM

MARK = b"PLAINTEXTOFMODEL"
KEYS = {
    "model-cryptor": Fernet.generate_key(),
    "gramine": os.urandom(16),
    "laiye": os.urandom(16),
    "kserve-jwe": base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"="),
    "paddle-cipher": os.urandom(32),
}
OPTIONS = {"gramine": ("-O", "processes=2")}


def usable_strace():
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True)
    return f"strace cannot trace here: {done.stderr}" if done.returncode else None


PROBLEM = usable_strace()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


@pytest.fixture
def marked(cli, key, here):
    """A sealed file whose plaintext has the mark in every 64 bytes."""
    lines = (os.urandom(24).hex().encode() + MARK for _ in range(30_000))
    (here / "m.bin").write_bytes(b"".join(lines))
    assert cli("seal", "m.bin", "-o", "m.sealed", "-k", key).code == 0
    (here / "m.bin").unlink()
    return here / "m.sealed"


def written_with_mark(here, *arguments):
    """The writes of a run of the program that have the mark in them, wherever they go."""
    command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "signal=none"]
    command += ["-e", "trace=?write,?pwrite64,?writev,?pwritev,?sendfile", "-o", "trace"]
    done = subprocess.run([*command, PROGRAM, *arguments], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (here / "trace").read_text(errors="replace").splitlines()
    assert lines  # it saw something
    return [line[:200] for line in lines if re.search(MARK.decode(), line)]


@pytest.mark.parametrize("format", KEYS)
def test_nothing_of_an_import_is_written_to_a_disk(cli, key, here, marked, format):
    (here / "foreign.key").write_bytes(KEYS[format])
    exporting = ("export", "m.sealed", "--to", format, "--target-key", "foreign.key", "-k", key)
    insecure = ("--insecure-legacy",) if format == "laiye" else ()
    options = OPTIONS.get(format, ())
    assert written_with_mark(here, *exporting, *insecure, *options, "-o", "m.foreign") == []
    importing = ("import", "m.foreign", "--from", format, "--source-key", "foreign.key", "-k", key)
    assert written_with_mark(here, *importing, *options, "-o", "back.sealed") == []
    assert cli("verify", "back.sealed", "-k", key).code == 0


def test_a_run_that_did_would_be_found(here, key, marked):
    assert written_with_mark(here, "unseal", "m.sealed", "-o", "m.bin", "-k", key)
