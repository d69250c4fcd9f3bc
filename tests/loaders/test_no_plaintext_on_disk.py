"""What a load writes, seen from outside: system calls of a process that loads, by strace."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import loading_cases
import pytest

import strongroom

SIZE = 8 << 20
# Several MB: libraries that spill do not bother below.

CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,vmsplice,tee,"
    "mmap,mmap2,io_uring_setup,io_setup,mount,fallocate"
)
CALLS = ",".join("?" + call for call in CALLS.split(","))  # ? where a machine has no such call

MEMORY = re.compile(
    r"/memfd:|/dev/shm/|/dev/(null|zero|pts/|tty)|/proc/|pipe:|socket:|anon_inode:|\[|TCP|UNIX"
)
IN_FIRST_ARGUMENT = ("write", "pwrite", "sendfile", "fallocate")
# Where these write to. The other calls have no use in a load, and count wherever they write.


def usable_strace():
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True)
    if done.returncode:
        return f"strace cannot trace here: {done.stderr.strip().splitlines()[-1]}"
    return None


PROBLEM = usable_strace()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


@dataclass
class Trace:
    """System calls that write elsewhere than into memory; those whose bytes are the model's; shared maps."""

    written: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    shared_maps: list[str] = field(default_factory=list)


CALL = re.compile(r"^\d+\s+(\w+)\((.*)$")
FILE = re.compile(r"^\d+<([^>]*)>")


def in_memory(target):
    return target is not None and MEMORY.match(target[1]) is not None


def parse(text):
    trace = Trace()
    for line in text.splitlines():
        if not (match := CALL.match(line)):
            continue  # exits, signals, the second halves of interrupted calls
        call, arguments = match.groups()
        if call in ("mmap", "mmap2"):
            mapped = re.search(r"\d+<([^>]*)>", arguments)
            shared = "MAP_SHARED" in arguments and "PROT_WRITE" in arguments
            if shared and mapped and not in_memory(mapped):
                trace.shared_maps.append(line[:300])
        elif call.startswith(IN_FIRST_ARGUMENT) and in_memory(FILE.match(arguments)):
            continue
        else:
            trace.written.append(line[:300])
            if loading_cases.MARK.decode() in line:
                trace.marked.append(line[:300])
    return trace


def traced_load(models, key, tmp_path):
    """``models``: case → sealed model, all loaded by one process, one after another."""
    log = tmp_path / "trace"
    environment = os.environ | {
        "STRONGROOM_KEY": key,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        # Else torch asks Python for a place of temporary files, which is tried by writing "blat".
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    # The kernel stops it at these calls alone: else strace takes as long as the load.
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "4096", "-e", "signal=none"]
    script = str(Path(__file__).with_name("loading_cases.py"))
    words = [word for pair in models.items() for word in pair]
    done = subprocess.run(
        [*command, "-e", f"trace={CALLS}", "-o", log, sys.executable, script, "load", *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return parse(log.read_text(errors="replace"))


@pytest.fixture
def sealed_case(tmp_path, key):
    def make(case):
        plain = tmp_path / "plain"
        plain.mkdir()
        sealed = tmp_path / f"{case}.sealed"
        strongroom.seal(loading_cases.CASES[case][0](plain, SIZE), sealed, key=key)
        shutil.rmtree(plain)
        return sealed

    return make


ENVIRONMENT_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
LOADERS = [case for case in loading_cases.CASES if not case.startswith("leak")]
FRAMEWORKS = sorted({case.split()[0] for case in LOADERS})
"""Names of cases begin with these. To import a framework takes longer than to load a model."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_loaders_write_nothing_to_a_disk(framework, sealed_case, tmp_path):
    models = {case: sealed_case(case) for case in LOADERS if case.split()[0] == framework}
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    trace = traced_load(models, ENVIRONMENT_KEY, tmp_path)
    assert trace.written == []
    assert trace.shared_maps == []
    for path in {path for path in tmp_path.rglob("*") if path.is_file()} - before:
        if path.name != "trace":
            assert loading_cases.MARK not in path.read_bytes()


@pytest.mark.parametrize("case", ["leak by write", "leak by map"])
def test_a_loader_that_did_would_be_found(case, sealed_case, tmp_path):
    trace = traced_load({case: sealed_case(case)}, ENVIRONMENT_KEY, tmp_path)
    assert bool(trace.marked) == (case == "leak by write")
    assert bool(trace.shared_maps) == (case == "leak by map")
    leaked = (tmp_path / f"{case}.sealed.leak").read_bytes()
    assert leaked.count(loading_cases.MARK) > SIZE // 64 - 100
