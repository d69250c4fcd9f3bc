"""Open models: what they say, what they refuse to do; places and memory they read from."""

import gc
import json
import os

import pytest

import strongroom
import strongroom.model.reader
from left_over import no_file_left_open
from strongroom.errors import (
    LimitExceeded,
    ManifestMismatch,
    NotFound,
    NotSealed,
    PayloadTampered,
    StrongroomError,
    Truncated,
    UsageError,
)
from strongroom.model.memory import (
    BufferPool,
    address_of,
    allocate,
    allocate_bytes,
    memory_file,
)
from strongroom.model.storage import LocalSource, LocalTree
from strongroom.testing.memory import BytesSource, BytesTree
from strongroom.testing.raw import pattern

FILES = {"a/x.bin": pattern("x", 200_000), "b.json": b"{}", "c": b""}


@pytest.fixture
def sealed(tmp_path, key):
    for path, data in FILES.items():
        (tmp_path / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / path).write_bytes(data)
    strongroom.seal(
        tmp_path / "m", tmp_path / "s", key=key, clear=["*.json"], name="n", segment_size=65536
    )
    return tmp_path / "s"


@pytest.fixture
def model(sealed, key):
    with strongroom.open(sealed, key=key) as opened:
        yield opened


class TestModel:
    def test_what_it_says(self, model, sealed):
        assert [(f.path, f.size, f.sealed) for f in model.files.values()] == [
            ("a/x.bin", 200_000, True),
            ("b.json", 2, False),
            ("c", 0, True),
        ]
        assert model.name == str(sealed)
        assert repr(model).endswith("3 files>")
        assert len(model.bundle) == 16

    def test_meta_cannot_be_changed(self, model):
        with pytest.raises(TypeError):
            model.meta["name"] = "other"
        with pytest.raises(TypeError):
            model.files["x"] = None

    def test_unknown_file(self, model):
        with pytest.raises(NotFound) as caught:
            model.read("no")
        assert "b.json" in caught.value.hint

    def test_many_files_are_not_all_listed(self, tmp_path, key):
        (tmp_path / "many").mkdir()
        for number in range(20):
            (tmp_path / "many" / f"{number:02}").write_bytes(b"")
        strongroom.seal(tmp_path / "many", tmp_path / "x", key=key)
        with strongroom.open(tmp_path / "x", key=key) as model, pytest.raises(NotFound) as caught:
            model.read("no")
        assert caught.value.hint.endswith("07 …")

    def test_which_file(self, model):
        with pytest.raises(UsageError, match="say which one"):
            model.read()

    def test_closed(self, sealed, key):
        with strongroom.open(sealed, key=key) as model:
            sealed_file, clear_file = model.open("a/x.bin"), model.open("b.json")
            contents = [model.content(path) for path in FILES]
        model.close()
        with pytest.raises(ValueError, match="closed"):
            model.read("c")
        for file in (sealed_file, clear_file):
            with pytest.raises(ValueError, match="closed"):
                file.read()
        with pytest.raises(ValueError, match="closed"):
            contents[1].copy_to(lambda data: None)
        assert bytes(model._keys.dek.buffer) == bytes(32)

    def test_what_was_read_stays(self, sealed, key):
        with strongroom.open(sealed, key=key) as model:
            memory = model.load("a/x.bin")
        del model
        gc.collect()
        assert memory == FILES["a/x.bin"]

    def test_a_failed_file_stays_failed(self, sealed, key):
        path = sealed / "a/x.bin.sealed"
        data = bytearray(path.read_bytes())
        data[4096 + 65536 + 5] ^= 1
        path.write_bytes(data)
        with strongroom.open(sealed, key=key) as model:
            assert model.read("c") == b""
            buffer = bytearray(b"\xaa" * 200_000)
            with pytest.raises(PayloadTampered) as caught:
                model.read_into("a/x.bin", buffer)
            assert (caught.value.path, caught.value.segment) == ("a/x.bin", 1)
            first, second = 65536 - 56, 65536 - 16
            assert buffer[first : first + second] == bytes(second), "nothing unauthenticated stays"
            data[4096 + 65536 + 5] ^= 1
            path.write_bytes(data)
            for call in (
                lambda: model.read("a/x.bin"),
                lambda: model.read_into("a/x.bin", bytearray(1)),
                lambda: model.open("a/x.bin").read(1),
                model.verify,
            ):
                with pytest.raises(PayloadTampered):
                    call()
            assert model.read("c") == b""

    def test_verify_closes_what_it_opened(self, model):
        with no_file_left_open():
            assert model.verify() == 200_002
        model.read("a/x.bin")
        model.verify()
        assert model.read("a/x.bin") == FILES["a/x.bin"]

    def test_clear_file_is_what_was_compared(self, model, sealed):
        file = model.open("b.json")
        (sealed / "b.json").write_bytes(b"[]")
        assert file.read() == b"{}"
        done = []
        assert model.read_into("b.json", bytearray(5), progress=done.append) == 2
        assert done == [2]

    def test_error_in_a_member_names_it(self, sealed, key):
        (sealed / "c.sealed").write_bytes(b"\x89SRM\r\n\x1a\n" + bytes(5000))
        with strongroom.open(sealed, key=key) as model, pytest.raises(StrongroomError, match=r"^c: "):
            model.read("c")

    def test_manifest_above_the_limit(self, sealed, key, monkeypatch):
        monkeypatch.setattr("strongroom.model.reader.MAX_MANIFEST", 10)
        with pytest.raises(LimitExceeded):
            strongroom.open(sealed, key=key)

    def test_missing_between_opening_and_reading(self, model, sealed):
        (sealed / "c.sealed").unlink()
        with pytest.raises(ManifestMismatch) as caught:
            model.read("c")
        assert caught.value.path == "c"

    def test_directory_moved_while_open(self, model, sealed):
        sealed.rename(sealed.parent / "moved")
        sealed.mkdir()
        assert model.read("a/x.bin") == FILES["a/x.bin"]

    def test_keys_are_asked_for_only_if_something_sealed_is_there(self, tmp_path):
        def never():
            raise AssertionError("asked for a key")

        (tmp_path / "empty").mkdir()
        for location, error in ((tmp_path / "no", NotFound), (tmp_path / "empty", NotSealed)):
            with pytest.raises(error):
                strongroom.model.reader.open_model(location, never)

    def test_failed_opening_leaks_no_descriptor(self, sealed, other_key, tmp_path):
        (tmp_path / "plain").write_bytes(b"x" * 100)
        with no_file_left_open():
            for location in (
                sealed,
                sealed / "c.sealed",
                sealed / "MANIFEST.sealed",
                tmp_path / "plain",
            ):
                for _ in range(3):
                    with pytest.raises(StrongroomError):
                        strongroom.open(location, key=other_key)


