"""How a mount begins and ends: who may read, what is left afterwards, what a killed process leaves."""

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from mounts import KEY, PROGRAM, SECONDS, mounts_below, needs_fuse, strongroom_mount, write_key_file

import strongroom
from strongroom.errors import NotFound, UsageError
from strongroom.mount import fuse
from strongroom.mount.fuse import mounted
from strongroom.mount.models import name_and_location, open_tree
from strongroom.mount.tree import Tree
from strongroom.providers import sources

pytestmark = needs_fuse

DATA = random.Random(1).randbytes(3_000_000)
NOBODY = 65534


@pytest.fixture
def place(tmp_path):
    """A sealed file and its key, and a directory to mount at."""
    write_key_file(tmp_path)
    (tmp_path / "model.bin").write_bytes(DATA)
    strongroom.seal(tmp_path / "model.bin", tmp_path / "model.sealed", key=KEY)
    (tmp_path / "at").mkdir()
    return tmp_path


@pytest.fixture
def tree(place):
    with open_tree([str(place / "model.sealed")], lambda: sources.identities(KEY), flat=True) as tree:
        yield tree


def shown(place, **options):
    return strongroom_mount(place / "model.sealed", at=place / "at", key=place / "key.txt", **options)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, "umount"])
def test_it_ends_and_leaves_nothing(place, how):
    with shown(place) as mounting:
        assert (place / "at" / "model.bin").read_bytes() == DATA
        if how == "umount":
            subprocess.run(["umount", place / "at"], check=True)
            assert mounting.process.wait(SECONDS) == 0
        else:
            assert mounting.end(how) == 0
        assert mounts_below(place) == []
        assert os.listdir(place / "at") == []
        assert "ERROR" not in mounting.log()


def test_what_is_open_is_taken_away(place):
    """A process that still maps the file when the mount ends finds no plaintext there, cached or not."""
    code = f"""
import mmap, os, sys
file = open({str(place / "at" / "model.bin")!r}, "rb")
mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert mapping[:] == open({str(place / "model.bin")!r}, "rb").read()
print("mapped", flush=True)
sys.stdin.readline()
try:
    os.pread(file.fileno(), 100, 0)
except OSError as error:
    print(error.errno, flush=True)
mapping[4096]
"""
    with shown(place) as mounting:
        reader = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout.readline() == "mapped\n"
        assert mounting.end() == 0
        assert mounts_below(place) == []
        out, _ = reader.communicate("\n", SECONDS)
        assert int(out) in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        assert reader.returncode == -signal.SIGBUS


def test_killed_and_mounted_again(place):
    with shown(place) as mounting:
        mounting.process.kill()
        mounting.process.wait(SECONDS)
        with pytest.raises(OSError) as caught:
            os.listdir(place / "at")
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        with shown(place) as again:
            assert (place / "at" / "model.bin").read_bytes() == DATA
            assert "the mount of a process that was killed is taken away" in again.log()
            assert again.end() == 0
        assert mounts_below(place) == []


def test_what_somebody_has_mounted_there_since_stays(place, tree):
    """Unmounted by somebody, and mounted again by somebody else before the first one knows."""
    with ExitStack() as second:
        with mounted(tree, place / "at"):
            subprocess.run(["umount", place / "at"], check=True)
            second.enter_context(mounted(tree, place / "at"))
        assert (place / "at" / "model.bin").read_bytes() == DATA
    assert mounts_below(place) == []


def test_what_is_mounted_over_it_stays(place, tree, monkeypatch):
    monkeypatch.setattr(fuse, "_JOIN_SECONDS", 0.1)  # The connection ends with the mount below.
    try:
        with mounted(tree, place / "at"):
            subprocess.run(["mount", "-t", "tmpfs", "none", place / "at"], check=True)
            (place / "at" / "mine").touch()
        assert os.listdir(place / "at") == ["mine"]
    finally:
        subprocess.run(["umount", place / "at"], check=True)
        subprocess.run(["umount", place / "at"], check=True)


def test_unmounted_lazily_and_in_use(place):
    """Who has it open reads on until the mount ends, and then finds no plaintext either."""
    with shown(place) as mounting, (place / "at" / "model.bin").open("rb", buffering=0) as file:
        subprocess.run(["umount", "-l", place / "at"], check=True)
        assert file.read(len(DATA)) == DATA
        mounting.process.send_signal(signal.SIGTERM)
        with pytest.raises(OSError) as caught:
            while True:
                os.pread(file.fileno(), 100, 0)
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        file.close()
        assert mounting.process.wait(SECONDS) == 0


def as_nobody(*command):
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="takes root to be somebody else")
def test_other_users(tree):
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "model.bin").write_bytes(DATA)
        (place / "at").mkdir()
        check_other_users(place, tree)


