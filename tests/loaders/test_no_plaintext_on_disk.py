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
ALLOWED_ON_DISK = 4096


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
    """What a process wrote outside memory, and how often it wrote to memory files."""

    on_disk: list[str] = field(default_factory=list)
    bytes_on_disk: int = 0
    shared_maps: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def leaks(self):
        large = self.on_disk if self.bytes_on_disk > ALLOWED_ON_DISK else []
        return self.marked + self.shared_maps + self.other + large


CALL = re.compile(r"^\d+\s+(?:\d+\.\d+ )?(\w+)\((.*)$")
FILE = re.compile(r"^\d+<([^>]*)>")
COUNT = re.compile(r'"(?:\.\.\.)?, (\d+)')


def parse(text):
    trace = Trace()
    for line in text.splitlines():
        if not (match := CALL.match(line)):
            continue  # exits, signals, the second halves of interrupted calls
        call, arguments = match.groups()
        if call in ("mmap", "mmap2"):
            mapped = re.search(r"\d+<([^>]*)>", arguments)
            shared = "MAP_SHARED" in arguments and "PROT_WRITE" in arguments
            if shared and mapped and not MEMORY.match(mapped[1]):
                trace.shared_maps.append(line[:300])
        elif call in ("write", "pwrite64"):
            target = FILE.match(arguments)
            if target is None or MEMORY.match(target[1]):
                continue
            trace.on_disk.append(line[:300])
            count = COUNT.search(arguments)
            trace.bytes_on_disk += int(count[1]) if count else ALLOWED_ON_DISK + 1
            if loading_cases.MARK.decode() in line:
                trace.marked.append(line[:300])
        elif call in ("writev", "pwritev", "pwritev2", "sendfile", "fallocate"):
            target = FILE.match(arguments)
            if target is None or not MEMORY.match(target[1]):
                trace.other.append(line[:300])
        else:
            trace.other.append(line[:300])  # nothing here has a use for these
    return trace


def traced_load(case, sealed, key, tmp_path):
    log = tmp_path / "trace"
    environment = os.environ | {
        "STRONGROOM_KEY": key,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "TMPDIR": str(tmp_path),
    }
    command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "signal=none", "-e", f"trace={CALLS}"]
    script = str(Path(__file__).with_name("loading_cases.py"))
    done = subprocess.run(
        [*command, "-o", log, sys.executable, script, "load", case, sealed],
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
        sealed = tmp_path / "sealed"
        strongroom.seal(loading_cases.CASES[case][0](plain, SIZE), sealed, key=key)
        shutil.rmtree(plain)
        return sealed

    return make


ENVIRONMENT_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
LOADERS = [case for case in loading_cases.CASES if not case.startswith("leak")]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", LOADERS)
def test_loaders_write_no_model_bytes_to_a_disk(case, sealed_case, tmp_path):
    sealed = sealed_case(case)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    trace = traced_load(case, sealed, ENVIRONMENT_KEY, tmp_path)
    assert trace.leaks == []
    for path in {path for path in tmp_path.rglob("*") if path.is_file()} - before:
        if path.name != "trace":
            assert loading_cases.MARK not in path.read_bytes()


@pytest.mark.parametrize("case", ["leak by write", "leak by map"])
def test_a_loader_that_did_would_be_found(case, sealed_case, tmp_path):
    trace = traced_load(case, sealed_case(case), ENVIRONMENT_KEY, tmp_path)
    assert trace.leaks
    assert bool(trace.marked) == (case == "leak by write")
    assert bool(trace.shared_maps) == (case == "leak by map")
    leaked = (tmp_path / "sealed.leak").read_bytes()
    assert leaked.count(loading_cases.MARK) > SIZE // 64 - 100
