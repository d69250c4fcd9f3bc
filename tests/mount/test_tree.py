"""Several sealed models as one tree of files."""

import os

import pytest

import strongroom
from strongroom.errors import IntegrityError, UsageError
from strongroom.mount.tree import Tree

KEY = bytes(range(32))
FILES = {"config.pbtxt": b"name: 'resnet'", "1/model.onnx": os.urandom(200_000), "1/data/a.bin": b""}


@pytest.fixture
def folder(tmp_path):
    for path, data in FILES.items():
        place = tmp_path / "resnet" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    strongroom.seal(tmp_path / "resnet", tmp_path / "resnet.sealed", key=KEY, segment_size=65536)
    with strongroom.open(tmp_path / "resnet.sealed", key=KEY) as model:
        yield model


@pytest.fixture
def single(tmp_path):
    (tmp_path / "llama.gguf").write_bytes(b"GGUF" * 1000)
    strongroom.seal(tmp_path / "llama.gguf", tmp_path / "llama.sealed", key=KEY)
    with strongroom.open(tmp_path / "llama.sealed", key=KEY) as model:
        yield model


def content(tree, path):
    file = tree.open(path)
    out = bytearray(file.size)
    assert file.read_into(0, memoryview(out)) == file.size
    file.close()
    return bytes(out)


def test_a_model_alone_has_its_files_in_the_root(folder, single):
    tree = Tree({"": folder})
    assert sorted(tree.names()) == ["1", "config.pbtxt"]
    assert {path: content(tree, path) for path in FILES} == FILES
    assert tree.size == sum(map(len, FILES.values()))
    alone = Tree({"": single})
    assert alone.names() == ["llama.gguf"]
    assert content(alone, "llama.gguf") == b"GGUF" * 1000


def test_models_with_names_are_folders_and_files(folder, single):
    tree = Tree({"resnet": folder, "llama": single})
    assert tree.names() == ["resnet", "llama"]
    assert tree.node("resnet").is_folder
    assert not tree.node("llama").is_folder
    assert content(tree, "resnet/1/model.onnx") == FILES["1/model.onnx"]
    assert tree.names("resnet/1") == ["data", "model.onnx"]
    numbers = [node.number for node in tree]
    assert numbers == list(range(1, len(tree) + 1))
    assert all(tree.numbered(number).number == number for number in numbers)


def test_part_of_a_file(folder):
    file = Tree({"": folder}).open("1/model.onnx")
    out = bytearray(1000)
    assert file.read_into(100_000, memoryview(out)) == 1000
    assert out == FILES["1/model.onnx"][100_000:101_000]
    assert file.read_into(len(FILES["1/model.onnx"]) - 10, memoryview(out)) == 10
    assert file.read_into(1 << 40, memoryview(out)) == 0
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_into(0, memoryview(out))


def test_what_is_not_there(folder):
    tree = Tree({"": folder})
    for path in ("2", "1/other", "config", "..", "1/../config.pbtxt"):
        with pytest.raises(FileNotFoundError):
            tree.node(path)
    with pytest.raises(NotADirectoryError):
        tree.node("config.pbtxt/x")
    with pytest.raises(NotADirectoryError):
        tree.names("config.pbtxt")
    with pytest.raises(IsADirectoryError):
        tree.open("1")
    for number in (0, len(tree) + 1):
        with pytest.raises(FileNotFoundError):
            tree.numbered(number)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_names_that_cannot_be(folder, single, name):
    with pytest.raises(UsageError):
        Tree({name: folder, "other": single})


def test_no_model():
    with pytest.raises(UsageError):
        Tree({})


def test_a_tampered_file_is_not_read(tmp_path, folder):
    place = tmp_path / "resnet.sealed" / "1/model.onnx.sealed"
    data = bytearray(place.read_bytes())
    data[70_000] ^= 1
    place.write_bytes(data)
    tree = Tree({"": folder})
    file = tree.open("1/model.onnx")
    out = bytearray(file.size)
    with pytest.raises(IntegrityError):
        file.read_into(0, memoryview(out))
    # Other files are read.
    assert content(tree, "config.pbtxt") == FILES["config.pbtxt"]
