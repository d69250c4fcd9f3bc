"""The repository agent in servers of Triton that are killed, traced, or of another kind."""

import re
import sys
from pathlib import Path

import psutil
import pytest
import test_no_plaintext_on_disk as tracing
from triton_server import (
    MARK,
    NEEDS_TRITON,
    Repository,
    Triton,
    numpy_model,
    refused,
)

import strongroom
from strongroom.model.owned_directory import OwnedDirectory
from strongroom.triton import install

pytestmark = [pytest.mark.slow, NEEDS_TRITON]


def test_a_python_that_cannot_be_opened(repository, nothing_left, monkeypatch, tmp_path):
    monkeypatch.setattr(install, "shared_python", lambda: "/nowhere/libpython.so")
    install.install(str(tmp_path))
    repository.seal("unopened")
    one = Triton(tmp_path / "server", repository.path, tmp_path).start()
    try:
        assert "Python cannot be opened: /nowhere/libpython.so" in refused(one, "unopened")
    finally:
        assert one.stop() == 0


def test_a_server_that_is_killed(repository, agents, tmp_path):
    """Its plaintext is gone once the next one has loaded a model; the repository is polled."""
    memory = OwnedDirectory("/dev/shm", "strongroom-tests-")
    place = Path(memory.path)
    mine = Repository(tmp_path / "repository", place)
    mine.seal("kept", wipe="unload")
    try:
        first = Triton(tmp_path / "first", mine.path, agents, mode="none").start()
        try:
            first.until(lambda: first.client.is_model_ready("kept"))
            first.kill()
            (left,) = place.iterdir()
            assert MARK in (left / "1" / "weights").read_bytes()
        finally:
            first.stop()
        mine.seal("kept", {1: numpy_model(3)})
        options = ("--repository-poll-secs=1", "--disable-auto-complete-config")
        second = Triton(tmp_path / "second", mine.path, agents, *options, mode="poll").start()
        try:
            second.until(lambda: second.client.is_model_ready("kept"))
            assert second.infer("kept") == [3, 6]
            second.until(lambda: not list(place.iterdir()))
            assert "removed what servers had left that were killed: 1 models" in second.text()
            mine.seal("kept", {1: numpy_model(4)})
            second.until(lambda: second.infer("kept") == [4, 8], "is not polled")
        finally:
            assert second.stop() == 0
    finally:
        memory.remove()


@pytest.mark.skipif(tracing.PROBLEM is not None, reason=str(tracing.PROBLEM))
def test_no_plaintext_reaches_a_disk(repository, agents, tmp_path):
    mine = Repository(tmp_path / "repository", repository.memory)
    mine.seal("traced")
    trace = tmp_path / "trace"
    # -y: names of descriptors.
    before = ["strace", "-f", "-y", "-s", "4096", "-e", f"trace={tracing.CALLS}", "-o", str(trace)]
    options = ("--load-model=traced", "--disable-auto-complete-config")
    one = Triton(tmp_path / "server", mine.path, agents, *options, before=before).start()
    try:
        one.until(lambda: one.client.is_model_ready("traced"))
        assert one.infer("traced") == [2, 4]
    finally:
        (traced,) = psutil.Process(one.process.pid).children()
        traced.terminate()
        assert one.stop() == 0
    lines = trace.read_text(errors="replace").splitlines()
    written = [line for line in lines if MARK.decode() in line]
    # It was written, and the tracer sees it.
    assert any("/dev/shm/" in line for line in written)
    elsewhere = [line for line in written if not re.search(r"^\d+ +\w+\(\d+</dev/shm/", line)]
    assert elsewhere == []
    found = tracing.parse("\n".join(lines))
    assert found.shared_maps == []


@pytest.mark.parametrize("backend", ["auto", "tmpfs"])
def test_through_strongroom_run(repository, agents, tmp_path, backend):
    """Without an agent: Triton reads a view of the sealed model that its processes alone can see."""
    plain = repository.write("viewed", {1: numpy_model(8)})
    config = plain / "config.pbtxt"
    config.write_text("".join(config.read_text().partition("model_repository_agents")[:1]))
    strongroom.seal(plain, tmp_path / "sealed", key=repository.key)
    program = str(Path(sys.executable).with_name("strongroom"))
    before = [program, "run", "--backend", backend, "--model", f"viewed={tmp_path / 'sealed'}"]
    before += ["-k", str(repository.key), "--"]
    options = ("--load-model=viewed", "--disable-auto-complete-config")
    one = Triton(tmp_path / "server", "{models}", agents, *options, before=before).start()
    try:
        one.until(lambda: one.client.is_model_ready("viewed"))
        assert one.infer("viewed") == [8, 16]
    finally:
        assert one.stop() == 0
