"""Sealed models in object stores, through imitations of them that run here.

moto imitates S3 and gcp-storage-emulator Google Cloud Storage, both behind real HTTP servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
import uuid

import pytest
from remote_servers import ObjectStore, contents, object_store

import strongroom
from strongroom.errors import (
    AlreadyExists,
    IntegrityError,
    MissingExtra,
    NotFound,
    NotSealed,
    Unavailable,
    UsageError,
)

SECRET = "wJalrXUtnFEMI-sesame"


@pytest.fixture(scope="module")
def store():
    with object_store() as store:
        yield store


@pytest.fixture
def s3(store: ObjectStore, monkeypatch):
    """The file system, and a bucket of its own for each test."""
    import fsspec
    from s3fs import S3FileSystem

    monkeypatch.setitem(
        fsspec.config.conf,
        "s3",
        {
            "endpoint_url": store.url,
            "key": "AKIAEXAMPLE",
            "secret": SECRET,
            "client_kwargs": {"region_name": "us-east-1"},
            # One retry; the default of four takes up to a minute to give up.
            "config_kwargs": {"retries": {"max_attempts": 1}},
        },
    )
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 2)
    fs = fsspec.filesystem("s3")
    fs.bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    fs.call_s3("create_bucket", Bucket=fs.bucket)
    store.requests.clear()
    yield fs
    store.fault = lambda method, path, query, wanted: None
    S3FileSystem.clear_instance_cache()


def uploads(fs) -> list:
    """Multipart uploads that nobody has completed or aborted; they are paid for."""
    return fs.call_s3("list_multipart_uploads", Bucket=fs.bucket).get("Uploads", [])


def objects(fs) -> set[str]:
    fs.invalidate_cache()
    return {path.removeprefix(f"{fs.bucket}/") for path in fs.find(fs.bucket)}


def test_every_verb_on_a_directory_in_s3(s3, plain, key, tmp_path):
    url = f"s3://{s3.bucket}/models/v1.sealed"
    bundle = strongroom.seal(plain, url, key=key, clear=["*.json"], name="model")
    assert uploads(s3) == []
    with strongroom.open(url, key=key) as model:
        assert model.bundle == bundle
        assert {path: model.read(path) for path in model.files} == contents(plain)
    assert strongroom.verify(url, key=key) == sum(map(len, contents(plain).values()))
    assert {info.path for info in strongroom.inspect(url).files} == set(contents(plain))
    new = os.urandom(32)
    strongroom.rewrap(url, key=key, new_key=new)
    with pytest.raises(strongroom.errors.NoMatchingRecipient):
        strongroom.open(url, key=key)
    strongroom.unseal(url, tmp_path / "plain", key=new)
    assert contents(tmp_path / "plain") == contents(plain)
    strongroom.unseal(url, f"s3://{s3.bucket}/plain", key=new)
    strongroom.seal(f"s3://{s3.bucket}/plain", tmp_path / "again.sealed", key=key)
    with strongroom.open(tmp_path / "again.sealed", key=key) as model:
        assert {path: model.read(path) for path in model.files} == contents(plain)


def test_every_verb_on_a_file_in_s3(s3, plain, key, tmp_path):
    url = f"s3://{s3.bucket}/weights.bin.sealed"
    strongroom.seal(plain / "weights.bin", url, key=key)
    with strongroom.open(url, key=key) as model:
        assert list(model.files) == ["weights.bin"]
        assert model.read() == (plain / "weights.bin").read_bytes()
    strongroom.unseal(url, tmp_path / "weights.bin", key=key)
    assert (tmp_path / "weights.bin").read_bytes() == (plain / "weights.bin").read_bytes()
    with pytest.raises(AlreadyExists):
        strongroom.seal(plain / "config.json", url, key=key)
    strongroom.seal(plain / "config.json", url, key=key, overwrite=True)
    with strongroom.open(url, key=key) as model:
        assert model.read() == (plain / "config.json").read_bytes()
    with strongroom.create(f"s3://{s3.bucket}/made.bin.sealed", key=key) as file:
        file.write(b"as it is written")
    with strongroom.open(f"s3://{s3.bucket}/made.bin.sealed", key=key) as model:
        assert model.read("made.bin") == b"as it is written"


def test_reads_are_ranges_and_a_small_one_is_small(s3, store, plain, key):
    url = f"s3://{s3.bucket}/weights.bin.sealed"
    strongroom.seal(plain / "weights.bin", url, key=key)
    store.requests.clear()
    with strongroom.open(url, key=key) as model:
        model.read_into(None, bytearray(100), 20_000_000)
        small = [range for method, _, _, range in store.requests if method == "GET"]
        assert [_size(range) for range in small] == [64 << 10, pytest.approx(1 << 19, rel=1), 1 << 20]
        store.requests.clear()
        model.read()
    ranges = [range for _, _, _, range in store.requests]
    assert len(ranges) == 10
    assert max(map(_size, ranges)) == 4 << 20


def _size(range: str) -> int:
    first, last = range.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


@pytest.mark.parametrize("failing", ["second part", "completion", "create"])
def test_a_failed_seal_of_a_file_leaves_nothing(s3, store, key, tmp_path, failing):
    (tmp_path / "big.bin").write_bytes(os.urandom(40 << 20))

    def fault(method, path, query, wanted):
        step = {
            "second part": method == "PUT" and "partNumber=2" in query,
            "completion": method == "POST" and "uploadId" in query,
            "create": method == "POST" and query.startswith("uploads"),
        }
        return 503 if step[failing] else None

    store.fault = fault
    with pytest.raises(Unavailable):
        strongroom.seal(tmp_path / "big.bin", f"s3://{s3.bucket}/big.sealed", key=key)
    store.fault = lambda method, path, query, wanted: None
    assert objects(s3) == set()
    assert uploads(s3) == []
    assert not s3.transaction.files


def test_parts_of_an_upload_grow_so_that_ten_thousand_are_enough(s3, key):
    from strongroom.model.remote import RemoteOutput

    output = RemoteOutput.begin(f"s3://{s3.bucket}/big", overwrite=False)

    class Counter:
        """Takes the place of s3fs's file and only counts; 5 TiB are the most that an object can have."""

        blocksize, size, buffered, parts = 16 << 20, 0, 0, 0

        def write(self, data):
            self.size += len(data)
            self.buffered += len(data)
            if self.buffered >= self.blocksize:
                self.buffered, self.parts = 0, self.parts + 1

        def tell(self):
            return self.size

    class Zeros:
        def __len__(self):
            return 16 << 20

    real, output._file = output._file, Counter()
    for _ in range((5 << 40) // (16 << 20)):
        output.write(Zeros())
    assert 5000 < output._file.parts < 10_000
    output._file = real
    output.abort()


def test_a_failed_overwrite_keeps_the_old_file(s3, store, plain, key):
    url = f"s3://{s3.bucket}/a.sealed"
    strongroom.seal(plain / "config.json", url, key=key)
    store.fault = lambda method, path, query, wanted: (
        503 if method == "POST" and "uploadId" in query else None
    )
    with pytest.raises(Unavailable):
        strongroom.seal(plain / "weights.bin", url, key=key, overwrite=True)
    store.fault = lambda method, path, query, wanted: None
    with strongroom.open(url, key=key) as model:
        assert model.read() == (plain / "config.json").read_bytes()
    assert uploads(s3) == []


@pytest.mark.parametrize("failing", ["weights.bin.sealed", "MANIFEST.sealed"])
def test_a_failed_seal_of_a_directory_leaves_nothing(s3, store, plain, key, failing):
    store.fault = lambda method, path, query, wanted: (
        503 if path.endswith(failing) and method == "POST" and "uploadId" in query else None
    )
    with pytest.raises(Unavailable):
        strongroom.seal(plain, f"s3://{s3.bucket}/model.sealed", key=key)
    store.fault = lambda method, path, query, wanted: None
    assert objects(s3) == set()
    assert uploads(s3) == []


def test_an_interrupted_writer_leaves_nothing(s3, key):
    class Stop(BaseException):
        pass

    with (
        pytest.raises(Stop),
        strongroom.create(f"s3://{s3.bucket}/a.sealed", key=key) as file,
    ):
        file.write(os.urandom(20 << 20))
        raise Stop
    assert objects(s3) == set()
    assert uploads(s3) == []


def test_two_writers_of_one_name_do_not_replace_each_other(s3, key):
    url = f"s3://{s3.bucket}/a.sealed"
    first = strongroom.create(url, key=key)
    second = strongroom.create(url, key=key)
    first.write(b"first")
    second.write(b"second")
    first.close()
    with pytest.raises(AlreadyExists):
        second.close()
    with strongroom.open(url, key=key) as model:
        assert model.read() == b"first"
    assert uploads(s3) == []


def test_a_remote_directory_is_not_replaced(s3, plain, key):
    url = f"s3://{s3.bucket}/model.sealed"
    strongroom.seal(plain, url, key=key)
    with pytest.raises(AlreadyExists):
        strongroom.seal(plain, url, key=key)
    with pytest.raises(UsageError, match="cannot be replaced in one step"):
        strongroom.seal(plain, url, key=key, overwrite=True)
    assert strongroom.verify(url, key=key)


def test_passing_failures_of_s3_are_retried_by_its_back_end(s3, store, plain, key):
    url = f"s3://{s3.bucket}/a.sealed"
    strongroom.seal(plain / "weights.bin", url, key=key)
    failed: set[tuple[str, str]] = set()

    def at_first(method, path, query, wanted):
        if (path, wanted) in failed:
            return None
        failed.add((path, wanted))
        return 503

    store.fault = at_first
    with strongroom.open(url, key=key) as model:
        assert model.read() == (plain / "weights.bin").read_bytes()
    assert len(failed) > 10


def test_lasting_failures_of_s3_are_errors_without_secrets(s3, store, plain, key):
    url = f"s3://{s3.bucket}/a.sealed"
    strongroom.seal(plain / "weights.bin", url, key=key)
    for status, expected in ((503, Unavailable), (403, UsageError)):
        store.fault = lambda method, path, query, wanted, status=status: status
        with pytest.raises(expected) as caught:
            strongroom.open(url, key=key)
        told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert SECRET not in told
        assert "AKIAEXAMPLE" not in told


def test_what_is_not_there_or_not_sealed(s3, plain, key):
    with pytest.raises(NotFound, match="nothing is there"):
        strongroom.open(f"s3://{s3.bucket}/missing.sealed", key=key)
    s3.pipe_file(f"{s3.bucket}/plain/a.txt", b"hello")
    with pytest.raises(NotSealed, match="not a sealed file"):
        strongroom.open(f"s3://{s3.bucket}/plain/a.txt", key=key)
    with pytest.raises(NotSealed, match=r"no MANIFEST\.sealed"):
        strongroom.open(f"s3://{s3.bucket}/plain", key=key)
    with pytest.raises(NotFound):
        strongroom.seal(f"s3://{s3.bucket}/nowhere", f"s3://{s3.bucket}/new", key=key)


def test_what_another_process_has_changed_is_seen(s3, plain, key):
    """fsspec remembers listings; a size from yesterday would make a whole file look cut."""
    url = f"s3://{s3.bucket}/a.sealed"
    strongroom.seal(plain / "config.json", url, key=key)
    strongroom.verify(url, key=key)
    import fsspec

    other = fsspec.filesystem("s3", skip_instance_cache=True)
    strongroom_copy = f"s3://{s3.bucket}/b.sealed"
    strongroom.seal(plain / "weights.bin", strongroom_copy, key=key)
    other.copy(f"{s3.bucket}/b.sealed", f"{s3.bucket}/a.sealed")
    assert strongroom.verify(url, key=key) == 40_000_000


def test_objects_changed_in_the_store_are_found(s3, plain, key):
    url = f"s3://{s3.bucket}/model.sealed"
    strongroom.seal(plain, url, key=key)
    path = f"{s3.bucket}/model.sealed/weights.bin.sealed"
    data = bytearray(s3.cat_file(path))
    data[30_000_000] ^= 1
    s3.pipe_file(path, bytes(data))
    with pytest.raises(IntegrityError, match=r"weights\.bin: segment 28"):
        strongroom.verify(url, key=key)
    s3.rm_file(path)
    with pytest.raises(IntegrityError, match="missing"):
        strongroom.open(url, key=key)


def test_nothing_of_it_lands_on_a_disk(store, s3, plain, key):
    """A process whose every opening of a file for writing is recorded, from seal to load."""
    code = (
        "import json, os, sys, strongroom\n"
        "written = []\n"
        "def hook(event, args):\n"
        "    if event == 'open' and isinstance(args[2], int) and args[2] & 3:\n"
        "        written.append(str(args[0]))\n"
        "    elif event.split('.')[0] in ('tempfile', 'shutil') or event == 'os.mkdir':\n"
        "        written.append(f'{event} {args}')\n"
        "url, web, source, key = json.load(sys.stdin)\n"
        "key = bytes.fromhex(key)\n"
        "import fsspec, s3fs, aiohttp\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(hook)\n"
        "strongroom.seal(source, url, key=key)\n"
        "with strongroom.open(url, key=key) as model:\n"
        "    for path in model.files: model.read(path)\n"
        "strongroom.unseal(url, url + '.plain', key=key)\n"
        "strongroom.seal(url + '.plain', url + '.2', key=key)\n"
        "strongroom.verify(url + '.2', key=key)\n"
        "print(json.dumps([name for name in written if name != os.devnull]))\n"
    )
    import json

    url = f"s3://{s3.bucket}/model.sealed"
    environment = os.environ | {
        "FSSPEC_S3": json.dumps({"endpoint_url": store.url, "key": "AKIAEXAMPLE", "secret": SECRET}),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([url, "", str(plain), key.hex()]),
        text=True,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    assert json.loads(done.stdout) == []


def test_memory_and_file_urls(plain, key, tmp_path):
    name = uuid.uuid4().hex
    strongroom.seal(plain, f"memory://{name}/m.sealed", key=key, clear=["*.json"])
    strongroom.unseal(f"memory://{name}/m.sealed", (tmp_path / "a b").as_uri(), key=key)
    assert contents(tmp_path / "a b") == contents(plain)
    strongroom.seal((tmp_path / "a b").as_uri(), (tmp_path / "c d.sealed").as_uri(), key=key)
    strongroom.rewrap((tmp_path / "c d.sealed").as_uri(), key=key, new_key=os.urandom(32))
    assert (tmp_path / "c d.sealed" / "MANIFEST.sealed").is_file()
    assert strongroom.inspect((tmp_path / "c d.sealed").as_uri()).directory
    with pytest.raises(UsageError, match="another machine"):
        strongroom.open("file://elsewhere/model.sealed", key=key)


def test_a_failed_seal_to_a_place_that_shows_files_early_leaves_nothing(key, tmp_path, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    (tmp_path / "a.bin").write_bytes(os.urandom(5_000_000))
    name = uuid.uuid4().hex

    def fail(self, data):
        raise OSError("no")

    monkeypatch.setattr(MemoryFile, "write", fail, raising=False)
    with pytest.raises(Unavailable):
        strongroom.seal(tmp_path / "a.bin", f"memory://{name}/a.sealed", key=key)
    assert not fsspec.filesystem("memory").exists(f"{name}/a.sealed")


@pytest.mark.parametrize(
    "url", ["simplecache::s3://bucket/model.sealed", "zip://a::s3://bucket/a.zip", "filecache://x"]
)
def test_places_that_keep_copies_on_this_disk_are_refused(url, key):
    with pytest.raises(UsageError):
        strongroom.open(url, key=key)


def test_a_place_that_fsspec_does_not_know(key):
    with pytest.raises(UsageError, match="fsspec cannot use"):
        strongroom.open("nosuch://bucket/model.sealed", key=key)


@pytest.mark.parametrize(("url", "module"), [("s3://b/m", "s3fs"), ("gs://b/m", "gcsfs")])
def test_a_half_installed_extra_says_the_install_line(url, module, key, monkeypatch):
    import fsspec  # of which the attribute "registry" is the dictionary and not the module

    known = sys.modules[f"{fsspec.__name__}.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        strongroom.open(url, key=key)
    assert caught.value.hint == 'pip install "strongroom[remote]"'


def test_a_place_whose_package_is_not_installed_says_what_to_install(key):
    with pytest.raises(UsageError, match=r"abfs:// needs a package") as caught:
        strongroom.open("abfs://container/model.sealed", key=key)
    assert "adlfs" in caught.value.hint


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs gives aiohttp bytes
def test_every_verb_in_google_cloud_storage(plain, key, tmp_path, monkeypatch):
    # gcsfs asks by gRPC, which the emulator does not speak, what kind of bucket it is; before import.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    from gcp_storage_emulator.server import create_server
    from gcsfs import GCSFileSystem

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    try:
        port = server._api._httpd.server_address[1]
        monkeypatch.setitem(
            fsspec.config.conf,
            "gs",
            {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "p"},
        )
        url = "gs://models/v1.sealed"
        strongroom.seal(plain, url, key=key, clear=["*.json"])
        with strongroom.open(url, key=key) as model:
            assert {path: model.read(path) for path in model.files} == contents(plain)
        new = os.urandom(32)
        strongroom.rewrap(url, key=key, new_key=new)
        assert strongroom.verify(url, key=new) == sum(map(len, contents(plain).values()))
        strongroom.unseal(url, tmp_path / "plain", key=new)
        assert contents(tmp_path / "plain") == contents(plain)
    finally:
        server.stop()
        GCSFileSystem.clear_instance_cache()
