"""Archives that somebody made to do harm: names that lead out, files that are not all there, or far too large.

What is sealed is authentic, and so is a model of somebody who means harm.
"""

import json
import os
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import joblib
import pytest
import torch

import strongroom
from strongroom.errors import FormatError, LimitExceeded, StrongroomError, UsageError
from strongroom.loaders import sharded, sklearn, source
from strongroom.loaders import torch as loader

INSIDE = "m/data/aotinductor/model/"
LIBRARY = (INSIDE + "m.so", b"\x7fELF and no more")
METADATA = INSIDE + "m.wrapper_metadata.json"
CENTRAL = b"PK\1\2"


def archive(place, *members, how=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(place, "w", how) as made:
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in members:
            made.writestr(name, content)
    return place


def changed(place, change):
    """``change`` gets the file, and where the central directory has its first member."""
    content = bytearray(place.read_bytes())
    change(content, content.index(CENTRAL))
    place.write_bytes(content)
    return place


def left_in_memory():
    return {path.name for path in Path("/dev/shm").glob(f"strongroom-{os.getpid()}-*")}


def load_package(place, seal, key):
    before = left_in_memory()
    try:
        return loader.aoti_load_package(seal(place), key=key)
    finally:
        assert left_in_memory() == before


@pytest.mark.parametrize(
    "name",
    [
        INSIDE + "../../../../../evil",
        "/data/aotinductor/model/evil",
        INSIDE + "./evil",
        INSIDE + "a//evil",
    ],
)
def test_names_that_lead_out_of_a_package(tmp_path, seal, key, name):
    place = archive(tmp_path / "m.pt2", LIBRARY, (name, b"secret"))
    with pytest.raises(UsageError, match="leads out"):
        load_package(place, seal, key)


PACKAGES = {
    "twice": [LIBRARY, (INSIDE + "x", b"1"), (INSIDE + "x", b"2")],
    "a library twice": [LIBRARY, LIBRARY],
    "a file and a folder": [LIBRARY, (INSIDE + "x", b"1"), (INSIDE + "x/y", b"2")],
    "a library and a folder": [LIBRARY, (LIBRARY[0] + "/y", b"2")],
    "a long name": [LIBRARY, (INSIDE + "x" * 300, b"1")],
    "no JSON": [LIBRARY, (METADATA, b'{"AOTI_CPU_ISA"')],
    "no text": [LIBRARY, (METADATA, b"\xff\xfe{}")],
    "a list": [LIBRARY, (METADATA, b"[]")],
    "depth": [LIBRARY, (METADATA, b"[" * 100_000)],
    "large metadata": [LIBRARY, (METADATA, b" " * (1 << 20) + b"{}")],
}


@pytest.mark.parametrize("case", PACKAGES)
def test_packages_that_cannot_be(tmp_path, seal, key, case):
    with pytest.raises(StrongroomError) as caught:
        load_package(archive(tmp_path / "m.pt2", *PACKAGES[case]), seal, key)
    assert caught.value.exit_code in (2, 3)


def wrong_check_sum(content, at):
    content[content.index(b'{"AOTI')] ^= 1


def encrypted(content, at):
    content[at + 8] |= 1


def unknown_compression(content, at):
    content[at + 10] = 99


def longer_than_the_file(content, at):
    struct.pack_into("<II", content, at + 20, 200 << 20, 200 << 20)


def no_local_header(content, at):
    content[:4] = b"PK\3\5"


DAMAGE = [
    wrong_check_sum,
    encrypted,
    unknown_compression,
    longer_than_the_file,
    no_local_header,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_packages(tmp_path, seal, key, damage):
    place = archive(
        tmp_path / "m.pt2", LIBRARY, (METADATA, b'{"AOTI_CPU_ISA": ""}'), (INSIDE + "x", b"x")
    )
    with pytest.raises((FormatError, UsageError)) as caught:
        load_package(changed(place, damage), seal, key)
    assert "m.pt2" in str(caught.value)


def test_a_package_that_says_that_it_is_large(tmp_path, seal, key):
    def change(content, at):
        struct.pack_into("<II", content, at + 20, 0xFFFFFFF0, 0xFFFFFFF0)

    with pytest.raises(LimitExceeded, match="expands too far"):
        load_package(changed(archive(tmp_path / "m.pt2", LIBRARY), change), seal, key)


@pytest.fixture
def low_limit(monkeypatch):
    monkeypatch.setattr(source, "_EXPANSION_FLOOR", 1 << 20)


BOMBS = {
    "package": ([LIBRARY, (INSIDE + "x", bytes(2 << 20))], loader.aoti_load_package),
    "weights": ([("m/data.pkl", b"x"), ("m/data/0", bytes(2 << 20))], loader.load),
    "mapped": (
        [("m/data.pkl", b"x"), ("m/data/0", bytes(2 << 20))],
        lambda place, key: loader.load(place, key=key, mmap=True),
    ),
    "TorchScript": ([("m/constants.pkl", bytes(2 << 20))], loader.jit_load),
    "exported": ([("m/archive_format", bytes(2 << 20))], loader.export_load),
    "skops": ([("schema.json", b" " * (2 << 20))], sklearn.skops_load),
    "in pieces": ([(f"m/{n}", bytes(200 << 10)) for n in range(10)], loader.load),
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_expands_too_far(tmp_path, seal, key, low_limit, case):
    members, load = BOMBS[case]
    place = archive(tmp_path / "m.pt", *members, how=zipfile.ZIP_DEFLATED)
    with pytest.raises(LimitExceeded, match=r"m\.pt expands too far, to 2\d{6} bytes"):
        load(seal(place), key=key)


def test_what_expands_less_is_loaded(tmp_path, seal, key, low_limit):
    torch.save({"w": torch.arange(400_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    place = archive(tmp_path / "m.pt", *members, how=zipfile.ZIP_DEFLATED)
    assert loader.load(seal(place), key=key)["w"].sum() == sum(range(400_000))


INDICES = {
    "no JSON": b"{",
    "a list": b"[]",
    "depth": b"[" * 100_000,
    "no text": b"\xff",
    "numbers": json.dumps({"weight_map": {"w": 5}}).encode(),
    "lists": json.dumps({"weight_map": {"w": ["a.safetensors"]}}).encode(),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_of_shards_that_are_none(tmp_path, seal, key, case):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors.index.json").write_bytes(INDICES[case])
    with (
        strongroom.open(seal(tmp_path / "m"), key=key) as model,
        pytest.raises(UsageError, match="no weight_map"),
    ):
        sharded.state_dict(model, "", [("model", "safetensors")])


def test_an_index_that_names_a_file_outside(tmp_path, seal, key):
    """It names files of the model, whatever lies on the disk."""
    torch.save({"w": torch.ones(3)}, tmp_path / "outside.bin")
    (tmp_path / "m").mkdir()
    for name in ("../outside.bin", str(tmp_path / "outside.bin")):
        index = json.dumps({"weight_map": {"w": name}})
        (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(index)
        shutil.rmtree(tmp_path / "m.sealed", ignore_errors=True)
        with (
            strongroom.open(seal(tmp_path / "m"), key=key) as model,
            pytest.raises(UsageError, match=r"outside\.bin"),
        ):
            sharded.state_dict(model, "", [("pytorch_model", "bin")])


@pytest.mark.parametrize("said", [1, "yes", "False", object()])
def test_only_true_allows_pickles(tmp_path, seal, key, said):
    joblib.dump([1], tmp_path / "m.joblib")
    with pytest.raises(UsageError, match="runs code"):
        sklearn.joblib_load(seal(tmp_path / "m.joblib"), key=key, allow_pickle=said)