class TestInspect:
    def test_directory(self, sealed):
        found = strongroom.inspect(sealed).to_json()
        stored = sum(path.stat().st_size for path in sealed.rglob("*") if path.is_file())
        assert found["files"] == [
            {"path": "a/x.bin", "size": 200_000, "sealed": True},
            {"path": "b.json", "size": 2, "sealed": False},
            {"path": "c", "size": 0, "sealed": True},
        ]
        assert (found["kind"], found["size"], found["stored"]) == ("directory", 200_002, stored)
        assert found["meta"]["name"] == "n"
        assert found["recipients"][0]["alg"] == "A256KW"
        assert "encrypted_key" not in json.dumps(found)
        assert found["authenticated"] is False

    def test_file(self, tmp_path, key):
        with strongroom.create(tmp_path / "x.sealed", key=key) as file:
            file.write(bytes(1234))
        found = strongroom.inspect(tmp_path / "x.sealed")
        assert [(f.path, f.size) for f in found.files] == [("x", 1234)]
        assert found.to_json()["kind"] == "file"
        assert found.stored == (tmp_path / "x.sealed").stat().st_size

    def test_bad_member_is_named(self, sealed):
        (sealed / "c.sealed").write_bytes(b"not sealed")
        with pytest.raises(NotSealed, match=r"c\.sealed"):
            strongroom.inspect(sealed)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(NotFound):
            strongroom.inspect(tmp_path / "no")
        with pytest.raises(NotSealed, match="no MANIFEST"):
            strongroom.inspect(tmp_path)


