"""Models that are tampered with, cut, replaced, or far away: errors, one line that says why, never wrong bytes."""

import errno
import logging
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mounts import KEY, SECONDS, needs_fuse

import strongroom
from strongroom.mount.fuse import mounted
from strongroom.mount.models import open_tree
from strongroom.mount.server import LOG
from strongroom.providers import sources

pytestmark = needs_fuse

SEGMENT = 1 << 16
DATA = random.Random(1).randbytes(5_000_000)
OTHER = random.Random(2).randbytes(300_000)


@pytest.fixture
def sealed(tmp_path):
    """A sealed directory of two files."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.bin").write_bytes(DATA)
    (tmp_path / "plain" / "other.bin").write_bytes(OTHER)
    strongroom.seal(tmp_path / "plain", tmp_path / "model.sealed", key=KEY, segment_size=SEGMENT)
    return tmp_path / "model.sealed"


@pytest.fixture
def at(tmp_path):
    place = tmp_path / "shown"
    place.mkdir()
    return place


@dataclass
class Shown:
    """A tree that this process serves: what reads it gives up the interpreter's lock, which mappings do not."""

    lines: list[str]

    def log(self):
        return "\n".join(self.lines)


@contextmanager
def shown(*sealed, at, page_cache=True):
    class Lines(logging.Handler):
        def emit(self, record):
            seen.lines.append(record.getMessage())

    seen, handler = Shown([]), Lines()
    LOG.addHandler(handler)
    try:
        with (
            open_tree(list(map(str, sealed)), lambda: sources.identities(KEY), flat=True) as tree,
            mounted(tree, at, page_cache=page_cache),
        ):
            yield seen
    finally:
        LOG.removeHandler(handler)


