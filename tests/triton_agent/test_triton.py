"""The repository agent in a real Triton, which stays (``make test-triton``)."""

import io
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from caches import LocalCache
from release_stub import StubServer
from sealed_models import owner_of, times
from triton_server import (
    MARK,
    NEEDS_TRITON,
    NUMPY,
    ONNX,
    TORCH,
    numpy_model,
    refused,
    uploaded,
)
from tritonclient.utils import InferenceServerException

import strongroom
from strongroom.triton import install

pytestmark = [pytest.mark.slow, NEEDS_TRITON]


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
    # More instances are started from the same files.
    config = json.loads(server.config("later", repository.parameters(wipe="unload")))
    config["instance_group"] = [{"count": 2, "kind": "KIND_CPU"}]
    server.load("later", config=json.dumps(config), client_timeout=120)
    assert place.is_dir()
    assert server.infer("later") == [2, 4]
    server.unload("later")
    server.until(lambda: not list(repository.memory.iterdir()))


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
