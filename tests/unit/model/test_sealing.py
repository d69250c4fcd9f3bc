"""Sealing what people really have in a directory, refusing what cannot be sealed, and undoing it."""

import io
import os
import socket
import stat
import unicodedata

import pytest

import strongroom
from strongroom.errors import (
    AlreadyExists,
    LimitExceeded,
    NoKey,
    NotFound,
    SourceChanged,
    UsageError,
)
from strongroom.format.header import MAGIC
from strongroom.format.paths import check_path
from strongroom.model.collect import checked_path, collect
from strongroom.model.seal import SealJob, unseal_model
from strongroom.model.storage import LocalSource
from strongroom.testing.raw import pattern


@pytest.fixture
def model(tmp_path):
    root = tmp_path / "model"
    for path, data in FILES.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return root


FILES = {
    "1/model.onnx": pattern("onnx", 150_000),
    "1/model.onnx.data": pattern("data", 65_536 * 2),
    "config.pbtxt": b'name: "test"\n',
    "empty": b"",
    "größe/重み.bin": pattern("weights", 1000),
    ".hidden": b"hidden",
}


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(source, destination, error, match, key, **options):
    before = sorted(os.listdir(destination.parent))
    with pytest.raises(error, match=match) as caught:
        strongroom.seal(source, destination, key=key, **options)
    assert sorted(os.listdir(destination.parent)) == before
    return caught.value


class TestSeal:
    def test_directory(self, model, tmp_path, key):
        bundle = strongroom.seal(
            model, tmp_path / "m.sealed", key=key, name="m", version="3", segment_size=65536
        )
        stored = sorted(tree(tmp_path / "m.sealed"))
        assert stored == sorted([*(f"{path}.sealed" for path in FILES), "MANIFEST.sealed"])
        for data in tree(tmp_path / "m.sealed").values():
            assert data.startswith(MAGIC)
            assert b"hidden" not in data[4096:]
        with strongroom.open(tmp_path / "m.sealed", key=key) as opened:
            assert list(opened.files) == sorted(FILES)
            assert {path: opened.read(path) for path in opened.files} == FILES
            assert opened.bundle == bundle
            assert opened.is_directory
            assert (opened.meta["name"], opened.meta["version"]) == ("m", "3")
            assert opened.size == sum(map(len, FILES.values()))

    def test_file(self, tmp_path, key):
        (tmp_path / "m.pt").write_bytes(b"weights")
        strongroom.seal(tmp_path / "m.pt", tmp_path / "m.pt.sealed", key=key)
        with strongroom.open(tmp_path / "m.pt.sealed", key=key) as opened:
            assert list(opened.files) == ["m.pt"]
            assert opened.read() == b"weights"
            assert not opened.is_directory

    def test_clear(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key, clear=["*.pbtxt", "größe/*", ".hid*"])
        stored = tree(tmp_path / "s")
        for path in ("config.pbtxt", "größe/重み.bin", ".hidden"):
            assert stored[path] == FILES[path]
        with strongroom.open(tmp_path / "s", key=key) as opened:
            assert {path: opened.read(path) for path in opened.files} == FILES
            assert {p for p, info in opened.files.items() if not info.sealed} == {
                "config.pbtxt",
                "größe/重み.bin",
                ".hidden",
            }

    def test_everything_clear_is_still_authenticated(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key, clear=["*"])
        assert strongroom.verify(tmp_path / "s", key=key) == sum(map(len, FILES.values()))
        (tmp_path / "s" / "config.pbtxt").write_bytes(b'name: "tesT"\n')
        with pytest.raises(strongroom.errors.ManifestMismatch):
            strongroom.verify(tmp_path / "s", key=key)

    def test_progress(self, model, tmp_path, key):
        done = []
        strongroom.seal(model, tmp_path / "s", key=key, clear=["*.pbtxt"], progress=done.append)
        assert sum(done) == sum(map(len, FILES.values()))

    def test_overwrite(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key)
        refused(model, tmp_path / "s", AlreadyExists, "exists already", key)
        (tmp_path / "s" / "stale.sealed").write_bytes(b"x")
        strongroom.seal(model, tmp_path / "s", key=key, overwrite=True)
        assert not (tmp_path / "s" / "stale.sealed").exists()
        strongroom.verify(tmp_path / "s", key=key)

    def test_each_model_has_its_own_bundle_and_salts(self, model, tmp_path, key):
        a = strongroom.seal(model, tmp_path / "a", key=key)
        b = strongroom.seal(model, tmp_path / "b", key=key)
        assert a != b
        one, other = tree(tmp_path / "a"), tree(tmp_path / "b")
        for path in one:
            assert one[path][4096:4136] != other[path][4096:4136]
        salts = [data[4097:4129] for data in one.values()]
        assert len(set(salts)) == len(salts)