class TestLocalPlaces:
    def test_source(self, tmp_path):
        (tmp_path / "x").write_bytes(b"0123456789")
        source = LocalSource(tmp_path / "x")
        out = bytearray(4)
        source.read_into(3, memoryview(out))
        assert (bytes(out), source.size) == (b"3456", 10)
        source.read_into(10, memoryview(b""))
        with pytest.raises(Truncated):
            source.read_into(8, memoryview(out))
        assert not source.changed()
        (tmp_path / "x").write_bytes(b"0123456789")
        os.utime(tmp_path / "x", (5, 5))
        assert source.changed()
        source.close()
        source.close()
        with pytest.raises(ValueError, match="closed"):
            source.read_into(0, memoryview(out))

    def test_short_reads_are_continued(self, tmp_path, monkeypatch):
        (tmp_path / "x").write_bytes(b"0123456789")
        source = LocalSource(tmp_path / "x")
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:3]], at))
        out = bytearray(10)
        source.read_into(0, memoryview(out))
        assert bytes(out) == b"0123456789"

    def test_io_error(self, tmp_path, monkeypatch):
        (tmp_path / "x").write_bytes(b"0123456789")
        source = LocalSource(tmp_path / "x")

        def failing(*args):
            raise OSError(5, "I/O error")

        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(strongroom.errors.StorageError, match="input/output error"):
            source.read_into(0, memoryview(bytearray(1)))

    def test_fifo_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "x")
        with pytest.raises(UsageError, match="not a regular file"):
            LocalSource(tmp_path / "x")

    def test_tree(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "x").write_bytes(b"123")
        (tmp_path / "y").symlink_to("a/b/x")
        (tmp_path / "broken").symlink_to("nowhere")
        (tmp_path / "self").symlink_to("self")
        (tmp_path / "a" / "loop").symlink_to("..")
        (tmp_path / "other").symlink_to("a")
        tree = LocalTree(tmp_path)
        assert tree.sizes() == {"a/b/x": 3, "y": 3, "other/b/x": 3}
        assert tree.source("a/b/x").size == 3
        with pytest.raises(NotFound):
            tree.source("a/x")
        tree.close()
        tree.close()

    def test_loop_of_links_beside_a_model(self, sealed, key):
        (sealed / "loop").symlink_to(".")
        assert strongroom.verify(sealed, key=key) == 200_002


class TestPlacesInMemory:
    def test_source(self):
        source = BytesSource(b"0123456789")
        out = bytearray(4)
        source.read_into(3, memoryview(out))
        assert (bytes(out), source.size) == (b"3456", 10)
        with pytest.raises(Truncated):
            source.read_into(8, memoryview(out))

    def test_tree(self):
        tree = BytesTree({"a": b"123"})
        assert tree.sizes() == {"a": 3}
        with pytest.raises(NotFound):
            tree.source("b")


class TestMemory:
    @pytest.mark.parametrize("size", [0, 1, 4096, (2 << 20) - 1, 2 << 20, (5 << 20) + 3])
    def test_allocate(self, size):
        memory = allocate(size)
        assert len(memory) == size
        assert bytes(memory) == bytes(size)
        if size:
            memory[-1] = 7
        if size >= 2 << 20:
            assert address_of(memory) % (2 << 20) == 0

    @pytest.mark.parametrize("size", [0, 1, 100_000, 5 << 20])
    def test_bytes_without_a_copy(self, size):
        with allocate_bytes(size) as (memory, data):
            memory[:] = pattern("bytes", size)
            if size:
                assert id(data) + bytes.__basicsize__ - 1 == address_of(memory)
        assert type(data) is bytes
        assert data == pattern("bytes", size)

    def test_the_view_keeps_the_bytes(self):
        with allocate_bytes(8 << 20) as (memory, data):
            part = memory[-100:]
            del data
        gc.collect()
        part[:] = bytes([7]) * 100
        assert part[-1] == 7

    def test_a_byte_is_not_the_one_that_all_share(self):
        with allocate_bytes(1) as (memory, data):
            memory[0] = 65
        assert data == b"A"
        assert bytes([65]) is not data

    @pytest.mark.parametrize("size", [0, 1, 100_000])
    def test_memory_file(self, size):
        content = memoryview(pattern("file", size))
        with (
            memory_file("x" * 300, lambda write_at: write_at(0, content)) as path,
            open(path, "rb") as file,
        ):
            assert file.read() == content
        assert not os.path.exists(path) or "memfd" not in os.readlink(path)

    def test_memory_file_of_what_was_tampered_with(self, tmp_path):
        (tmp_path / "m").write_bytes(pattern("m", 16 << 20))
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=bytes(32))
        raw = bytearray((tmp_path / "s").read_bytes())
        raw[8 << 20] ^= 1
        (tmp_path / "s").write_bytes(raw)
        with (
            strongroom.open(tmp_path / "s", key=bytes(32)) as model,
            pytest.raises(PayloadTampered),
            model.path(),
        ):
            pass

    def test_pool(self):
        pool = BufferPool(1000)
        with pool.buffer() as one, pool.buffer() as other:
            assert len(one) == len(other) == 1000
            assert address_of(one) != address_of(other)
            known = {address_of(one), address_of(other)}
        assert address_of(pool.take()) in known
