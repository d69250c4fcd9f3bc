"""Gramine files whose writing was interrupted, and directories of Gramine files."""

import os

import gramine_reference as reference
import pytest
from foreign import Collected, memory_source, secret
from hypothesis import given
from hypothesis import strategies as st

import strongroom
from strongroom.compat.base import ForeignTampered
from strongroom.compat.gramine import GramineCodec
from strongroom.compat.gramine_reader import GramineFile
from strongroom.errors import FormatError, UsageError
from strongroom.model.storage import LocalSource

KEY = bytes(range(16))
NODE, HEAD, GROUP = 4096, 3072, 96 * 4096
PATH = b"models/net"
BEFORE = os.urandom(HEAD + GROUP + 2 * NODE)


def nodes_of(file: bytes) -> list[bytes]:
    return [file[at : at + NODE] for at in range(0, len(file), NODE)]


OLD = nodes_of(reference.seal(KEY, PATH, BEFORE))
NEW = nodes_of(reference.seal(KEY, PATH, BEFORE[::-1]))


def interrupted(written: int) -> tuple[bytes, bytes]:
    """A file as it is when some nodes of a write have been done, and its log."""
    order = [*range(2, 98), 99, 100, 98, 1, 0]
    file = list(OLD)
    for number in order[:written]:
        file[number] = NEW[number]
    file[0] = OLD[0][:58] + b"\1" + OLD[0][59:]
    log = b"".join(reference.log_record(number, OLD[number]) for number in order)
    return b"".join(file), log


def read_with(file: bytes, log: bytes | None) -> bytes:
    opened = GramineFile(
        memory_source(file), secret(KEY), None, lambda: log if log is None else memory_source(log)
    )
    pieces = Collected()
    opened.copy_to(pieces.write)
    out = memoryview(bytearray(opened.size))
    opened.read_into(out)
    assert out == pieces.data
    return bytes(pieces.data)


@given(written=st.integers(0, 100))
def test_the_state_before_the_write_is_read(written):
    assert read_with(*interrupted(written)) == BEFORE


def test_log_beside_a_local_file(tmp_path):
    file, log = interrupted(40)
    place = tmp_path / "net"
    place.write_bytes(file)
    codec = GramineCodec(secret(KEY))
    source = LocalSource(place)
    with pytest.raises(FormatError, match="interrupted") as caught:
        codec.decrypt(source, "net")
    assert "recovery log" in caught.value.hint
    (tmp_path / "net.gramine.recovery").write_bytes(log)
    pieces = Collected()
    codec.decrypt(source, "net")[0].copy_to(pieces.write)
    source.close()
    assert pieces.data == BEFORE
    assert place.read_bytes() == file, "the file itself stays as it is"


def test_no_log():
    file, _ = interrupted(3)
    with pytest.raises(FormatError, match="interrupted"):
        read_with(file, None)
    with pytest.raises(FormatError, match="interrupted"):
        GramineCodec(secret(KEY)).decrypt(memory_source(file), "net")


def test_a_log_is_not_looked_at_unless_the_file_needs_it(tmp_path):
    place = tmp_path / "net"
    place.write_bytes(b"".join(NEW))
    (tmp_path / "net.gramine.recovery").write_bytes(b"torn")
    pieces = Collected()
    GramineCodec(secret(KEY)).decrypt(LocalSource(place), "net")[0].copy_to(pieces.write)
    assert pieces.data == BEFORE[::-1]


@pytest.mark.parametrize("cut", [1, 8, NODE, NODE + 7])
def test_a_log_that_is_cut(cut):
    file, log = interrupted(3)
    with pytest.raises(FormatError, match="no complete recovery log"):
        read_with(file, log[:-cut])


def test_a_log_that_does_not_end_the_write():
    file, log = interrupted(3)
    for short in (b"", log[: -NODE - 8]):
        with pytest.raises(FormatError, match="does not bring"):
            read_with(file, short)


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1, 1 << 40, 1000])
def test_a_record_outside_the_file_is_refused(number):
    file, log = interrupted(3)
    with pytest.raises(FormatError, match="does not belong"):
        read_with(file, log + reference.log_record(number, bytes(NODE)))


def test_a_record_of_nodes_that_the_file_had():
    """The file was cut, too: what is missing is in the log."""
    file, log = interrupted(99)
    assert read_with(file[: -2 * NODE], log) == BEFORE


def test_the_later_of_two_records_counts():
    file, log = interrupted(50)
    assert read_with(file, reference.log_record(5, NEW[5]) + log) == BEFORE


@pytest.mark.parametrize("record", [0, 40, 96, 98, 99])
def test_what_a_log_restores_has_to_authenticate(record):
    file, log = interrupted(100)
    changed = bytearray(log)
    changed[record * (NODE + 8) + 8 + 100] ^= 1
    with pytest.raises(ForeignTampered):
        read_with(file, bytes(changed))


