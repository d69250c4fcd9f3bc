"""The repository agent without Triton: what it says and does, and how it is built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import strongroom
from strongroom.errors import UsageError
from strongroom.model.owned_directory import OwnedDirectory
from strongroom.triton import agent, install
from strongroom.triton.parameters import Parameters

KEY = bytes(32)
CONFIG = 'name: "m"\n'


@pytest.fixture
def memory():
    one = OwnedDirectory("/dev/shm", "strongroom-tests-")
    yield one.path
    one.remove()


@pytest.fixture
def key(tmp_path):
    file = tmp_path / "key.txt"
    file.write_text("A" * 43)
    return str(file)


@pytest.fixture
def model(tmp_path):
    plain = tmp_path / "m"
    (plain / "1").mkdir(parents=True)
    (plain / "config.pbtxt").write_text(CONFIG)
    (plain / "1" / "weights").write_bytes(bytes(1 << 20))
    return plain


def sealed(model, **more):
    strongroom.seal(model, f"{model}.sealed", key=KEY, **more)
    return Path(f"{model}.sealed")


def test_from_load_to_unload(model, key, memory):
    place = agent.load(
        1, str(sealed(model, clear=["*.pbtxt"])), True, {"key": key, "directory": memory}
    )
    assert (Path(place) / "1" / "weights").read_bytes() == bytes(1 << 20)
    assert (Path(place) / "config.pbtxt").read_text() == CONFIG
    agent.loaded(2)  # another one
    assert os.path.isdir(place)
    agent.loaded(1)
    assert os.listdir(memory) == []
    agent.done(1)
    agent.done(1)


def test_the_old_and_the_new_one_of_a_reload(model, key, memory):
    said = {"key": key, "directory": memory, "wipe": "unload"}
    place = str(sealed(model, clear=["*.pbtxt"]))
    old, new = (agent.load(number, place, True, said) for number in (1, 2))
    agent.loaded(1)
    agent.loaded(2)
    assert {one.path for one in os.scandir(memory)} == {old, new}
    agent.done(1)
    assert {one.path for one in os.scandir(memory)} == {new}
    agent.done(2)
    assert os.listdir(memory) == []


@pytest.mark.parametrize(
    ("spoil", "reason", "code"),
    [
        (
            lambda place: (place / "config.pbtxt").write_text("name: 1"),
            "config.pbtxt: the file has 7 bytes",
            1,
        ),
        (lambda place: (place / "MANIFEST.sealed").unlink(), "is not a sealed model", 1),
        (lambda place: (place / "1" / "weights.sealed").unlink(), "the manifest names it", 1),
        (lambda place: (place / "config.pbtxt").unlink(), "config.pbtxt", 1),
        (lambda place: os.truncate(place / "1" / "weights.sealed", 5000), "weights", 1),
        (lambda place: place.rename(place.with_name("away")), "no such file", 2),
    ],
)
def test_what_is_wrong_with_the_model(model, key, memory, spoil, reason, code):
    place = sealed(model, clear=["*.pbtxt"])
    spoil(place)
    with pytest.raises(agent.AgentError, match=reason) as caught:
        agent.load(1, str(place), True, {"key": key, "directory": memory})
    assert caught.value.code == code
    assert os.listdir(memory) == []
    agent.done(1)


def test_a_configuration_that_was_sealed_too(model, key, memory):
    """Not in clear: it is compared all the same."""
    place = sealed(model)
    said = {"key": key, "directory": memory}
    (place / "config.pbtxt").write_text(CONFIG)
    agent.load(1, str(place), True, said)
    agent.done(1)
    (place / "config.pbtxt").write_text(CONFIG.upper())
    with pytest.raises(agent.AgentError, match="another than was sealed"):
        agent.load(1, str(place), True, said)


def test_a_configuration_beside_those_that_were_sealed(model, key, memory):
    """What --model-config-name would choose."""
    place = sealed(model, clear=["*.pbtxt"])
    (place / "configs").mkdir()
    (place / "configs" / "mine.pbtxt").write_text(CONFIG)
    with pytest.raises(agent.AgentError, match=r"configs/mine.pbtxt: the model was sealed without it"):
        agent.load(1, str(place), True, {"key": key, "directory": memory})
    assert os.listdir(memory) == []


def test_any_configuration_where_the_owner_says_so(model, key, memory):
    place = sealed(model, meta={"triton.config": "any"})
    (place / "config.pbtxt").write_text("name: 'other'")
    assert agent.load(1, str(place), True, {"key": key, "directory": memory}).startswith(memory)
    agent.done(1)


def test_a_repository_in_an_object_store(key, memory):
    with pytest.raises(agent.AgentError, match="local repositories"):
        agent.load(1, "s3://models/m", False, {"key": key, "directory": memory})


def test_a_bug_says_where_and_not_what(model, key, memory, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("plaintext")

    monkeypatch.setattr(agent, "place_files", broken)
    with pytest.raises(agent.AgentError, match=r"a bug: RuntimeError in test_agent.py:\d+") as caught:
        agent.load(1, str(sealed(model, clear=["*.pbtxt"])), True, {"key": key, "directory": memory})
    assert "plaintext" not in str(caught.value)
    assert os.listdir(memory) == []


@pytest.mark.parametrize(
    "said",
    [{"keys": "x"}, {"wipe": "later"}, {"directory": "shm"}, {"key": "a", "passphrase_file": "b"}],
)
def test_parameters(said):
    with pytest.raises(UsageError):
        Parameters.parse(said)


def test_an_empty_passphrase(tmp_path):
    (tmp_path / "words").write_text("\n")
    with pytest.raises(strongroom.StrongroomError, match="empty"):
        Parameters(passphrase_file=str(tmp_path / "words")).key_source()


def run(*arguments, **environment):
    command = [sys.executable, "-m", "strongroom", "triton", "install", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_install(tmp_path):
    done = run(str(tmp_path / "agents"))
    assert done.returncode == 0, done.stderr
    library = tmp_path / "agents" / "strongroom" / "libtritonrepoagent_strongroom.so"
    assert done.stderr == f"Built {library}.\n"
    assert os.listdir(library.parent) == [library.name]
    content = library.read_bytes()
    assert install.shared_python().encode() in content
    assert sys.executable.encode() in content


def test_without_a_compiler(tmp_path):
    done = run(str(tmp_path), PATH="/nowhere", CC="")
    assert done.returncode == 2
    assert "There is no C compiler" in done.stderr
    assert list(tmp_path.rglob("*.so")) == []


def test_a_compiler_that_fails(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run(str(tmp_path / "agents"), CC=str(compiler))
    assert done.returncode == 7
    assert "no header" in done.stderr
    assert list((tmp_path / "agents").rglob("*")) == [tmp_path / "agents" / "strongroom"]


def test_a_python_without_a_shared_library(monkeypatch):
    monkeypatch.setattr(install, "_candidates", lambda: iter(["/nowhere/libpython.so"]))
    with pytest.raises(UsageError, match="has no shared library") as caught:
        install.shared_python()
    assert "libpython" in caught.value.hint
