"""``--preload``: afterwards nothing is asked of the sealed files any more; what goes wrong meanwhile costs nobody."""

import errno
import hashlib
import logging
import mmap
import os
import random
import struct
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from mounts import KEY, PROGRAM, SECONDS, mounts_below, needs_fuse, strongroom_mount, write_key_file
from running import needs_fuse as needs_run_with_fuse
from running import runs

import strongroom
from strongroom.errors import UsageError
from strongroom.model.payload import SealedContent
from strongroom.mount import fuse, preload, protocol
from strongroom.mount.fuse import mounted
from strongroom.mount.models import open_tree
from strongroom.mount.server import LOG, Server
from strongroom.mount.tree import Tree
from strongroom.providers import sources

pytestmark = needs_fuse

SEGMENT = 1 << 16
MIB = 1 << 20
SIZES = (0, 1, 4095, 4096, 4097, SEGMENT - 56, SEGMENT, 2 * MIB - 16, 2 * MIB, 7 * MIB + 12_345)
FILES = {f"{size}.bin": random.Random(size).randbytes(size) for size in SIZES} | {"config.json": b"{}"}
TOTAL = sum(map(len, FILES.values()))
LARGEST = f"{max(SIZES)}.bin"


@pytest.fixture
def place(tmp_path):
    """A sealed directory, ``plain/`` that it was made of, its key, and ``at/`` to mount at."""
    write_key_file(tmp_path)
    (tmp_path / "plain" / "1").mkdir(parents=True)
    for name, data in FILES.items():
        (tmp_path / "plain" / "1" / name).write_bytes(data)
    strongroom.seal(
        tmp_path / "plain", tmp_path / "model.sealed", key=KEY, segment_size=SEGMENT, clear=["*.json"]
    )
    (tmp_path / "at").mkdir()
    return tmp_path


def wait_for(found):
    end = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def said(log):
    """The line of the end, of what was said so far."""
    return next((line for line in log.splitlines() if ": preloaded, " in line), None)


def zero(place):
    """Leave nothing of the sealed files that could be read."""
    for path in place.rglob("*.bin.sealed"):
        path.write_bytes(bytes(path.stat().st_size))


@contextmanager
def preloading(place):
    """A tree that this process shows and preloads: the lines of its log, and what serves it."""

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    lines, handler, before = [], Lines(), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        with (
            open_tree(
                [str(place / "model.sealed")], lambda: sources.identities(KEY), flat=True
            ) as tree,
            mounted(tree, place / "at", preload=True) as mount,
        ):
            yield lines, mount._server
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)


def ended():
    return not any(one.name == "strongroom-preload" for one in threading.enumerate())


@pytest.fixture
def stored(monkeypatch):
    """What the kernel has taken unasked, each as a file and how many bytes of it."""
    found, store = [], Server.store

    def record(self, number, offset, data):
        store(self, number, offset, data)
        found.append((self._tree.numbered(number).path, len(data)))

    monkeypatch.setattr(Server, "store", record)
    return found


def test_the_sealed_files_are_not_needed_any_more(place):
    """Read and mapped: the page at the end of each piece is there too."""
    with strongroom_mount(
        place / "model.sealed", at=place / "at", key=place / "key.txt", options=["--preload"]
    ) as mounting:
        line = wait_for(lambda: said(mounting.log()))
        assert f": preloaded, {TOTAL} of {TOTAL} bytes in " in line
        assert "the rest" not in line
        zero(place)
        for name, data in FILES.items():
            with (place / "at" / "1" / name).open("rb") as file:
                assert file.read() == data, name
                if data:
                    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
                        assert mapping[:] == data
        assert "not readable" not in mounting.log()
        assert mounting.end() == 0
    assert mounts_below(place) == []


def test_it_stays_where_the_kernel_forgets_names(place):
    """As it does when memory is short; with its name a file that nobody holds goes, and all that is kept of it."""
    with preloading(place) as (_, server):
        wait_for(ended)
        zero(place)
        folder = server._tree.node("1")
        for name in folder.children:
            message = struct.pack("=QII", folder.number, len(name), 0) + name.encode() + b"\0"
            os.write(server._device, struct.pack("=IiQ", 16 + len(message), 3, 0) + message)
        for name, data in FILES.items():
            assert (place / "at" / "1" / name).read_bytes() == data