def test_a_log_of_another_file():
    file, _ = interrupted(10)
    other = nodes_of(reference.seal(KEY, b"other", os.urandom(len(BEFORE))))
    log = b"".join(reference.log_record(number, other[number]) for number in (5, 0))
    with pytest.raises(ForeignTampered):
        read_with(file, log)


def test_version_1_has_no_flags():
    file = bytearray(reference.seal(KEY, PATH, b"data", version=1))
    opened = GramineFile(memory_source(file), secret(KEY))
    assert opened.version == 1
    assert opened.path == PATH


# Directories


@pytest.fixture
def key_file(tmp_path):
    (tmp_path / "wrap_key").write_bytes(KEY)
    return tmp_path / "wrap_key"


@pytest.fixture
def sealed(tmp_path):
    """A sealed directory, its key, and what is in it."""
    files = {"net.onnx": os.urandom(500_000), "sub/labels": b"cat", "empty": b""}
    for name, data in files.items():
        place = tmp_path / "plain" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    key = strongroom.SymmetricKey.generate()
    strongroom.seal(tmp_path / "plain", tmp_path / "net.sealed", key=key)
    return tmp_path / "net.sealed", key, files


def exported(sealed, key_file, destination, **options):
    place, key, _ = sealed
    strongroom.export_model(
        place, destination, format="gramine", target_key=key_file, key=key, options=options
    )


def imported(source, key_file, key, destination, **options):
    strongroom.import_model(
        source, destination, format="gramine", source_key=key_file, key=key, options=options
    )
    with strongroom.open(destination, key=key) as model:
        return {path: bytes(model.read(path)) for path in model.files}


def test_path_of_a_directory_is_that_of_the_directory(tmp_path, key_file, sealed):
    _, key, files = sealed
    target = tmp_path / "enc"
    exported(sealed, key_file, target, path="models/net")
    for name, data in files.items():
        assert reference.unseal(KEY, (target / name).read_bytes()) == (
            f"models/net/{name}".encode(),
            data,
        )
    assert imported(target, key_file, key, tmp_path / "again", path="models/./net/") == files
    with pytest.raises(ForeignTampered, match="bound to the path"):
        imported(target, key_file, key, tmp_path / "wrong", path="models/other")
    os.rename(target / "empty", target / "renamed")
    assert len(imported(target, key_file, key, tmp_path / "any")) == 3
    with pytest.raises(ForeignTampered, match="bound to the path"):
        imported(target, key_file, key, tmp_path / "wrong", path="models/net")
    assert not (tmp_path / "wrong").exists()


def test_path_of_a_file_is_that_of_the_file(tmp_path, key_file):
    key = strongroom.SymmetricKey.generate()
    (tmp_path / "net.onnx").write_bytes(b"weights")
    strongroom.seal(tmp_path / "net.onnx", tmp_path / "sealed", key=key)
    target = tmp_path / "anything"
    exported((tmp_path / "sealed", key, None), key_file, target, path="models/net.onnx")
    assert reference.unseal(KEY, target.read_bytes()) == (b"models/net.onnx", b"weights")
    assert imported(target, key_file, key, tmp_path / "again", path="models/net.onnx") == {
        "anything": b"weights"
    }
    with pytest.raises(ForeignTampered):
        imported(target, key_file, key, tmp_path / "wrong", path="models")


def test_a_directory_without_a_path_is_bound_to_the_destination(
    tmp_path, key_file, sealed, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    exported(sealed, key_file, "./out/")
    for name in sealed[2]:
        path, _ = reference.unseal(KEY, (tmp_path / "out" / name).read_bytes())
        assert path == f"out/{name}".encode()


def test_recovery_logs_of_a_directory_are_no_files_of_the_model(tmp_path, key_file):
    file, log = interrupted(20)
    folder = tmp_path / "enc"
    folder.mkdir()
    (folder / "net").write_bytes(file)
    (folder / "net.gramine.recovery").write_bytes(log)
    (folder / "other").write_bytes(reference.seal(KEY, b"other", b"data"))
    key = strongroom.SymmetricKey.generate()
    found = imported(folder, key_file, key, tmp_path / "sealed")
    assert found == {"net": BEFORE, "other": b"data"}


def test_files_in_clear_are_not_taken_for_encrypted_ones(tmp_path, key_file):
    folder = tmp_path / "enc"
    folder.mkdir()
    (folder / "other").write_bytes(reference.seal(KEY, b"other", b"data"))
    (folder / "labels.txt").write_bytes(b"cat")
    with pytest.raises(UsageError, match=r"labels\.txt"):
        imported(folder, key_file, strongroom.SymmetricKey.generate(), tmp_path / "sealed")
