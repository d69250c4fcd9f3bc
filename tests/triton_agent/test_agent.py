"""The repository agent without Triton: what it says and does, and how it is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import strongroom
from strongroom import errors
from strongroom.errors import UsageError
from strongroom.model import owned_directory
from strongroom.model.owned_directory import OwnedDirectory
from strongroom.triton import agent, install, parameters
from strongroom.triton.parameters import Parameters

KEY = bytes(32)
CONFIG = 'name: "m"\n'


@pytest.fixture
def memory():
    one = OwnedDirectory("/dev/shm", "strongroom-tests-")
    yield one.path
    one.remove()
    assert not agent._placed
    assert not agent._going


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
    for another in (CONFIG.upper(), CONFIG + "#"):
        (place / "config.pbtxt").write_text(another)
        with pytest.raises(agent.AgentError, match="another than was sealed"):
            agent.load(1, str(place), True, said)
    assert os.listdir(memory) == []


def test_a_configuration_beside_those_that_were_sealed(model, key, memory):
    """What --model-config-name would choose."""
    place = sealed(model, clear=["*.pbtxt"])
    (place / "configs").mkdir()
    (place / "configs" / "README").write_text("Triton reads none of this.")
    agent.load(1, str(place), True, {"key": key, "directory": memory})
    agent.done(1)
    (place / "configs" / "mine.pbtxt").write_text(CONFIG)
    with pytest.raises(agent.AgentError, match=r"configs/mine.pbtxt: the model was sealed without it"):
        agent.load(1, str(place), True, {"key": key, "directory": memory})
    assert os.listdir(memory) == []


def test_a_configuration_that_is_not_there(model, key, memory):
    """Triton had one from the load API."""
    said = {"key": key, "directory": memory}
    with pytest.raises(agent.AgentError, match=r"m.sealed/config.pbtxt: no such file"):
        agent.load(1, str(sealed(model)), True, said)
    assert os.listdir(memory) == []


def test_any_configuration_where_the_owner_says_so(model, key, memory):
    place = sealed(model, meta={"triton.config": "any"})
    (place / "config.pbtxt").write_text("name: 'other'")
    assert agent.load(1, str(place), True, {"key": key, "directory": memory}).startswith(memory)
    agent.done(1)


def test_no_other_configuration_where_the_owner_says_something_else(model, key, memory):
    (model / "config.pbtxt").unlink()
    place = sealed(model, meta={"triton.config": "mine"})
    (place / "config.pbtxt").write_text(CONFIG)
    with pytest.raises(agent.AgentError, match="sealed without it"):
        agent.load(1, str(place), True, {"key": key, "directory": memory})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unavailable("The key server does not answer."), 4),
        (errors.NotFound("No such file."), 2),
        (errors.UsageError("No such parameter."), 3),
        (errors.StorageError("No room."), 4),
        (errors.InvalidKey("Not a key."), 1),
    ],
)
def test_the_code_tells_what_kind_of_error(monkeypatch, error, code):
    def failing(*arguments):
        raise error

    monkeypatch.setattr(agent, "open_model", failing)
    with pytest.raises(agent.AgentError) as caught:
        agent.load(1, "/models/m", True, {})
    assert (str(caught.value), caught.value.code) == (f"strongroom: {error}", code)


def test_room_is_asked_for_before_anything_is_written(model, key, memory, monkeypatch):
    asked, made = [], agent.OwnedDirectory

    def note(*arguments):
        asked.append(arguments[2])
        return made(*arguments)

    monkeypatch.setattr(agent, "OwnedDirectory", note)
    agent.load(1, str(sealed(model, clear=["*.pbtxt"])), True, {"key": key, "directory": memory})
    agent.done(1)
    assert asked == [(1 << 20) + len(CONFIG)]


def test_a_repository_in_an_object_store(key, memory):
    with pytest.raises(agent.AgentError, match="local repositories"):
        agent.load(1, "s3://models/m", False, {"key": key, "directory": memory})


@pytest.fixture
def stubborn(monkeypatch):
    """Directories that cannot be removed, until they are taken off this list."""
    found, remove = [], shutil.rmtree

    def refuse(path, *arguments, **more):
        if os.fspath(path) not in found:
            remove(path, *arguments, **more)

    monkeypatch.setattr(owned_directory.shutil, "rmtree", refuse)
    return found


@pytest.mark.parametrize("wipe", ["load_complete", "unload"])
def test_plaintext_that_cannot_be_removed_is_not_forgotten(model, key, memory, stubborn, wipe):
    said = {"key": key, "directory": memory, "wipe": wipe}
    end = {"load_complete": agent.loaded, "unload": agent.done}[wipe]
    place = str(sealed(model, clear=["*.pbtxt"]))
    first = agent.load(1, place, True, said)
    stubborn.append(first)
    for one in (end, agent.done):
        with pytest.raises(
            agent.AgentError, match=f"{first} could not be removed. Remove it: there is"
        ):
            one(1)
    # A model of another load, and one that has the first one's number: each of them goes.
    for number in (2, 1):
        agent.load(number, place, True, said)
        with pytest.raises(agent.AgentError, match=first):
            end(number)
        assert [one.path for one in os.scandir(memory)] == [first]
    assert owned_directory.sweep(memory, "strongroom-triton-") == 0  # it is still owned
    stubborn.clear()
    agent.done(3)
    assert os.listdir(memory) == []


def test_the_end_of_a_load_that_failed_tries_again(model, key, memory, stubborn, monkeypatch):
    place = sealed(model, clear=["*.pbtxt"])
    made = agent.OwnedDirectory

    def one_that_stays(*arguments):
        found = made(*arguments)
        stubborn.append(found.path)
        return found

    monkeypatch.setattr(agent, "OwnedDirectory", one_that_stays)
    os.truncate(place / "1" / "weights.sealed", 5000)
    with pytest.raises(agent.AgentError, match="weights"):
        agent.load(1, str(place), True, {"key": key, "directory": memory})
    with pytest.raises(agent.AgentError, match="could not be removed"):
        agent.done(1)
    stubborn.clear()
    agent.done(1)
    assert os.listdir(memory) == []


def test_what_the_killed_left_is_swept_once_it_can_be(model, key, memory, stubborn, monkeypatch):
    log = []
    monkeypatch.setattr(agent, "_log", lambda level, text: log.append((level, text)))
    left = [Path(memory, f"strongroom-triton-{name}") for name in ("stays", "goes")]
    for one in left:
        (one / "1").mkdir(parents=True)
    stubborn.append(str(left[0]))
    said = {"key": key, "directory": memory}
    place = str(sealed(model, clear=["*.pbtxt"]))
    agent.load(1, place, True, said)
    agent.done(1)
    assert log[0] == (
        2,
        f"strongroom: {left[0]} could not be removed. Remove it: there is plaintext in it.",
    )
    assert [one.path for one in os.scandir(memory)] == [str(left[0])]
    stubborn.clear()
    for _ in range(2):
        agent.load(1, place, True, said)
        agent.done(1)
    assert os.listdir(memory) == []
    assert [text for level, text in log if level == 1] == [
        "strongroom: removed what servers had left that were killed: 1 models"
    ]


def test_a_server_sweeps_before_its_first_model(memory, monkeypatch):
    monkeypatch.setattr(agent, "Parameters", lambda: Parameters(directory=memory))
    Path(memory, "strongroom-triton-left").mkdir()
    agent.start()
    assert os.listdir(memory) == []


def test_a_directory_that_is_not_there(model, key, memory):
    said = {"key": key, "directory": f"{memory}/nowhere"}
    with pytest.raises(agent.AgentError, match="nowhere is not a file system in memory"):
        agent.load(1, str(sealed(model, clear=["*.pbtxt"])), True, said)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_bug_says_where_and_not_what(model, key, memory, monkeypatch, kind):
    def broken(*arguments):
        raise kind("plaintext")

    monkeypatch.setattr(agent, "place_files", broken)
    where = rf"a bug: {kind.__name__} in test_agent.py:\d+$"
    with pytest.raises(agent.AgentError, match=where):
        agent.load(1, str(sealed(model, clear=["*.pbtxt"])), True, {"key": key, "directory": memory})
    assert os.listdir(memory) == []


@pytest.mark.parametrize(
    "said",
    [
        {"keys": "x"},
        {"wipe": "later"},
        {"directory": "shm"},
        {"key": "a", "passphrase_file": "b"},
        {"k" * 9999: "x"},
        {"wipe": "w" * 9999},
    ],
)
def test_parameters(said):
    with pytest.raises(UsageError) as caught:
        Parameters.parse(said)
    assert len(str(caught.value)) < 200


def test_an_empty_passphrase(tmp_path):
    (tmp_path / "words").write_text("\n")
    with pytest.raises(strongroom.StrongroomError, match="empty"):
        Parameters(passphrase_file=str(tmp_path / "words")).key_source()


@pytest.mark.parametrize(
    ("content", "words"),
    [("first\nsecond\n", b"first"), ("first\r\n", b"first"), ("first", b"first")],
)
def test_a_passphrase_is_the_first_line(tmp_path, monkeypatch, content, words):
    buffers = []
    monkeypatch.setattr(parameters, "Passphrase", lambda found: found)
    monkeypatch.setattr(
        parameters,
        "bytearray",
        lambda size: buffers.append(bytearray(size)) or buffers[-1],
        raising=False,
    )
    (tmp_path / "words").write_bytes(content.encode())
    said = Parameters.parse({"passphrase_file": str(tmp_path / "words"), "key": ""})
    assert said.key_source() == words
    assert [any(one) for one in buffers] == [False]
    assert Parameters.parse({"passphrase_file": "", "key": "", "wipe": "unload"}).key_source() is None


def test_a_passphrase_without_an_end(tmp_path):
    (tmp_path / "words").write_bytes(b"w" * (1 << 16))
    with pytest.raises(errors.InvalidKey, match="at most 65536 bytes"):
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


def test_a_place_with_characters_that_c_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", '/opt/a "b" \\c/python')
    assert sys.executable.encode() + b"\0" in Path(install.install(str(tmp_path))).read_bytes()


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
