"""Every committed vector through every way of reading, and the generator against the committed bytes."""

import hashlib
import io
import json
from pathlib import Path

import pytest

import strongroom
import strongroom.testing.raw
from strongroom import Passphrase, StrongroomError
from strongroom.model.stream import unseal_stream
from strongroom.providers.sources import parse_key
from strongroom.testing.vectors import write_vectors

HERE = Path(__file__).parent / "v1"
INDEX = json.loads((HERE / "vectors.json").read_text(encoding="utf-8"))
VECTORS = INDEX["vectors"]
FILES = [vector for vector in VECTORS if vector["kind"] == "file"]


def key_of(vector):
    ((kind, text),) = INDEX["keys"][vector["key"]].items()
    return Passphrase(text) if kind == "passphrase" else parse_key(text.encode())


# What leaks in an error would be one of these, raw or as text.
SECRETS = [text.strip() for key in INDEX["keys"].values() for text in key.values()] + [
    strongroom.testing.raw.DEK.hex()
]


def check_error(error, vector):
    assert type(error).__name__ == vector["expect"], f"{error!r}"
    for name, value in vector["detail"].items():
        if name == "segments":
            assert error.segment in value
        else:
            assert getattr(error, name) == value
    chain = error
    while chain is not None:
        shown = f"{chain!s} {chain!r} {vars(chain)} {getattr(chain, '__notes__', '')}"
        assert not any(secret in shown for secret in SECRETS)
        chain = chain.__cause__ or chain.__context__
    assert str(error).endswith((".", "…")), "a message is a sentence"
    assert str(error).isprintable()
    assert error.exit_code in range(2, 8)


def outcome(vector, read):
    """Read it; check that it is what the vector says."""
    if vector["expect"] == "ok":
        plain = read()
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in plain.items()}
        assert digests == vector["sha256"]
    else:
        with pytest.raises(StrongroomError) as caught:
            read()
        check_error(caught.value, vector)


def read_whole(vector, location, tmp_path):
    with strongroom.open(location, key=key_of(vector)) as model:
        return {path: model.read(path) for path in model.files}


def read_load(vector, location, tmp_path):
    with strongroom.open(location, key=key_of(vector)) as model:
        return {path: bytes(model.load(path)) for path in model.files}


def read_into(vector, location, tmp_path):
    with strongroom.open(location, key=key_of(vector)) as model:
        plain = {}
        for path, info in model.files.items():
            buffer = bytearray(info.size)
            assert model.read_into(path, buffer) == info.size
            plain[path] = bytes(buffer)
        return plain


def read_file_object(vector, location, tmp_path):
    """Small pieces, from the end to the beginning, out of step with the segments."""
    with strongroom.open(location, key=key_of(vector)) as model:
        plain = {}
        for path in model.files:
            with model.open(path) as file:
                step = max(1, file.size // 7 + 3)
                pieces = []
                for start in reversed(range(0, file.size, step)):
                    file.seek(start)
                    pieces.append(file.read(step))
                plain[path] = b"".join(reversed(pieces))
        return plain


def read_unsealed(vector, location, tmp_path):
    target = tmp_path / "plain"
    try:
        strongroom.unseal(location, target, key=key_of(vector))
    except StrongroomError:
        assert list(tmp_path.iterdir()) == []
        raise
    if target.is_file():
        with strongroom.open(location, key=key_of(vector)) as model:
            return {next(iter(model.files)): target.read_bytes()}
    files = [path for path in target.rglob("*") if path.is_file()]
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in files}


READERS = [read_whole, read_load, read_into, read_file_object, read_unsealed]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector, read, tmp_path):
    outcome(vector, lambda: read(vector, HERE / vector["stored"], tmp_path))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_verify(vector):
    def verify():
        return strongroom.verify(HERE / vector["stored"], key=key_of(vector))

    if vector["expect"] == "ok":
        with strongroom.open(HERE / vector["stored"], key=key_of(vector)) as model:
            assert verify() == model.size
    else:
        outcome(vector, verify)


class Trickle(io.RawIOBase):
    """A pipe that gives what it likes."""

    def __init__(self, data):
        self._data = memoryview(data)

    def readable(self):
        return True

    def read(self, size=-1):
        part, self._data = self._data[: min(size, 9999)], self._data[min(size, 9999) :]
        return bytes(part)


@pytest.mark.parametrize("vector", FILES, ids=lambda vector: vector["name"])
def test_stream(vector):
    def read():
        pieces = []
        data = (HERE / vector["stored"]).read_bytes()
        unseal_stream(
            Trickle(data), lambda: [key_of(vector)], lambda piece: pieces.append(bytes(piece))
        )
        return {next(iter(vector["sha256"])): b"".join(pieces)}

    outcome(vector, read)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_inspect(vector):
    """Without a key: faults of form are found, those that only a key can find are not."""
    location = HERE / vector["stored"]
    if vector["expect"] != "ok" and vector["inspect_fails"]:
        with pytest.raises(StrongroomError) as caught:
            strongroom.inspect(location)
        check_error(caught.value, vector)
    else:
        json.dumps(strongroom.inspect(location).to_json())


def test_rewrap_refuses_what_open_refuses_in_the_header(tmp_path):
    """A rewrap would otherwise give a forged header an authentic MAC."""
    refused = 0
    for vector in FILES:
        target = tmp_path / "x.sealed"
        original = (HERE / vector["stored"]).read_bytes()
        target.write_bytes(original)
        in_header = vector["expect"] in (
            "NotSealed",
            "UnsupportedVersion",
            "HeaderTampered",
            "NoMatchingRecipient",
            "WrongPassphrase",
        )
        try:
            strongroom.rewrap(target, key=key_of(vector), new_key=bytes(range(32)))
        except StrongroomError:
            refused += 1
            assert target.read_bytes() == original
        else:
            assert not in_header, vector["name"]
        assert list(tmp_path.iterdir()) == [target]
    assert refused > 100


def test_no_vector_twice():
    names = [vector["name"] for vector in VECTORS]
    assert len(set(names)) == len(names) > 250
    stored = {path.name for path in HERE.iterdir()} - {"vectors.json"}
    assert stored == {vector["stored"] for vector in VECTORS}


def test_generator_gives_the_committed_bytes(tmp_path):
    target = tmp_path / "vectors"
    names = write_vectors(target)
    assert names == [vector["name"] for vector in VECTORS]

    def tree(root):
        files = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    made, committed = tree(target), tree(HERE)
    assert made.keys() == committed.keys()
    assert [path for path in made if made[path] != committed[path]] == []


def test_generator_does_not_overwrite(tmp_path):
    (tmp_path / "vectors.json").write_text("mine")
    with pytest.raises(FileExistsError):
        write_vectors(tmp_path)
    assert (tmp_path / "vectors.json").read_text() == "mine"