def check_other_users(place, tree):
    path = place / "at" / "model.bin"
    with mounted(tree, place / "at"):
        assert path.read_bytes() == DATA
        for command in (("cat", path), ("ls", place / "at"), ("stat", path)):
            done = as_nobody(*command)
            assert done.returncode != 0
            assert "Permission denied" in done.stderr
            assert done.stdout == ""
    with mounted(tree, place / "at", allow_other=True):
        done = as_nobody("sha256sum", path, place / "model.bin")
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first.split()[0] == second.split()[0]
        assert as_nobody("chmod", "777", path).returncode != 0


def test_where_it_cannot_be_mounted(place, tree, monkeypatch):
    with pytest.raises(NotFound, match="is not there") as caught, mounted(tree, place / "other"):
        pass
    assert "mkdir -p" in caught.value.hint
    with pytest.raises(UsageError, match="not a directory"), mounted(tree, place / "key.txt"):
        pass
    with (
        mounted(tree, place / "at"),
        pytest.raises(UsageError, match="mounted at"),
        mounted(tree, place / "at"),
    ):
        pass
    monkeypatch.setattr(fuse, "_DEVICE", str(place / "no-such-device"))
    with (
        pytest.raises(UsageError, match="cannot be opened: no such file") as caught,
        mounted(tree, place / "at"),
    ):
        pass
    assert "strongroom run --backend tmpfs" in caught.value.hint
    assert "no such file" in fuse.available()
    assert mounts_below(place) == []


def test_refused_options(place):
    def mount(*arguments):
        command = [PROGRAM, "mount", *map(str, arguments), "-k", place / "key.txt"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)

    done = mount(place / "at")
    assert done.returncode == 2
    assert "Give the sealed models" in done.stderr
    sealed = place / "model.sealed"
    done = mount(sealed, sealed, place / "at")
    assert done.returncode == 2
    assert "two models model.bin" in done.stderr
    assert mounts_below(place) == []


def test_names(place):
    (place / "a=b.sealed").write_bytes((place / "model.sealed").read_bytes())
    assert name_and_location(str(place / "a=b.sealed")) == (None, str(place / "a=b.sealed"))
    assert name_and_location("resnet=/models/r.sealed") == ("resnet", "/models/r.sealed")
    assert name_and_location("https://host/m?token=x") == (None, "https://host/m?token=x")
    assert name_and_location("m=https://host/m?token=x") == ("m", "https://host/m?token=x")
    with open_tree(
        [f"x.bin={place}/model.sealed", f"{place}/model.sealed"], lambda: sources.identities(KEY)
    ) as tree:
        assert tree.names() == ["x.bin", "model.bin"]


def test_nothing_is_kept_of_files_that_are_closed(place):
    """Blocks of plaintext are wiped and given back when the last who has the file open closes it."""
    cached = []
    with (
        strongroom.open(place / "model.sealed", key=KEY) as model,
        mounted(Tree({"": model}), place / "at", page_cache=False) as mount,
    ):
        cache = mount._server._cache
        with (place / "at" / "model.bin").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100, 0) == DATA[:100]
            assert os.pread(file.fileno(), 100, 2_500_000) == DATA[2_500_000:2_500_100]
            cached = [block.buffer for block in cache._blocks.values()]
            assert cache.size > 0
            assert any(any(buffer) for buffer in cached)
        end = time.monotonic() + SECONDS
        while cache.size:  # The kernel says that a file is closed after it has closed it.
            assert time.monotonic() < end
            time.sleep(0.01)
        assert cached
        assert not any(any(buffer) for buffer in cached)


def test_the_cache_has_a_bound(place, tmp_path):
    (tmp_path / "large").write_bytes(DATA * 10)
    strongroom.seal(tmp_path / "large", tmp_path / "large.sealed", key=KEY)
    with (
        strongroom.open(tmp_path / "large.sealed", key=KEY) as model,
        mounted(Tree({"": model}), place / "at", page_cache=False, cache_bytes=8 << 20) as mount,
        (place / "at" / "large").open("rb", buffering=0) as file,
    ):
        for offset in (*range(0, len(DATA) * 10, 700_000), *range(0, len(DATA) * 10, 1_000_000)):
            assert (
                os.pread(file.fileno(), 1000, offset)
                == (DATA * 2)[offset % len(DATA) :][:1000][: len(DATA) * 10 - offset]
            )
            assert mount._server._cache.size <= 12 << 20  # a reader's block and one ahead beyond it


def test_mappings_of_this_process(place, tree):
    """Nobody maps what it serves itself: a page fault holds the interpreter's lock. A child can."""
    with mounted(tree, place / "at"):
        code = f"import mmap; file = open({str(place / 'at/model.bin')!r}, 'rb')\n"
        code += f"print(sum(mmap.mmap(file.fileno(), 0, prot={mmap.PROT_READ})[:]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(done.stdout) == sum(DATA)
