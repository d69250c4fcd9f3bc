"""What is sent, and what is counted."""

import json

import pytest

pytest.importorskip("numpy", reason="a load test needs the extra loadtest")
pytest.importorskip("ml_dtypes", reason="a load test needs the extra loadtest")
pytest.importorskip("orjson", reason="a load test needs the extra loadtest")
pytest.importorskip("google.protobuf", reason="a load test needs the extra loadtest")

import numpy as np

from strongroom.errors import NotFound, UsageError
from strongroom.loadtest.inputs import from_file, from_image, random_inputs
from strongroom.loadtest.protocols import protocol
from strongroom.loadtest.results import Outcome, Recorder
from strongroom.serving.tensors import DTYPES, TensorSpec


def one(shape, dtype="float32", name="x"):
    return [TensorSpec(name, dtype, shape)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_inputs_of_every_dtype(dtype):
    found = random_inputs(one((-1, 3), dtype), 2, {}, seed=0)
    assert found[0]["x"].shape == (2, 3)
    assert found[0]["x"].dtype == DTYPES[dtype]
    again = random_inputs(one((-1, 3), dtype), 2, {}, seed=0)
    assert all((a["x"] == b["x"]).all() for a, b in zip(found, again, strict=True))
    for api, grpc in (("v2", True), ("tfs", True), ("v2", False), ("tfs", False)):
        if dtype.startswith("complex") and (api == "v2" or not grpc):
            continue
        made = protocol(api, grpc=grpc, model="m", version=3, signature="s", binary=True)
        assert made.infer(found[0]).body


def test_random_inputs_of_many_shapes():
    assert random_inputs(one(()), 1, {}, seed=0)[0]["x"].shape == ()
    assert random_inputs(one((4, 2)), 4, {}, seed=0)[0]["x"].shape == (4, 2)
    assert random_inputs(one(None), 1, {"x": (1, 5)}, seed=0)[0]["x"].shape == (1, 5)
    # Large ones are few.
    assert len(random_inputs(one((1, 1 << 23)), 1, {}, seed=0)) == 2


@pytest.mark.parametrize(
    ("shape", "batch", "shapes"),
    [
        ((-1, -1), 1, {}),
        (None, 1, {}),
        ((1, 4), 2, {}),
        ((), 2, {}),
        ((-1, 4), 1, {"other": (1,)}),
        ((-1, 1 << 30), 1, {}),
    ],
    ids=["open", "no-rank", "fixed", "scalar", "another-name", "too-large"],
)
def test_random_inputs_that_cannot_be(shape, batch, shapes):
    with pytest.raises(UsageError):
        random_inputs(one(shape), batch, shapes, seed=0)


def test_arrays_from_files(tmp_path):
    value = np.arange(8, dtype=np.float64).reshape(2, 4)
    np.save(tmp_path / "a.npy", value)
    np.savez(tmp_path / "a.npz", x=value)
    (tmp_path / "a.json").write_text(json.dumps(value.tolist()))
    (tmp_path / "b.json").write_text(json.dumps({"x": value.tolist()}))
    (tmp_path / "c.json").write_text(json.dumps({"inputs": {"x": value.tolist()}}))
    for name in ("a.npy", "a.npz", "a.json", "b.json", "c.json"):
        found = from_file(str(tmp_path / name), one((-1, 4)), 2)["x"]
        assert found.dtype == np.float32
        assert (found == value).all()


def test_an_example_is_repeated(tmp_path):
    for name, shape in (("a", (4,)), ("b", (1, 4))):
        np.save(tmp_path / f"{name}.npy", np.arange(4.0).reshape(shape))
        found = from_file(str(tmp_path / f"{name}.npy"), one((-1, 4)), 3)["x"]
        assert found.shape == (3, 4)
        assert (found == [0, 1, 2, 3]).all()


def test_text_from_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"x": ["a", "ü"]}')
    assert from_file(str(tmp_path / "a.json"), one((-1,), "bytes"), 2)["x"].tolist() == [
        b"a",
        "ü".encode(),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"1"),
        ("a.npy", b"junk"),
        ("a.npz", b"junk"),
        ("a.json", b"{"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"[[1, 2], [3]]"),
        ("a.json", b'{"y": [1]}'),
        ("a.json", b'{"x": [[1, 2, 3, 4]], "y": 1}'),
        ("a.json", b"[[1, 2, 3]]"),
        ("a.json", b'[["a", "b", "c", "d"]]'),
    ],
    ids=range(10),
)
def test_files_that_do_not_fit(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError):
        from_file(str(tmp_path / name), one((-1, 4)), 1)


def test_arrays_with_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(UsageError):
        from_file(str(tmp_path / "a.npy"), one((-1, 4)), 1)
    with pytest.raises(NotFound):
        from_file(str(tmp_path / "b.npy"), one((-1, 4)), 1)


@pytest.fixture
def image(tmp_path):
    """20 × 10 pixels, the left half red."""
    Image = pytest.importorskip("PIL.Image", reason="an image needs Pillow")

    made = Image.new("RGB", (20, 10))
    made.paste((255, 0, 0), (0, 0, 10, 10))
    made.save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((-1, 8, 16, 3), (2, 8, 16, 3)),
        ((-1, 3, 8, 16), (2, 3, 8, 16)),
        ((-1, -1, -1, 3), (2, 10, 20, 3)),
        ((-1, 1, 8, 8), (2, 1, 8, 8)),
        ((2, 8, 8, 3), (2, 8, 8, 3)),
    ],
)
def test_images(image, shape, wanted):
    found = from_image(image, one(shape), 2)["x"]
    assert found.shape == wanted
    assert found.dtype == np.float32
    assert (found[0] == found[1]).all()
    if 3 in wanted:
        red = found[0][..., 0] if wanted[3] == 3 else found[0][0]
        assert red[0, 0] == 255 and red[0, -1] == 0


def test_an_image_as_a_string(image):
    found = from_image(image, one((-1,), "bytes"), 2)["x"]
    assert found.shape == (2,)
    assert found[0].startswith(b"\x89PNG")


def test_images_that_do_not_fit(image, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"junk")
    for path, specs, batch in (
        (image, one((-1, 4)), 1),
        (image, one((1, 8, 8, 3)), 2),
        (str(tmp_path / "junk.png"), one((-1, 8, 8, 3)), 1),
        (image, [*one((-1, 8, 8, 3)), *one((-1,), name="y")], 1),
    ):
        with pytest.raises(UsageError):
            from_image(path, specs, batch)


def filled(values, limit=100):
    recorder = Recorder(limit)
    for index, value in enumerate(values):
        recorder.add(0, index, float(index), value)
    return recorder


def test_statistics_are_those_of_the_values():
    values = np.arange(1, 1001) / 1e3
    np.random.default_rng(0).shuffle(values)
    found = Outcome(filled(values, 10_000), 1, 2, 0.0, 10.0, 1.0)
    said = found.statistics()
    assert said == pytest.approx(
        {"mean": 500.5, "min": 1, "p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    )
    assert found.tps() == pytest.approx(1000 * 2 / 10)


def test_of_a_long_run_the_last_ones_are_kept():
    recorder = filled([float(index) for index in range(25)], 10)
    assert recorder.answered == 25
    assert [index for _, index, _ in recorder.queries()] == list(range(15, 25))
    assert [took for _, _, took in recorder.queries()] == [float(index) for index in range(15, 25)]


def test_nothing_answered():
    nothing = Outcome(Recorder(), 1, 1, 0.0, 0.0, 0.0)
    assert nothing.statistics() == {}
    assert nothing.tps() == 0
