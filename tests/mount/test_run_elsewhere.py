"""``strongroom run`` for users who are not root, and what it writes."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mounts import write_key_file
from running import BACKENDS, NO_FUSE, Run, environment, make_models, needs_namespaces, weaker

import strongroom

NOBODY = 65534
MARK = b"PLAINTEXTOFMODEL"

# The interpreter may lie in a home that others cannot enter: then it is shown to this process alone.
_AS_NOBODY = """
set -e
mount --make-rprivate /
home=$1; shift
if [ -n "$home" ]; then
    mkdir -p "$HOLDER/home"; chmod 755 "$HOLDER" "$HOLDER/home"
    for one in "$home"/* "$home"/.[a-zA-Z]*; do
        [ -d "$one" ] && mkdir -p "$HOLDER/home/$(basename "$one")" && mount --rbind "$one" "$HOLDER/home/$(basename "$one")"
    done
    mount --rbind "$HOLDER/home" "$home"
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all -- "$@"
"""


def closed_home():
    """The uppermost directory above the interpreter that others cannot enter, or ''."""
    for base in {Path(sys.base_prefix), Path(sys.prefix), Path(strongroom.__file__)}:
        for one in reversed(base.parents):
            if not one.stat().st_mode & 1:
                return str(one)
    return ""


def nobody_problem():
    """Why no user can have namespaces here, or None."""
    if os.geteuid():
        return "takes root, to become nobody"
    command = ["setpriv", "--reuid", "65534", "--clear-groups", "unshare", "--user", "--mount", "true"]
    done = subprocess.run(command, capture_output=True, check=False)
    return "users have no namespaces here" if done.returncode else None


@pytest.fixture
def public_place():
    """Sealed models and their key, where nobody can read them and keep files."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_models(place)
        for one in [place, *place.rglob("*")]:
            os.chown(one, NOBODY, NOBODY)
        yield place


@needs_namespaces
@pytest.mark.skipif(nobody_problem() is not None, reason=str(nobody_problem()))
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_root(public_place, backend):
    if backend == "fuse" and os.stat("/dev/fuse").st_mode & 6 != 6:
        pytest.skip("/dev/fuse is not for everybody here")
    with tempfile.TemporaryDirectory() as holder:
        before = ["unshare", "--mount", "sh", "-c", _AS_NOBODY, "sh", closed_home()]
        script = (
            "id -u; cmp {models}/m/1/weights.bin plain/1/weights.bin && echo same;"
            "grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status; touch {models}/x || echo read-only; exit 6"
        )
        options = ("-k", "key.txt", "--model", "m.sealed", "--backend", backend)
        one = Run(
            *(*options, "--", "sh", "-c", script),
            before=before,
            cwd=public_place,
            env=environment(HOLDER=holder, HOME=str(public_place)),
        )
        code, out, err = one.end()
        one.close()
    assert code == 6, err
    lines = out.splitlines()
    assert lines[:2] == [str(NOBODY), "same"], err
    assert {line.split()[1] for line in lines[2:5]} == {"0" * 16}, "it has rights of the namespace"
    assert lines[-1] == "read-only"
    assert "warning" not in err


def strace_problem():
    """Why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {done.stderr}" if done.returncode else None


CALLS = "?write,?pwrite64,?writev,?pwritev,?pwritev2,?sendfile,?copy_file_range,?splice,?vmsplice"
IN_MEMORY = re.compile(r"\d+ +\w+\(\d+<(/dev/shm/strongroom-run-|/dev/fuse|anon_inode:)")


@needs_namespaces
@pytest.mark.skipif(strace_problem() is not None, reason=str(strace_problem()))
@pytest.mark.parametrize("kinds", ["fuse", "tmpfs", "mnt user"])
def test_nothing_is_written_to_a_disk(tmp_path, kinds):
    if kinds == "fuse" and NO_FUSE:
        pytest.skip(NO_FUSE)
    key = write_key_file(tmp_path)
    plain = b"".join(os.urandom(24).hex().encode() + MARK for _ in range(20_000))
    (tmp_path / "m.bin").write_bytes(plain)
    strongroom.seal(tmp_path / "m.bin", tmp_path / "m.sealed", key=key)
    (tmp_path / "m.bin").unlink()
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "4096", "-e", "signal=none"]
    strace += ["-e", f"trace={CALLS}", "-o", "trace"]
    backend, before = (kinds, []) if kinds in ("fuse", "tmpfs") else ("tmpfs", weaker(kinds))
    options = ("-k", "key.txt", "--model", "m.sealed", "--backend", backend)
    command = ("--", "sha256sum", "{models}/m.bin")
    one = Run(*options, *command, before=before + strace, cwd=tmp_path, env=environment())
    code, out, err = one.end()
    one.close()
    assert code == 0, err
    assert out.split()[0] == hashlib.sha256(plain).hexdigest()
    lines = (tmp_path / "trace").read_text(errors="replace").splitlines()
    marked = [line[:300] for line in lines if MARK.decode() in line]
    assert marked  # what is written into memory is seen
    assert [line for line in marked if not IN_MEMORY.match(line)] == []
    assert [
        one for one in tmp_path.rglob("*") if one.name != "trace" and MARK in one.read_bytes()
    ] == []
