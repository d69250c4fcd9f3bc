"""A real Triton, without an agent, on a repository that ``strongroom mount`` shows (``make test-triton``)."""

import re
import subprocess

import pytest
from mounts import needs_fuse, strongroom_mount
from sealed_models import times
from triton_server import MARK, NEEDS_TRITON, ONNX, Triton, numpy_model
from tritonclient.utils import InferenceServerException

import strongroom

pytestmark = [pytest.mark.slow, NEEDS_TRITON, needs_fuse]


def seal(repository, name, place, files):
    """A sealed model whose configuration names no agent."""
    plain = repository.write(name, {1: files})
    config = plain / "config.pbtxt"
    config.write_text(config.read_text().partition("model_repository_agents")[0])
    strongroom.seal(plain, place / f"{name}.sealed", key=repository.key, segment_size=65536)
    return f"{name}={place / f'{name}.sealed'}"


@pytest.fixture(scope="module")
def mounting(repository, tmp_path_factory):
    """Models that are whole, and one whose weights were changed."""
    place = tmp_path_factory.mktemp("mounted")
    (place / "at").mkdir()
    models = [
        seal(repository, "plain", place, numpy_model(8)),
        seal(repository, "graph", place, {"model.py": ONNX.encode(), "model.onnx": times(3)}),
        seal(repository, "changed", place, numpy_model(2)),
    ]
    sealed = place / "changed.sealed" / "1" / "weights.sealed"
    data = bytearray(sealed.read_bytes())
    data[-20] ^= 1
    sealed.write_bytes(data)
    with strongroom_mount(*models, at=place / "at", key=repository.key) as one:
        yield one


@pytest.fixture(scope="module")
def triton(mounting, agents, tmp_path_factory):
    place = tmp_path_factory.mktemp("reader")
    options = ["--disable-auto-complete-config"]
    one = Triton(place, mounting.directory, agents, *options).start()
    yield one
    assert one.stop() == 0, one.text()


@pytest.mark.parametrize(("name", "factor"), [("plain", 8), ("graph", 3)])
def test_load_infer_unload(triton, name, factor):
    for _ in range(2):  # files are there for the next load too
        triton.load(name)
        assert triton.infer(name, range(16)) == [factor * x for x in range(16)]
        triton.unload(name)


def test_weights_that_were_changed(triton, mounting):
    """The load fails, the mount's log says why, and others go on."""
    with pytest.raises(InferenceServerException, match="Input/output error"):
        triton.load("changed")
    assert not triton.client.is_model_ready("changed")
    (line,) = [line for line in mounting.log().splitlines() if "ERROR" in line]
    assert re.search(
        r"changed/1/weights: not readable: 1/weights: segment 0 does not authenticate", line
    )
    triton.load("plain")
    assert triton.infer("plain") == [8, 16]
    triton.unload("plain")


def test_who_reads_sees_plaintext_and_the_disk_has_none(mounting):
    assert MARK in (mounting.directory / "plain" / "1" / "weights").read_bytes()
    sealed = mounting.directory.parent.glob("*.sealed/**/*")
    assert not any(MARK in one.read_bytes() for one in sealed if one.is_file())


def test_the_mount_goes_with_a_server_on_it(triton, mounting):
    """What is loaded is in the server's memory; the next load finds nothing."""
    triton.load("plain")
    assert mounting.end() == 0
    assert triton.infer("plain") == [8, 16]
    done = subprocess.run(["ls", mounting.directory], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    with pytest.raises(InferenceServerException):
        triton.load("graph")
