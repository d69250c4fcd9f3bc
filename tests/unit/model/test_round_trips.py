"""Whatever is written comes back, by every way of writing and of reading."""

import io
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strongroom
from strongroom import SymmetricKey
from strongroom.errors import UsageError
from strongroom.model.output import Output
from strongroom.model.reader import SealedModel
from strongroom.model.seal import SealJob, seal_stream
from strongroom.model.stream import unseal_stream
from strongroom.model.writer import SealedWriter, build_meta
from strongroom.testing.memory import BytesSource
from strongroom.testing.raw import pattern

S = 65536
FIRST, OTHER = S - 56, S - 16
DATA = pattern("round trips", 12 * S)
KEY = SymmetricKey.generate()

edges = st.sampled_from([0, 1, FIRST, FIRST + OTHER, FIRST + 3 * OTHER, FIRST + 8 * OTHER])
sizes = st.builds(lambda edge, delta: max(0, edge + delta), edges, st.integers(-20, 20)) | st.integers(
    0, 10 * S
)


class MemoryOutput(Output):
    def __init__(self):
        self.data = bytearray()
        self.state = "open"

    def write(self, data):
        self.data += data

    def commit(self):
        self.state = "committed"

    def abort(self):
        self.state = "aborted" if self.state == "open" else self.state


def write(chunks):
    output = MemoryOutput()
    with SealedWriter(output, [KEY], "x", {}, S) as file:
        for chunk in chunks:
            assert file.write(chunk) == len(chunk)
        assert file.tell() == sum(len(chunk) for chunk in chunks)
    assert output.state == "committed"
    return bytes(output.data)


def opened(sealed):
    return SealedModel(BytesSource(sealed), None, [KEY])


@settings(deadline=None, max_examples=60)
@given(sizes, st.lists(st.integers(0, 12 * S), max_size=6))
def test_any_chunks(size, cuts):
    data = DATA[:size]
    cuts = sorted(min(cut, size) for cut in cuts)
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    sealed = write(chunks)
    pieces = (size + 40 - 1) // OTHER + 1 if size > FIRST else 1
    assert len(sealed) == 4096 + 40 + size + 16 * pieces
    with opened(sealed) as model:
        assert model.size == size
        assert model.read() == data
        assert bytes(model.load()) == data
        assert model.verify() == size
    streamed = []
    unseal_stream(io.BytesIO(sealed), lambda: [KEY], lambda piece: streamed.append(bytes(piece)))
    assert b"".join(streamed) == data


@pytest.mark.parametrize("chunk", [1000, S, FIRST, OTHER, OTHER + 1])
def test_regular_chunks(chunk):
    data = DATA[: 5 * S + 3]
    sealed = write([data[n : n + chunk] for n in range(0, len(data), chunk)])
    with opened(sealed) as model:
        assert model.read() == data


@settings(deadline=None, max_examples=25)
@given(sizes, st.lists(st.tuples(st.integers(0, 10 * S), st.integers(0, 4 * S)), max_size=20))
def test_random_reads(size, reads):
    data = DATA[:size]
    with opened(write([data])) as model, model.open() as file:
        reference = io.BytesIO(data)
        for offset, count in reads:
            assert file.seek(offset) == reference.seek(offset)
            assert file.read(count) == reference.read(count)
            assert file.tell() == reference.tell()
            buffer = bytearray(b"\xaa" * count)
            expected = data[offset : offset + count]
            assert model.read_into(None, buffer, offset) == len(expected)
            assert buffer == expected + b"\xaa" * (count - len(expected))


def test_sequential_small_reads_decrypt_each_segment_once():
    data = DATA[: 4 * S]
    with opened(write([data])) as model, model.open() as file:
        cipher, calls = model.content()._cipher, []
        real = cipher.decrypt_into

        class Counting:
            def decrypt_into(self, number, *rest):
                calls.append(number)
                real(number, *rest)

        model.content()._cipher = Counting()
        assert b"".join(iter(lambda: file.read(1000), b"")) == data
        assert sorted(calls) in ([0, 1, 2, 3, 4], [0, 1, 2, 3])


def test_buffered_and_iterated():
    text = "".join(f"line {n}\n" for n in range(20000)).encode()
    with opened(write([text])) as model:
        with io.BufferedReader(model.open()) as file:
            assert list(file) == io.BytesIO(text).readlines()
        with io.TextIOWrapper(io.BufferedReader(model.open()), encoding="ascii") as file:
            assert file.read() == text.decode()


class TestFileObject:
    @pytest.fixture
    def file(self):
        with opened(write([DATA[:1000]])) as model, model.open() as file:
            yield file

    def test_what_it_is(self, file):
        assert isinstance(file, io.RawIOBase)
        assert (file.name, file.size) == ("x", 1000)
        assert file.readable()
        assert file.seekable()
        assert not file.writable()

    def test_seek(self, file):
        assert file.seek(10) == 10
        assert file.seek(5, os.SEEK_CUR) == 15
        assert file.seek(-1, os.SEEK_END) == 999
        assert file.read() == DATA[999:1000]
        assert file.read() == b""
        assert file.seek(5000) == 5000
        assert file.read(1) == b""
        for bad in ((-1,), (-5001, os.SEEK_CUR), (-1001, os.SEEK_END)):
            with pytest.raises(ValueError, match="negative"):
                file.seek(*bad)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 7)
        assert file.tell() == 5000

    def test_readinto(self, file):
        buffer = bytearray(600)
        assert [file.readinto(buffer) for _ in range(3)] == [600, 400, 0]
        assert bytes(buffer[:400]) == DATA[600:1000]

    def test_read(self, file):
        assert file.read(0) == b""
        assert file.read(None) == DATA[:1000]
        file.seek(0)
        assert file.readall() == DATA[:1000]

    def test_closed(self, file):
        file.close()
        for call in (file.read, file.tell, file.readable, file.seekable, lambda: file.seek(0)):
            with pytest.raises(ValueError, match="closed"):
                call()

    def test_not_pickled(self, file):
        import pickle

        with pytest.raises(TypeError):
            pickle.dumps(file)