class TestLinks:
    def test_cache_of_hugging_face(self, tmp_path, key):
        """models--org--name/snapshots/REV/file → ../../blobs/HASH"""
        blobs, snapshot = tmp_path / "m/blobs", tmp_path / "m/snapshots/abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for name, blob in (("config.json", "11"), ("model.safetensors", "22")):
            (blobs / blob).write_bytes(blob.encode())
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
        strongroom.seal(snapshot, tmp_path / "s", key=key)
        with strongroom.open(tmp_path / "s", key=key) as opened:
            assert opened.read("config.json") == b"11"
            assert opened.read("model.safetensors") == b"22"
        assert not any(path.is_symlink() for path in (tmp_path / "s").rglob("*"))

    def test_directory_and_root(self, tmp_path, key):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "x").write_bytes(b"x")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "sub").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "link").symlink_to("m")
        strongroom.seal(tmp_path / "link", tmp_path / "s", key=key)
        with strongroom.open(tmp_path / "s", key=key) as opened:
            assert opened.read("sub/x") == b"x"

    def test_hard_link(self, tmp_path, key):
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "a").write_bytes(b"x")
        os.link(tmp_path / "m" / "a", tmp_path / "m" / "b")
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
        assert strongroom.verify(tmp_path / "s", key=key) == 2

    @pytest.mark.parametrize(
        ("target", "match"),
        [(".", "back to a directory above"), ("..", "back to a directory above"), ("nowhere", "nowhere"), ("link", "nowhere")],
    )  # fmt: skip
    def test_refused(self, model, tmp_path, key, target, match):
        inside = model / "1" / "link"
        inside.symlink_to(target)
        refused(model, tmp_path / "s", UsageError, match, key)

    def test_cycle_over_two_links(self, tmp_path, key):
        for name, other in (("a", "b"), ("b", "a")):
            (tmp_path / "m" / name).mkdir(parents=True)
            (tmp_path / "m" / name / "x").write_bytes(b"x")
            (tmp_path / "m" / name / "link").symlink_to(f"../{other}")
        refused(tmp_path / "m", tmp_path / "s", UsageError, "back to a directory above", key)


