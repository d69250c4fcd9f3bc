"""A mount seen from outside: without root, and what it writes, by its system calls."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mounts import KEY, mounts_below, needs_fuse, strongroom_mount, write_key_file

import strongroom

pytestmark = needs_fuse

NOBODY = 65534
MARK = b"plaintext of the model 7f3a "
DATA = MARK * 50_000 + random.Random(1).randbytes(3_000_000)

AS_NOBODY = """
import hashlib, os, sys
import strongroom
from strongroom.errors import StrongroomError
from strongroom.mount.fuse import mounted
from strongroom.mount.tree import Tree
import encodings.idna, subprocess, shutil, socket, ctypes, threading

sealed, at, user = sys.argv[1], sys.argv[2], int(sys.argv[3])
with strongroom.open(sealed, key=bytes(range(32))) as model:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    with mounted(Tree({"": model}), at):
        with open(at + "/model.bin", "rb") as file:
            print(hashlib.sha256(file.read()).hexdigest(), flush=True)
        print(os.stat(at + "/model.bin").st_uid, flush=True)
        sys.stdin.readline()
    print(os.listdir(at), flush=True)
    try:
        with mounted(Tree({"": model}), at, allow_other=True):
            print("mounted for all")
    except StrongroomError as error:
        print(error.message)
"""


@pytest.fixture
def place():
    """A sealed file and its key, and a directory to mount at, which others can reach."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        write_key_file(place)
        (place / "model.bin").write_bytes(DATA)
        strongroom.seal(place / "model.bin", place / "model.sealed", key=KEY)
        (place / "at").mkdir()
        yield place


@pytest.mark.skipif(os.getuid() != 0, reason="takes root to be somebody else")
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="fusermount3 is not installed (fuse3)")
def test_without_root(place):
    """By fusermount3; then not even root can read."""
    os.chown(place / "at", NOBODY, NOBODY)
    process = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, place / "model.sealed", place / "at", str(NOBODY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        digest = process.stdout.readline().strip()
        if not digest:
            pytest.fail(process.stderr.read())
        plain = subprocess.run(
            ["sha256sum", place / "model.bin"], capture_output=True, text=True, check=True
        )
        assert digest == plain.stdout.split()[0]
        assert process.stdout.readline() == f"{NOBODY}\n"
        with pytest.raises(PermissionError):
            (place / "at" / "model.bin").read_bytes()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "[]\n"
        # /etc/fuse.conf says whether others may; by itself it does not.
        said = process.stdout.readline()
        assert "user_allow_other" in said or said == "mounted for all\n"
    finally:
        process.kill()
        process.communicate()
    assert mounts_below(place) == []


def strace_problem():
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else "strace cannot trace here"


TO = re.compile(r"^\d+\s+(\w+)\(\d+<([^>]*)>")


@pytest.mark.skipif(strace_problem() is not None, reason=str(strace_problem()))
def test_no_plaintext_is_written_but_to_the_kernel(place):
    trace = place / "trace"
    calls = (
        "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,vmsplice,mmap,sendto"
    )
    strace = ["strace", "-f", "-yy", "-s", "200", "-o", trace, "-e", f"trace={calls}"]
    with strongroom_mount(
        place / "model.sealed", at=place / "at", key=place / "key.txt", before=strace
    ) as mounting:
        assert (place / "at" / "model.bin").read_bytes() == DATA
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(mounting.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(children.stdout.split()[0]), signal.SIGTERM)
        assert mounting.process.wait(60) == 0
    marked, written = set(), set()
    for line in trace.read_text(errors="replace").splitlines():
        if match := TO.match(line):
            call, target = match.groups()
            if call == "mmap":
                continue
            written.add(target)
            if MARK.decode() in line:
                marked.add(target)
        assert not (
            "mmap(" in line and "MAP_SHARED" in line and "PROT_WRITE" in line and "/" in line
        ), line
    assert marked == {"/dev/fuse<char 10:229>"} or all(one.startswith("/dev/fuse") for one in marked)
    assert marked
    # Nothing else is written than words to the service manager, to standard error, and to the kernel.
    log = rf"{re.escape(tempfile.gettempdir())}/\S*/log$"
    allowed = re.compile(rf"/dev/fuse|/sys/|UNIX|socket:|anon_inode:|pipe:|{log}|/dev/null")
    assert [one for one in written if not allowed.match(one)] == []
