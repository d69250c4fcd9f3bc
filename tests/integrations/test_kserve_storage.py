"""KServe's storage initialiser for sealed models."""

import functools
import http.server
import subprocess
import sys
import threading

import fsspec
import pytest

import strongroom
from strongroom.errors import NotFound, NotSealed, Truncated, UsageError
from strongroom.integrations.kserve_storage import fetch
from strongroom.serving.versions import find_versions

KEY = bytes(range(32))


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "weights.bin").write_bytes(b"weights" * 700_000)
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def directory(model, tmp_path):
    strongroom.seal(model, tmp_path / "m.sealed", key=KEY, clear=["*.json"])
    return tmp_path / "m.sealed"


@pytest.fixture
def file(model, tmp_path):
    strongroom.seal(model / "inner" / "weights.bin", tmp_path / "weights.sealed", key=KEY)
    return tmp_path / "weights.sealed"


def found(place):
    with strongroom.open(place, key=KEY) as opened:
        return {path: bytes(opened.read(path)) for path in opened.files}


WHOLE = {"inner/weights.bin": b"weights" * 700_000, "config.json": b"{}"}


def test_a_directory_comes_sealed(directory, tmp_path):
    fetch(f"sealed+file://{directory}", str(tmp_path / "mnt" / "models"))
    came = tmp_path / "mnt" / "models"
    assert {one.relative_to(came).as_posix() for one in came.rglob("*") if one.is_file()} == {
        "MANIFEST.sealed",
        "inner/weights.bin.sealed",
        "config.json",
    }
    assert found(came) == WHOLE
    fetch(str(directory), str(came))  # started again
    assert found(came) == WHOLE


def test_a_file_is_version_1(file, tmp_path):
    fetch(str(file), str(tmp_path / "mnt"))
    (came,) = (one for one in (tmp_path / "mnt").rglob("*") if one.is_file())
    assert came == tmp_path / "mnt" / "1" / "weights.sealed"
    assert came.read_bytes() == file.read_bytes()
    assert find_versions(str(tmp_path / "mnt"))[1].location == str(came)


def test_out_of_a_store(directory, tmp_path):
    store = fsspec.filesystem("memory")
    store.put(str(directory), "/bucket/m", recursive=True)
    try:
        fetch("sealed+memory://bucket/m", str(tmp_path / "mnt"))
    finally:
        store.rm("/bucket", recursive=True)
    assert found(tmp_path / "mnt") == WHOLE


@pytest.fixture
def web(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            path = self.translate_path(self.path)
            try:
                with open(path, "rb") as file:
                    content = file.read()
            except OSError:
                self.send_error(404)
                return
            first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            self.wfile.write(content[first : last + 1])

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"sealed+http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_from_the_web(web, file, directory, tmp_path):
    fetch(f"{web}/weights.sealed", str(tmp_path / "mnt"))
    assert (tmp_path / "mnt" / "1" / "weights.sealed").read_bytes() == file.read_bytes()
    with pytest.raises(UsageError, match="cannot be listed"):
        fetch(f"{web}/m.sealed", str(tmp_path / "other"))


def test_plain_models_are_refused(model, tmp_path):
    for place in (model, model / "config.json", model / "inner" / "weights.bin"):
        with pytest.raises(NotSealed):
            fetch(str(place), str(tmp_path / "mnt"))
    with pytest.raises(NotFound):
        fetch(str(tmp_path / "nothing"), str(tmp_path / "mnt"))
    assert not (tmp_path / "mnt").exists()


def test_half_of_a_file_is_refused(file, tmp_path):
    with open(file, "r+b") as opened:
        opened.truncate(100)
    with pytest.raises(Truncated):
        fetch(str(file), str(tmp_path / "mnt"))


def test_the_program(file, model, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "strongroom.integrations.kserve_storage", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert run(f"sealed+file://{file}", tmp_path / "mnt").returncode == 0
    assert (tmp_path / "mnt" / "1" / "weights.sealed").exists()
    done = run(model, tmp_path / "mnt")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("strongroom: ")
    assert run().returncode == 2