def test_where_there_are_no_watches(place, monkeypatch):
    monkeypatch.setattr(preload.Preload, "start", without_watches(preload.Preload.start))
    with preloading(place) as (lines, _):
        wait_for(ended)
        assert f": preloaded, {TOTAL} of {TOTAL} bytes in " in lines[0]


def without_watches(start):
    def begin(self):
        os.close(self._watches)
        self._watches = -1
        start(self)

    return begin


@needs_run_with_fuse
def test_a_program_that_starts_meanwhile(place):
    with runs() as start:
        options = ("-k", place / "key.txt", "-m", place / "model.sealed", "--backend", "fuse")
        command = ("sh", "-c", "echo started; read go; sha256sum < {models}/model/1/" + LARGEST)
        one = start(*options, "--preload", "--", *command)
        assert one.line() == "started"
        while not said(line := one.process.stderr.readline()):
            assert line
        zero(place)
        one.say("go")
        code, out, err = one.end()
        assert (code, err) == (0, "")
        assert out.split()[0] == hashlib.sha256(FILES[LARGEST]).hexdigest()


def test_a_tampered_file(place):
    """One line, the same as for who reads it, and EIO; all others are there."""
    sealed = place / "model.sealed" / "1" / f"{LARGEST}.sealed"
    data = bytearray(sealed.read_bytes())
    data[60 * SEGMENT] ^= 1
    sealed.write_bytes(data)
    with strongroom_mount(
        place / "model.sealed", at=place / "at", key=place / "key.txt", options=["--preload"]
    ) as mounting:
        assert "; the rest is decrypted when it is read" in wait_for(lambda: said(mounting.log()))
        with pytest.raises(OSError) as caught:
            (place / "at" / "1" / LARGEST).read_bytes()
        assert caught.value.errno == errno.EIO
        zero(place)
        for name in FILES.keys() - {LARGEST}:
            assert (place / "at" / "1" / name).read_bytes() == FILES[name]
        assert mounting.log().count("not readable") == 1
        assert mounting.end() == 0


def test_unmounted_while_a_piece_is_read(place, monkeypatch, stored):
    """The mount goes at once, what comes later is not handed over, and only then the device is closed."""
    begun, go_on, join = threading.Event(), threading.Event(), fuse.Preload.join
    read_into = SealedContent.read_into

    def slow(self, *arguments):
        if threading.current_thread().name == "strongroom-preload":
            begun.set()
            assert go_on.wait(SECONDS)
        return read_into(self, *arguments)

    def gone(self, seconds):
        assert mounts_below(place) == []
        go_on.set()
        return join(self, SECONDS)

    monkeypatch.setattr(SealedContent, "read_into", slow)
    monkeypatch.setattr(fuse.Preload, "join", gone)
    with preloading(place) as (lines, _):
        assert begun.wait(SECONDS)
    assert ended()
    assert lines == []
    assert stored == []


def test_ended_at_any_moment(place):
    for number in range(5):
        with preloading(place) as (lines, _):
            time.sleep(number / 100)
        assert ended()
        assert not any("bug" in line or "not readable" in line for line in lines)
        assert mounts_below(place) == []


class Waiting(threading.Event):
    """Says when somebody waits for it."""

    def __init__(self):
        super().__init__()
        self.waited = threading.Event()

    def wait(self, timeout=None):
        self.waited.set()
        return super().wait(timeout)


@pytest.fixture
def held(monkeypatch):
    """Preloading that finds somebody reading until somebody has read."""
    events, init = [], preload.Preload.__init__

    def begin(self, server, *arguments):
        init(self, server, *arguments)
        self._stop = Waiting()
        events.append(self._stop)
        server.last_read = float("inf")

    monkeypatch.setattr(preload.Preload, "__init__", begin)
    return events


