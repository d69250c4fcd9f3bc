"""The repository agent in a real Triton (``make test-triton``)."""

import gc
import io
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import test_no_plaintext_on_disk as tracing
import torch
from caches import LocalCache
from release_stub import StubServer
from sealed_models import owner_of, times
from triton_server import (
    MARK,
    NUMPY,
    ONNX,
    SERVER,
    TORCH,
    Repository,
    Triton,
    numpy_model,
    uploaded,
)
from tritonclient.utils import InferenceServerException

import strongroom
from strongroom.model.owned_directory import OwnedDirectory
from strongroom.triton import install

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER.is_dir(), reason="there is no tritonserver: make test-triton"),
]


@pytest.fixture(scope="module")
def memory():
    one = OwnedDirectory("/dev/shm", "strongroom-tests-")
    yield Path(one.path)
    one.remove()


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    place = tmp_path_factory.mktemp("agents")
    install.install(str(place))
    return place


@pytest.fixture(scope="module")
def repository(tmp_path_factory, memory):
    return Repository(tmp_path_factory.mktemp("repository"), memory)


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository, agents, memory):
    place = tmp_path_factory.mktemp("server")
    # What PYTHONPATH says there is for stubs.
    (place / "nowhere" / "strongroom").mkdir(parents=True)
    (place / "nowhere" / "strongroom" / "__init__.py").write_text("raise RuntimeError('of a stub')")
    one = Triton(place, repository.path, agents, "--disable-auto-complete-config").start()
    yield one
    assert one.stop() == 0, one.text()
    assert list(memory.iterdir()) == []
    gc.collect()  # sockets of gevent, whose warnings belong here


@pytest.fixture
def nothing_left(memory):
    yield
    assert list(memory.iterdir()) == []


def refused(server, name, load=None):
    """What the log says of a load that fails; the client hears that it has failed."""
    before = len(server.text())
    with pytest.raises(InferenceServerException, match="failed to"):
        (load or server.load)(name)
    found = re.search(r"Poll failed for model directory '[^']*': (.*)\"", server.text()[before:])
    assert found, server.text()[before:]
    return found[1]


def test_load_infer_unload(server, repository, nothing_left):
    sealed = repository.seal("simple")
    assert not any(MARK in one.read_bytes() for one in sealed.rglob("*") if one.is_file())
    server.load("simple")
    assert list(repository.memory.iterdir()) == []
    assert server.infer("simple") == [2, 4]
    assert re.search(r"strongroom: \S+/simple: 3 files, \d+ bytes, in /dev/shm/", server.text())
    server.unload("simple")


def test_onnx_runtime(server, repository, nothing_left):
    repository.seal("onnx", {1: {"model.py": ONNX.encode(), "model.onnx": times(3)}})
    server.load("onnx")
    assert server.infer("onnx", range(16)) == [3 * x for x in range(16)]
    server.unload("onnx")


def test_pytorch(server, repository, nothing_left):
    weights = io.BytesIO()
    torch.save({"scale": torch.tensor(4.0)}, weights)
    repository.seal("torch", {1: {"model.py": TORCH.encode(), "weights.pt": weights.getvalue()}})
    server.load("torch")
    assert server.infer("torch") == [4, 8]
    server.unload("torch")


def test_reload_of_a_new_version(server, repository, nothing_left):
    repository.seal("growing", {1: numpy_model(2)})
    server.load("growing")
    assert server.infer("growing") == [2, 4]
    repository.seal("growing", {1: numpy_model(2), 2: numpy_model(5)})
    server.load("growing")
    assert server.infer("growing") == [5, 10]
    # The same number with other weights: all of it is another sealed model.
    repository.seal("growing", {2: numpy_model(6)})
    server.load("growing")
    assert server.infer("growing") == [6, 12]
    server.unload("growing")


def other_key(repository, sealed):
    shutil.rmtree(sealed)
    strongroom.seal(
        repository.plain / sealed.name, sealed, key=bytes(range(32)), clear=["config.pbtxt"]
    )


def change(sealed, name, offset):
    data = bytearray((sealed / name).read_bytes())
    data[offset] ^= 1
    (sealed / name).write_bytes(data)


FAULTS = {
    "wrong key": (other_key, "does not open this model"),
    "no key file": (lambda r, sealed: r.key.rename(r.key.with_name("away")), "no such file"),
    "tampered": (lambda r, sealed: change(sealed, "1/weights.sealed", -20), "segment 0 does not"),
    "tampered manifest": (
        lambda r, sealed: change(sealed, "MANIFEST.sealed", -20),
        "does not authentic",
    ),
    "missing": (
        lambda r, sealed: (sealed / "1/weights.sealed").unlink(),
        "1/weights: the manifest names",
    ),
    "another configuration": (
        lambda r, sealed: change(sealed, "config.pbtxt", 0),
        "another SHA-256 digest",
    ),
    "not sealed": (lambda r, sealed: (sealed / "MANIFEST.sealed").unlink(), "is not a sealed model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_load_that_fails(server, repository, nothing_left, fault):
    spoil, reason = FAULTS[fault]
    sealed = repository.seal("failing")
    key = repository.key.read_text()
    spoil(repository, sealed)
    try:
        said = refused(server, "failing")
    finally:
        repository.key.with_name("away").unlink(missing_ok=True)
        repository.key.write_text(key)
    assert said.startswith("strongroom: ")
    assert re.search(reason, said), said
    assert key not in server.text()
    # It can be loaded once it is whole again.
    repository.seal("failing")
    server.load("failing")
    assert server.infer("failing") == [2, 4]
    server.unload("failing")


def test_a_version_that_fails_leaves_the_old_one(server, repository, nothing_left):
    sealed = repository.seal("old", {1: numpy_model(2)})
    server.load("old")
    repository.seal("old", {1: numpy_model(3)})
    change(sealed, "1/weights.sealed", -20)
    refused(server, "old")
    assert server.infer("old") == [2, 4]
    server.unload("old")


def test_a_configuration_that_its_owner_has_not_sealed(server, repository, nothing_left):
    sealed = repository.seal("unbound")
    shutil.rmtree(sealed)
    plain = repository.plain / "unbound"
    (plain / "config.pbtxt").rename(plain.parent / "config.pbtxt")
    strongroom.seal(plain, sealed, key=repository.key)
    (plain.parent / "config.pbtxt").rename(sealed / "config.pbtxt")
    assert "config.pbtxt: the model was sealed without it" in refused(server, "unbound")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"directory": "/var/tmp"}, "/var/tmp is not a file system in memory"),
        ({"directory": "."}, "no absolute path"),
        ({"wipe": "never"}, "The parameter wipe is 'never'"),
        ({"keys": "key.txt"}, "no parameter 'keys'"),
        ({"key": "env:KEY_OF_NOBODY"}, "KEY_OF_NOBODY is empty or not set"),
        ({"key": "B" * 43}, "A key was given where the path"),
    ],
)
def test_parameters_that_are_refused(server, repository, nothing_left, said, reason):
    repository.seal("said", **said)
    assert reason in refused(server, "said")
    assert "B" * 43 not in server.text()