class TestReadInto:
    @pytest.fixture
    def model(self):
        with opened(write([DATA[: 3 * S]])) as model:
            yield model

    def test_multidimensional(self, model):
        buffer = memoryview(bytearray(6 * 1000)).cast("B", (60, 100))
        assert model.read_into("x", buffer) == 6000
        assert buffer.tobytes() == DATA[:6000]

    def test_read_only(self, model):
        with pytest.raises(TypeError, match="read-only"):
            model.read_into("x", bytes(10))

    def test_not_contiguous(self, model):
        with pytest.raises(TypeError):
            model.read_into("x", memoryview(bytearray(20))[::2])

    def test_negative_offset(self, model):
        with pytest.raises(ValueError, match="negative"):
            model.read_into("x", bytearray(10), -1)

    def test_progress_adds_up(self, model):
        done = []
        model.read_into("x", bytearray(3 * S), progress=done.append)
        assert sum(done) == 3 * S
        done.clear()
        model.verify(done.append)
        assert sum(done) == 3 * S


class TestWriter:
    def test_exception_drops_it(self):
        output = MemoryOutput()
        with pytest.raises(KeyError), SealedWriter(output, [KEY], "x", {}, S) as file:
            file.write(b"x" * 3 * S)
            raise KeyError
        assert output.state == "aborted"
        assert file.closed

    def test_forgetting_drops_it(self):
        output = MemoryOutput()
        file = SealedWriter(output, [KEY], "x", {}, S)
        file.write(b"x")
        del file
        assert output.state == "aborted"

    def test_abort(self):
        output = MemoryOutput()
        file = SealedWriter(output, [KEY], "x", {}, S)
        file.abort()
        file.abort()
        assert output.state == "aborted"
        with pytest.raises(ValueError, match="closed"):
            file.write(b"x")

    def test_close_twice(self):
        output = MemoryOutput()
        file = SealedWriter(output, [KEY], "x", {}, S)
        file.close()
        file.close()
        assert output.state == "committed"

    def test_failing_output_drops_it(self):
        class Full(MemoryOutput):
            def write(self, data):
                super().write(data)
                if len(self.data) > 100000:
                    raise OSError("full")

        output = Full()
        with pytest.raises(OSError, match="full"), SealedWriter(output, [KEY], "x", {}, S) as file:
            file.write(bytes(10 * S))
        assert output.state == "aborted"

    def test_it_is_a_file(self):
        with SealedWriter(MemoryOutput(), [KEY], "x", {}, S) as file:
            assert file.writable()
            assert not file.readable()
            assert not file.seekable()
            file.flush()
            print("text", file=io.TextIOWrapper(io.BufferedWriter(file)))

    def test_needs_a_recipient(self):
        with pytest.raises(UsageError):
            SealedWriter(MemoryOutput(), [], "x", {}, S)

    def test_keys_are_wiped(self):
        file = SealedWriter(MemoryOutput(), [KEY], "x", {}, S)
        file.close()
        assert bytes(file._keys.dek.buffer) == bytes(32)


def test_no_two_sealings_are_alike():
    one, other = write([b"x"]), write([b"x"])
    with opened(one) as a, opened(other) as b:
        assert a.bundle != b.bundle
    assert one[4096:] != other[4096:]


def test_seal_stream(tmp_path):
    class Trickle(io.RawIOBase):
        """A pipe: gives what it has, not what was asked for."""

        def __init__(self, data):
            self._data, self._random = data, random.Random(1)

        def readable(self):
            return True

        def readinto(self, buffer):
            part = self._data[: min(len(buffer), self._random.randrange(1, 50000))]
            self._data = self._data[len(part) :]
            buffer[: len(part)] = part
            return len(part)

    done = []
    job = SealJob([KEY], build_meta("n", None, None), segment=S, progress=done.append)
    bundle = seal_stream(Trickle(DATA), "größe", tmp_path / "x.sealed", job)
    with strongroom.open(tmp_path / "x.sealed", key=KEY) as model:
        assert model.bundle == bundle
        assert model.read("größe") == DATA
    assert sum(done) == len(DATA)


class TestMeta:
    def test_members(self):
        meta = build_meta("n", "1", {"framework": "torch", "nested": {"a": [1, 2.5, None]}})
        assert meta.pop("created").endswith("Z")
        assert meta == {
            "name": "n",
            "version": "1",
            "framework": "torch",
            "nested": {"a": [1, 2.5, None]},
        }

    def test_created_can_be_said(self):
        assert build_meta(None, None, {"created": "2020-01-01T00:00:00Z"})["created"].startswith("2020")

    def test_twice(self):
        with pytest.raises(UsageError, match="given twice"):
            build_meta("n", None, {"name": "m"})

    @pytest.mark.parametrize(
        "value",
        [
            object(),
            b"x",
            {1, 2},
            float("nan"),
            float("inf"),
            "\ud800",
            {1: "a", "1": "b"},
            pytest.param(10**5000, id="huge"),
        ],
    )
    def test_what_is_no_json(self, value):
        with pytest.raises(UsageError, match="JSON"):
            build_meta(None, None, {"x": value})

    def test_too_deep(self):
        deep = []
        for _ in range(40):
            deep = [deep]
        with pytest.raises(UsageError, match="JSON"):
            build_meta(None, None, {"x": deep})