def test_readers_go_first_and_nothing_is_decrypted_twice(place, held, stored):
    with preloading(place) as (lines, _):
        assert held[0].waited.wait(SECONDS)
        assert stored == []
        assert (place / "at" / "1" / LARGEST).read_bytes() == FILES[LARGEST]
        wait_for(ended)
        assert f": preloaded, {TOTAL} of {TOTAL} bytes in " in lines[0]
        assert f"1/{LARGEST}" not in {path for path, _ in stored}
        assert {path for path, _ in stored} == {f"1/{name}" for name in FILES if FILES[name]} - {
            f"1/{LARGEST}"
        }
        zero(place)
        for name, data in FILES.items():
            assert (place / "at" / "1" / name).read_bytes() == data


def test_beside_what_was_read_no_page_is_made_up(place, held, stored):
    """Blocks end within pages: of the first page after one that was read nothing is known."""
    with preloading(place) as (_, server):
        assert held[0].waited.wait(SECONDS)
        node = server._tree.node(f"1/{LARGEST}")
        start, end = node.content().span(3 * MIB)
        assert start % 4096
        assert end % 4096
        server.shown.add((node.number, start))
        server.last_read = 0.0
        wait_for(ended)
        assert sum(size for path, size in stored if path == node.path) < node.size - 4096
        assert (place / "at" / node.path).read_bytes() == FILES[LARGEST]


def test_its_own_memory_is_wiped(place, monkeypatch):
    buffers, make = [], preload.new_buffer

    def record(size):
        buffers.append(make(size))
        return buffers[-1]

    monkeypatch.setattr(preload, "new_buffer", record)
    with preloading(place):
        wait_for(ended)
    assert len(buffers) == len(FILES)
    assert not any(any(one) for one in buffers)


def test_it_stops_where_memory_does(place, monkeypatch, stored):
    room = 5 * MIB
    monkeypatch.setattr(preload, "memory_left", lambda: room)
    with preloading(place) as (lines, _):
        wait_for(ended)
        assert 2 * MIB < sum(size for _, size in stored) <= room
        assert "; the rest is decrypted when it is read" in lines[0]
        for name, data in FILES.items():
            assert (place / "at" / "1" / name).read_bytes() == data


def test_what_others_take_meanwhile(place, monkeypatch, stored):
    """The room is measured again while it goes on."""
    left = iter([100 * MIB])
    monkeypatch.setattr(preload, "memory_left", lambda: next(left, 0))
    monkeypatch.setattr(preload, "_LOOK_AGAIN", MIB)
    with preloading(place) as (lines, _):
        wait_for(ended)
        assert MIB <= sum(size for _, size in stored) < 5 * MIB
        assert "; the rest is decrypted when it is read" in lines[0]


def test_what_was_stored_is_taken_away(place, monkeypatch):
    """From the kernel, where the mount ends with files open: what nobody has opened too, and what came late."""
    taken, invalidate, header = [], Server._invalidate, protocol.store_header

    def record(self, number):
        taken.append(number)
        invalidate(self, number)

    with preloading(place) as (_, server):
        wait_for(ended)
        monkeypatch.setattr(Server, "_invalidate", record)
        numbers = {server._tree.node(f"1/{name}").number for name, data in FILES.items() if data}

        def late(*arguments):
            server.stop_reading()
            assert set(taken) == numbers
            taken.clear()
            return header(*arguments)

        monkeypatch.setattr(protocol, "store_header", late)
        number, data = min(numbers), memoryview(b"\1")
        server.store(number, 0, data)
        assert taken == [number]
        with pytest.raises(OSError) as caught:
            server.store(number, 0, data)
        assert caught.value.errno == errno.ECONNABORTED


def test_without_a_page_cache(place):
    with (
        strongroom.open(place / "model.sealed", key=KEY) as model,
        pytest.raises(UsageError),
        mounted(Tree({"": model}), place / "at", page_cache=False, preload=True),
    ):
        pass
    for verb, *options in (
        ("mount", place / "model.sealed", place / "at", "--no-page-cache"),
        ("run", "-m", place / "model.sealed", "--backend", "tmpfs", "--", "true"),
        ("run", "-m", place / "model.sealed", "--wipe-when", "http://127.0.0.1:1/", "--", "true"),
    ):
        command = [PROGRAM, verb, "--preload", "-k", place / "key.txt", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode == 2, done.stderr
        assert "eave out" in done.stderr
    assert mounts_below(place) == []