def test_a_model_that_fails_after_the_agent(server, repository, nothing_left):
    files = {"model.py": NUMPY.replace("self.weights =", "self.weights = mine or").encode()}
    repository.seal("raising", {1: files | {"weights": b"1234"}})
    with pytest.raises(InferenceServerException, match="name 'mine' is not defined"):
        server.load("raising")


def test_a_passphrase(server, repository, nothing_left, tmp_path):
    words = tmp_path / "words"
    words.write_text("correct horse\nbattery staple\n")
    sealed = repository.seal("phrase", key="", passphrase_file=str(words))
    shutil.rmtree(sealed)
    strongroom.seal(
        repository.plain / "phrase",
        sealed,
        key=strongroom.Passphrase("correct horse"),
        clear=["config.pbtxt"],
    )
    server.load("phrase")
    assert server.infer("phrase") == [2, 4]
    server.unload("phrase")


def test_a_key_from_a_key_cache(server, repository, nothing_left, tmp_path):
    stub = StubServer(tmp_path / "stub")
    (tmp_path / "run").mkdir(mode=0o755)
    cache = LocalCache(tmp_path / "run" / "keys.sock", stub.profile_file)
    try:
        plain = repository.write("leased", {1: numpy_model(7)}, key=cache.uri)
        with owner_of(stub):
            strongroom.seal(
                plain,
                repository.path / "leased",
                recipients=f"{stub.url}/leased",
                clear=["config.pbtxt"],
            )
        assert "keys.sock" in refused(server, "leased")
        cache.start()
        server.load("leased")
        assert server.infer("leased") == [7, 14]
        server.unload("leased")
        stub.refuse["leased"] = "measurement-not-allowed"
        cache.client.status()
    finally:
        cache.stop()
        stub.stop()


def test_ten_models_at_once(server, repository, nothing_left):
    names = [f"of-ten-{number}" for number in range(10)]
    for number, name in enumerate(names):
        repository.seal(name, {1: numpy_model(number)})
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(server.load, names))
        for number, name in enumerate(names):
            assert server.infer(name) == [number, 2 * number]
        list(pool.map(server.unload, names))


def test_upload_of_ciphertext(server, repository, nothing_left):
    folder = repository.seal("upload", clear=(), meta={"triton.config": "any"})
    files = uploaded(folder)
    shutil.rmtree(folder)
    before = set(Path("/tmp").glob("folder*"))
    server.load("upload", config=server.config("upload", repository.parameters()), files=files)
    assert server.infer("upload") == [2, 4]
    # Where Triton puts what is uploaded.
    (made,) = set(Path("/tmp").glob("folder*")) - before
    stored = [one for one in made.rglob("*") if one.is_file()]
    assert len(stored) == len(files) + 1
    assert not any(MARK in one.read_bytes() for one in stored)
    server.unload("upload")


def test_upload_of_what_its_owner_has_bound(server, repository, nothing_left):
    folder = repository.seal("bound")
    files = uploaded(folder)
    config = server.config("bound", repository.parameters())
    assert "config.pbtxt" in refused(
        server, "bound", lambda name: server.load(name, config=config, files=files)
    )


def test_backends_that_read_later(server, repository):
    repository.seal("later", wipe="unload")
    server.load("later")
    (place,) = repository.memory.iterdir()
    assert place.stat().st_mode & 0o777 == 0o700
    assert MARK in (place / "1" / "weights").read_bytes()
    assert (place / "1" / "weights").stat().st_mode & 0o777 == 0o600
    server.unload("later")
    server.until(lambda: not list(repository.memory.iterdir()))


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
            assert "removed 1 directories of servers that were killed" in second.text()
            mine.seal("kept", {1: numpy_model(4)})
            second.until(lambda: second.infer("kept") == [4, 8], "is not polled")
        finally:
            assert second.stop() == 0
    finally:
        memory.remove()
    gc.collect()


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
    gc.collect()


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


def test_the_library_can_be_closed_and_opened_again(server, repository, nothing_left):
    """Triton closes the agent with the last of its models."""
    repository.seal("alone")
    for _ in range(2):
        server.load("alone")
        assert server.infer("alone") == [2, 4]
        server.unload("alone")
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert len(set(re.findall(r"\S+libpython3\.\d+\.so\S*", mapped))) == 1
    assert os.path.basename(install.LIBRARY) in mapped