class TestRefused:
    def test_fifo(self, model, tmp_path, key):
        os.mkfifo(model / "pipe")
        refused(model, tmp_path / "s", UsageError, "neither a file nor a directory", key)
        refused(model / "pipe", tmp_path / "s", UsageError, "not a regular file", key)

    def test_socket(self, model, tmp_path, key, monkeypatch):
        monkeypatch.chdir(model)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
            refused(model, tmp_path / "s", UsageError, "neither a file nor a directory", key)
            refused(model / "s", tmp_path / "s", UsageError, "no such device|regular", key)

    def test_device(self, model, tmp_path, key):
        (model / "zero").symlink_to("/dev/zero")
        refused(model, tmp_path / "s", UsageError, "neither a file nor a directory", key)
        refused("/dev/zero", tmp_path / "s", UsageError, "not a regular file", key)

    def test_missing(self, tmp_path, key):
        refused(tmp_path / "no", tmp_path / "s", NotFound, "no such file", key)

    def test_empty_directory(self, tmp_path, key):
        (tmp_path / "m" / "sub").mkdir(parents=True)
        refused(tmp_path / "m", tmp_path / "s", UsageError, "no files", key)

    @pytest.mark.parametrize("name", ["MANIFEST", "back\\slash"])
    def test_names(self, model, tmp_path, key, name):
        (model / name).write_bytes(b"x")
        error = refused(model, tmp_path / "s", UsageError, "reserved|backslash", key)
        assert error.hint == "Rename the file."

    def test_reserved_name_of_a_single_file(self, tmp_path, key):
        (tmp_path / "MANIFEST").write_bytes(b"x")
        refused(tmp_path / "MANIFEST", tmp_path / "s", UsageError, "reserved", key)

    def test_name_that_is_not_utf_8(self, model, tmp_path, key):
        (model / os.fsdecode(b"\xff")).write_bytes(b"x")
        error = refused(model, tmp_path / "s", UsageError, "not UTF-8", key)
        str(error).encode()

    def test_long_path(self, tmp_path, key):
        folder = tmp_path / "m"
        for _ in range(6):
            folder /= "d" * 200
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"x")
        refused(tmp_path / "m", tmp_path / "s", UsageError, "longer than 1024", key)

    def test_two_spellings_of_one_name(self, tmp_path, key):
        (tmp_path / "m").mkdir()
        for form in ("NFC", "NFD"):
            (tmp_path / "m" / unicodedata.normalize(form, "größe")).write_bytes(b"x")
        refused(tmp_path / "m", tmp_path / "s", UsageError, "same in Unicode", key)

    def test_decomposed_name_is_composed(self, tmp_path, key):
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / unicodedata.normalize("NFD", "größe")).write_bytes(b"x")
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
        with strongroom.open(tmp_path / "s", key=key) as opened:
            assert opened.read("größe") == b"x"

    def test_two_files_in_one_place(self, tmp_path, key):
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "x").write_bytes(b"x")
        (tmp_path / "m" / "x.sealed").write_bytes(b"x")
        options = {"clear": ["*.sealed"]}
        error = refused(tmp_path / "m", tmp_path / "s", UsageError, "under one name", key, **options)
        assert str(error).startswith("The directory cannot be sealed: it has two files")
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
        assert strongroom.verify(tmp_path / "s", key=key) == 2

    def test_sealed_already(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key)
        refused(tmp_path / "s", tmp_path / "t", UsageError, "sealed model already", key)
        one = tmp_path / "s" / "empty.sealed"
        refused(one, tmp_path / "t", UsageError, "sealed already", key)

    def test_destination_in_the_source(self, model, tmp_path, key):
        for destination in (model, model / "s", model / "1" / "s"):
            for overwrite in (False, True):
                refused(model, destination, UsageError, "lies in it|exists", key, overwrite=overwrite)
        (tmp_path / "link").symlink_to("model")
        refused(model, tmp_path / "link" / "s", UsageError, "lies in it", key)
        refused(model / "empty", model / "empty", UsageError, "source itself", key, overwrite=True)
        assert tree(model) == FILES

    def test_destination_around_the_source(self, model, tmp_path, key):
        """Replacing it would have removed the source."""
        refused(model, tmp_path, UsageError, "source lies in", key, overwrite=True)
        refused(model / "1", model, UsageError, "source lies in", key, overwrite=True)
        assert tree(model) == FILES

    def test_nobody_to_seal_for(self, model, tmp_path, monkeypatch):
        monkeypatch.delenv("STRONGROOM_KEY", raising=False)
        monkeypatch.delenv("STRONGROOM_KEY_FILE", raising=False)
        for nobody in (None, []):
            refused(model, tmp_path / "s", NoKey, "No key|list of keys", nobody)

    @pytest.mark.parametrize("size", [0, 1000, 32768, 1 << 25, 65536.0, True])
    def test_segment_size(self, model, tmp_path, key, size):
        error = refused(
            model, tmp_path / "s", UsageError, "segment size is not", key, segment_size=size
        )
        assert error.hint == "Use 1048576."

    def test_clear_for_a_single_file(self, model, tmp_path, key):
        refused(
            model / "empty", tmp_path / "s", UsageError, "only in a sealed directory", key, clear=["*"]
        )

    def test_directory_to_standard_output(self, model, key):
        with pytest.raises(UsageError, match="standard output"):
            strongroom.seal(model, "-", key=key)

    def test_nine_passphrases(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("strongroom.keys.passphrase._MEMORY", 32)
        people = [strongroom.Passphrase(str(n)) for n in range(9)]
        refused(model, tmp_path / "s", LimitExceeded, "9 passphrase", people)
        strongroom.seal(model, tmp_path / "s", key=people[:8])
        assert strongroom.verify(tmp_path / "s", key=people[7])

    def test_header_that_gets_too_large(self, model, tmp_path, key):
        refused(model, tmp_path / "s", LimitExceeded, "at most", key, meta={"x": "x" * (1 << 20)})

    def test_metadata_that_is_no_json(self, model, tmp_path, key):
        refused(model, tmp_path / "s", UsageError, "JSON", key, meta={"x": object()})


class TestSourceThatChanges:
    @pytest.fixture
    def while_reading(self, monkeypatch):
        def install(change):
            real = LocalSource.read_into

            def read_into(self, offset, out):
                if offset == 0 and len(out) > 100:
                    change(self.name)
                real(self, offset, out)

            monkeypatch.setattr(LocalSource, "read_into", read_into)

        return install

    @pytest.mark.parametrize("clear", [(), ("*",)])
    @pytest.mark.parametrize(
        "change",
        [
            lambda name: os.truncate(name, 1000),
            lambda name: os.truncate(name, 1 << 20),
            lambda name: os.utime(name, (1, 1)),
        ],
        ids=["shorter", "longer", "written to"],
    )
    def test_refused(self, model, tmp_path, key, while_reading, change, clear):
        while_reading(change)
        refused(model / "1", tmp_path / "s", SourceChanged, "shorter|changed", key, clear=clear)

    def test_removed(self, model, tmp_path, key, monkeypatch):
        import strongroom.model.seal as module

        real = module.collect

        def collect_then_remove(location):
            files = real(location)
            (model / "empty").unlink()
            return files

        monkeypatch.setattr(module, "collect", collect_then_remove)
        refused(model, tmp_path / "s", NotFound, "no such file", key)


class TestUnseal:
    def test_directory(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key, clear=["*.pbtxt"])
        done = []
        strongroom.unseal(tmp_path / "s", tmp_path / "u", key=key, progress=done.append)
        assert tree(tmp_path / "u") == FILES
        assert sum(done) == sum(map(len, FILES.values()))
        for path in (tmp_path / "u").rglob("*"):
            if path.is_file():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "u").stat().st_mode) == 0o700

    def test_file(self, model, tmp_path, key):
        strongroom.seal(model / ".hidden", tmp_path / "s", key=key)
        strongroom.unseal(tmp_path / "s", tmp_path / "u", key=key)
        assert (tmp_path / "u").read_bytes() == b"hidden"
        assert stat.S_IMODE((tmp_path / "u").stat().st_mode) == 0o600
        with pytest.raises(AlreadyExists):
            strongroom.unseal(tmp_path / "s", tmp_path / "u", key=key)
        (tmp_path / "u").chmod(0o644)
        strongroom.unseal(tmp_path / "s", tmp_path / "u", key=key, overwrite=True)
        assert stat.S_IMODE((tmp_path / "u").stat().st_mode) == 0o600

    def test_standard_output(self, model, tmp_path, key, monkeypatch):
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out))
        strongroom.seal(model / ".hidden", tmp_path / "s", key=key)
        strongroom.unseal(tmp_path / "s", "-", key=key)
        assert out.getvalue() == b"hidden"
        strongroom.seal(model, tmp_path / "d", key=key)
        with pytest.raises(UsageError, match="standard output"):
            strongroom.unseal(tmp_path / "d", "-", key=key)

    def test_over_itself(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key)
        before = tree(tmp_path / "s")
        for destination in (tmp_path / "s", tmp_path / "s" / "x", tmp_path):
            with pytest.raises((UsageError, AlreadyExists)):
                strongroom.unseal(tmp_path / "s", destination, key=key, overwrite=True)
        assert tree(tmp_path / "s") == before

    def test_tampered_file_leaves_what_was_there(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key)
        victim = tmp_path / "s" / "1" / "model.onnx.data.sealed"
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
        (tmp_path / "u").mkdir()
        (tmp_path / "u" / "old").write_bytes(b"old")
        with pytest.raises(strongroom.errors.PayloadTampered):
            strongroom.unseal(tmp_path / "s", tmp_path / "u", key=key, overwrite=True)
        assert tree(tmp_path / "u") == {"old": b"old"}
        assert sorted(os.listdir(tmp_path)) == ["model", "s", "u"]

    def test_open_model(self, model, tmp_path, key):
        strongroom.seal(model, tmp_path / "s", key=key)
        with strongroom.open(tmp_path / "s", key=key) as opened:
            unseal_model(opened, tmp_path / "u")
        assert tree(tmp_path / "u") == FILES