def change(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def read_up_to_failure(path, size=100_000):
    """What is read before an error, and the error."""
    found = bytearray()
    try:
        with path.open("rb", buffering=0) as file:
            while data := os.pread(file.fileno(), size, len(found)):
                found += data
    except OSError as error:
        return bytes(found), error.errno
    return bytes(found), 0


def test_a_changed_segment(sealed, at):
    file = sealed / "model.bin.sealed"
    change(file, 60 * SEGMENT + 5000)
    with shown(sealed, at=at) as mounting:
        for _ in range(3):
            found, error = read_up_to_failure(at / "model.bin")
            assert error == errno.EIO
            assert len(found) < len(DATA)
            assert found == DATA[: len(found)]
        lines = [line for line in mounting.log().splitlines() if "not readable" in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("model.bin: ")
        assert "segment 59" in lines[0] or "segment 60" in lines[0], lines
        assert (at / "other.bin").read_bytes() == OTHER


def test_a_name_forges_no_line(at, tmp_path):
    name = "a\nERROR \x1b[2Jall is well"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / name).write_bytes(OTHER)
    strongroom.seal(tmp_path / "plain", tmp_path / "model.sealed", key=KEY, segment_size=SEGMENT)
    change(tmp_path / "model.sealed" / f"{name}.sealed", 3 * SEGMENT)
    with shown(tmp_path / "model.sealed", at=at) as mounting:
        assert read_up_to_failure(at / name)[1] == errno.EIO
    (line,) = mounting.log().splitlines()
    assert line.startswith(r"a\nERROR \x1b[2Jall is well: not readable: ")


def test_a_truncated_file(sealed, at):
    file = sealed / "model.bin.sealed"
    os.truncate(file, 10 * SEGMENT + 4096)  # the header area, and whole segments
    with shown(sealed, at=at) as mounting:
        assert read_up_to_failure(at / "model.bin") == (b"", errno.EIO)
        assert "model.bin: not readable: " in mounting.log()
        assert (at / "other.bin").read_bytes() == OTHER


def test_a_file_cut_while_it_is_open(sealed, at):
    with shown(sealed, at=at, page_cache=False) as mounting:
        with (at / "model.bin").open("rb", buffering=0) as file:
            assert file.read(10) == DATA[:10]
            os.truncate(sealed / "model.bin.sealed", 8 * SEGMENT)
            with pytest.raises(OSError) as caught:
                os.pread(file.fileno(), 10, 4_900_000)
            assert caught.value.errno == errno.EIO
        assert "before its contents do" in mounting.log()


def test_a_file_of_another_model(sealed, at, tmp_path):
    strongroom.seal(tmp_path / "plain", tmp_path / "again.sealed", key=KEY, segment_size=SEGMENT)
    shutil.copy(tmp_path / "again.sealed" / "model.bin.sealed", sealed / "model.bin.sealed")
    with shown(sealed, at=at) as mounting:
        assert read_up_to_failure(at / "model.bin") == (b"", errno.EIO)
        assert "another sealed model" in mounting.log()


def test_a_model_that_is_replaced(sealed, at, tmp_path):
    """What is open goes on being read, and a file of the new one is not taken for one of the old."""
    (tmp_path / "new").mkdir()
    for name in ("model.bin", "other.bin"):
        (tmp_path / "new" / name).write_bytes(bytes(1000))
    with shown(sealed, at=at), (at / "model.bin").open("rb", buffering=0) as file:
        strongroom.seal(tmp_path / "new", sealed, key=KEY, overwrite=True)
        assert os.pread(file.fileno(), len(DATA), 0) == DATA
        found, error = read_up_to_failure(at / "other.bin")
        assert (found, error) == (OTHER, 0) or (found, error) == (b"", errno.EIO)
        assert (at / "model.bin").read_bytes() == DATA
    with shown(sealed, at=at):
        assert (at / "model.bin").read_bytes() == bytes(1000)


def test_a_sealed_file_that_is_replaced(at, tmp_path):
    (tmp_path / "plain.bin").write_bytes(DATA)
    strongroom.seal(tmp_path / "plain.bin", tmp_path / "one.sealed", key=KEY, segment_size=SEGMENT)
    with shown(tmp_path / "one.sealed", at=at):
        (tmp_path / "plain.bin").write_bytes(OTHER)
        strongroom.seal(
            tmp_path / "plain.bin",
            tmp_path / "one.sealed",
            key=KEY,
            segment_size=SEGMENT,
            overwrite=True,
        )
        assert (at / "plain.bin").read_bytes() == DATA


class Web:
    """Files by HTTP with ranges; what is asked of one of them waits until it may go on, or is refused."""

    def __init__(self, folder: Path, slow: str) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.refuse = False
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                name = self.path.lstrip("/")
                data = (folder / name).read_bytes()
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                if name == slow and int(first) > 0:
                    web.go_on.wait(SECONDS)
                    if web.refuse:
                        self.send_response(403)
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                part = data[int(first) : int(last) + 1]
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.send_header(
                    "Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                )
                self.end_headers()
                self.wfile.write(part)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_a_slow_and_then_lost_place(at, tmp_path):
    pytest.importorskip("aiohttp")
    for name, data in (("slow.bin", DATA), ("near.bin", OTHER)):
        (tmp_path / name).write_bytes(data)
        strongroom.seal(tmp_path / name, tmp_path / f"{name}.sealed", key=KEY, segment_size=SEGMENT)
    with (
        Web(tmp_path, "slow.bin.sealed") as web,
        shown(
            f"{web.url}/slow.bin.sealed", tmp_path / "near.bin.sealed", at=at, page_cache=False
        ) as mounting,
        ThreadPoolExecutor(40) as readers,
    ):
        web.go_on.clear()
        # More than the threads that wait for requests: others are started, and another file goes on.
        slow = (at / "slow.bin").open("rb", buffering=0)
        waiting = [
            readers.submit(os.pread, slow.fileno(), 100_000, 100_000 * number)
            for number in range(1, 39)
        ]
        for _ in range(5):
            assert (at / "near.bin").read_bytes() == OTHER
        assert not any(one.done() for one in waiting)
        web.go_on.set()
        for number, one in enumerate(waiting, 1):
            assert one.result(SECONDS) == DATA[100_000 * number :][:100_000]
        slow.close()
        # Nothing of it is kept then, a moment later; and now nobody answers any more.
        web.refuse = True
        end, error = time.monotonic() + SECONDS, 0
        while error != errno.EIO:
            assert time.monotonic() < end
            found, error = read_up_to_failure(at / "slow.bin")
            assert found == DATA[: len(found)]
        lines = [line for line in mounting.log().splitlines() if "not readable" in line]
        assert len(lines) == 1
        assert "slow.bin: not readable: http://127.0.0.1" in lines[0]
        assert "access is denied" in lines[0]
        assert (at / "near.bin").read_bytes() == OTHER
        # It is asked again: a place that has come back is read.
        web.refuse = False
        end = time.monotonic() + SECONDS
        while (read := read_up_to_failure(at / "slow.bin")) != (DATA, 0):
            assert time.monotonic() < end, read[1]