class TestCreate:
    def test_named_after_the_destination(self, tmp_path, key):
        with strongroom.create(tmp_path / "m.pt.sealed", key=key, name="n", segment_size=65536) as file:
            file.write(b"weights")
            assert os.listdir(tmp_path) == []
        with strongroom.open(tmp_path / "m.pt.sealed", key=key) as opened:
            assert list(opened.files) == ["m.pt"]
            assert opened.meta["name"] == "n"
            assert opened.header.segment == 65536
            assert opened.read() == b"weights"

    def test_path(self, tmp_path, key):
        with strongroom.create(tmp_path / "x", key=key, path="a/b.bin"):
            pass
        with strongroom.open(tmp_path / "x", key=key) as opened:
            assert opened.read("a/b.bin") == b""

    @pytest.mark.parametrize("path", ["", "../x", "MANIFEST", "/x", "a\\b"])
    def test_bad_path(self, tmp_path, key, path):
        with pytest.raises(UsageError):
            strongroom.create(tmp_path / "x", key=key, path=path)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("segment", [1, 1 << 30])
    def test_bad_segment(self, tmp_path, key, segment):
        with pytest.raises(UsageError, match="segment size is not"):
            strongroom.create(tmp_path / "x", key=key, segment_size=segment)
        assert os.listdir(tmp_path) == []

    def test_exception(self, tmp_path, key):
        with pytest.raises(KeyError), strongroom.create(tmp_path / "x", key=key) as file:
            file.write(bytes(1 << 21))
            raise KeyError
        assert os.listdir(tmp_path) == []

    def test_existing(self, tmp_path, key):
        (tmp_path / "x").write_bytes(b"old")
        with pytest.raises(AlreadyExists):
            strongroom.create(tmp_path / "x", key=key)
        with strongroom.create(tmp_path / "x", key=key, overwrite=True):
            assert (tmp_path / "x").read_bytes() == b"old"
        assert (tmp_path / "x").read_bytes().startswith(MAGIC)


def test_collect_sorts_by_path(model):
    assert [file.path for file in collect(model)] == sorted(FILES)


def test_checked_path_says_why():
    assert checked_path(unicodedata.normalize("NFD", "ä"), "x") == check_path("ä")
    with pytest.raises(UsageError, match=r"dir/x: the name cannot be sealed: it holds a NUL"):
        checked_path("a\0", "dir/x")


def test_job_matches_paths_and_names(key):
    job = SealJob([key], {}, clear=["*.json", "1/*"])
    assert job.is_clear("a/b/config.json")
    assert job.is_clear("1/x")
    assert not job.is_clear("2/x")
    assert not job.is_clear("a/config.JSON")
