import gc
import os
import subprocess
import sys

import numpy
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import strongroom
from strongroom.errors import NotFound, PayloadTampered, UsageError
from strongroom.loaders import onnx as loader

CPU = ["CPUExecutionProvider"]
SIZE = 256


def build(layers=3):
    rng = numpy.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.random((SIZE, SIZE), dtype="f4") / SIZE, f"w{i}")
        for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(layers)]
    shape = [1, SIZE]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


X = {"x0": numpy.linspace(0, 1, SIZE, dtype="f4").reshape(1, SIZE)}


def run(session):
    return session.run(None, X)[0]


@pytest.fixture
def expected(tmp_path):
    onnx.save_model(build(), tmp_path / "expected.onnx")
    return run(onnxruntime.InferenceSession(tmp_path / "expected.onnx", providers=CPU))


@pytest.fixture
def embedded(tmp_path, seal):
    onnx.save_model(build(), tmp_path / "m.onnx")
    return seal(tmp_path / "m.onnx")


@pytest.fixture
def external(tmp_path, seal):
    """A folder with the model below it, one data file per tensor, one of them in a folder."""
    folder = tmp_path / "dir" / "1"
    (folder / "weights").mkdir(parents=True)
    model = build()
    locations = ["model.data", "w1.bin", "weights/w2"]
    for tensor, location in zip(model.graph.initializer, locations, strict=True):
        (folder / location).write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, location, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "dir" / "model.data").write_bytes(b"of another folder")
    (folder / "unused.bin").write_bytes(b"not named in the graph")
    (tmp_path / "dir" / "config.pbtxt").write_text("name: 'm'")
    return seal(tmp_path / "dir")


def test_embedded_weights(embedded, key, expected):
    session = loader.session(embedded, providers=CPU, key=key)
    assert type(session) is onnxruntime.InferenceSession
    assert numpy.array_equal(run(session), expected)
    assert session.get_providers() == CPU


def test_external_data(external, key, expected):
    session = loader.session(external, providers=CPU, key=key)
    gc.collect()
    assert numpy.array_equal(run(session), expected)


@pytest.fixture
def without_memory_api(monkeypatch):
    """As if onnxruntime could not take external data from memory, as older releases."""
    monkeypatch.setattr(loader, "_IN_MEMORY", "no_such_method")


@pytest.fixture
def with_a_large_tensor(monkeypatch):
    """As if it had refused a tensor of 2 GiB: it reads the size from the graph, not from the file."""
    real = onnxruntime.InferenceSession

    def session(place, *arguments, **kwargs):
        if place.startswith("/proc/"):
            raise loader._Fail("exceeds the 2147483648 byte limit for embedded initializer data")
        return real(place, *arguments, **kwargs)

    monkeypatch.setattr(loader, "_MAX_TENSOR", SIZE * SIZE * 4)
    monkeypatch.setattr(loader.onnxruntime, "InferenceSession", session)


def in_shm():
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"strongroom-{os.getpid()}-")}


@pytest.mark.parametrize("case", ["without_memory_api", "with_a_large_tensor"])
def test_external_data_by_name(request, external, key, expected, case):
    request.getfixturevalue(case)
    before = in_shm()
    assert numpy.array_equal(run(loader.session(external, providers=CPU, key=key)), expected)
    assert in_shm() <= before


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_options_of_the_caller_are_used_and_not_changed(request, kind, key, expected, tmp_path):
    sealed = request.getfixturevalue(kind)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    for _ in range(2):  # the same options, twice
        session = loader.session(sealed, options, CPU, key=key)
        assert numpy.allclose(run(session), expected)
        used = session.get_session_options()
        assert used.intra_op_num_threads == 1
        assert used.get_session_config_entry("session.disable_prepacking") == "1"
    # They hold nothing of the sealed model: with them a model without its data does not load.
    if kind == "external":
        graph = (tmp_path / "dir/1/model.onnx").read_bytes()
        with pytest.raises(Exception, match="External data path"):
            onnxruntime.InferenceSession(graph, options, providers=CPU)


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_options_that_are_made_for_the_session(request, kind, key, expected, monkeypatch):
    sealed = request.getfixturevalue(kind)
    monkeypatch.setattr(loader, "memory_directory", None)  # they may be changed: it needs none

    def options():
        made = onnxruntime.SessionOptions()
        made.intra_op_num_threads = 1
        return made

    session = loader.session(sealed, options, CPU, key=key)
    assert numpy.array_equal(run(session), expected)
    assert session.get_session_options().intra_op_num_threads == 1


def test_nothing_is_read_that_the_graph_does_not_name(external, key, monkeypatch):
    opened = []
    real = strongroom.SealedModel.content

    def content(self, path=None):
        opened.append(path)
        return real(self, path)

    monkeypatch.setattr(strongroom.SealedModel, "content", content)
    loader.session(external, providers=CPU, key=key)
    assert set(opened) == {"1/model.onnx", "1/model.data", "1/w1.bin", "1/weights/w2"}


def test_missing_external_data(tmp_path, seal, key, monkeypatch):
    model = build()
    folder = tmp_path / "dir"
    folder.mkdir()
    onnx.save_model(
        model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    (folder / "m.data").rename(folder / "other")
    sealed = seal(folder)
    # Not even if it lies in clear where ONNX Runtime would look for it.
    (folder / "other").rename(folder / "m.data")
    monkeypatch.chdir(folder)
    with pytest.raises(NotFound, match="external data that is not in the sealed model"):
        loader.session(sealed, providers=CPU, key=key)


def test_one_of_two_data_files_is_missing(external, tmp_path, key, monkeypatch):
    (tmp_path / "dir/1/w1.bin").unlink()
    strongroom.seal(tmp_path / "dir", external, key=key, overwrite=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w1.bin").write_bytes(bytes(SIZE * SIZE * 4))
    with pytest.raises(loader._Fail, match="w1"):
        loader.session(external, providers=CPU, key=key)


def test_ort_format(tmp_path, seal, key, expected):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnx.save_model(build(), tmp_path / "m.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options, CPU)
    sealed = seal(tmp_path / "m.ort")
    for given in (None, onnxruntime.SessionOptions()):
        session = loader.session(sealed, given, CPU, key=key)
        gc.collect()
        assert numpy.allclose(run(session), expected)


def test_providers_are_fixed(embedded, key):
    session = loader.session(embedded, providers=CPU, key=key)
    with pytest.raises(UsageError, match="cannot change its providers"):
        session.set_providers(CPU)


def test_a_provider_that_fails_is_not_replaced(embedded, key):
    """ONNX Runtime would go on with others and read the model again; its own error is more than ours."""
    session = loader.session(embedded, providers=CPU, key=key)
    failure = onnxruntime.capi.onnxruntime_pybind11_state.EPFail("the provider fails")

    class Failing:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def run(self, *arguments):
            raise failure

    session._sess = Failing(session._sess)
    with pytest.raises(type(failure), match="the provider fails"):
        run(session)


def test_other_arguments_reach_the_session(embedded, key):
    session = loader.session(embedded, providers=CPU, provider_options=[{}], key=key, enable_fallback=0)
    assert run(session).shape == (1, SIZE)
    with (
        pytest.raises(RuntimeError, match="NoSuchProvider"),
        pytest.warns(UserWarning, match="NoSuchProvider"),
    ):
        loader.session(embedded, providers=["NoSuchProvider"], key=key, enable_fallback=0)


def test_not_a_model(tmp_path, seal, key):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        loader.session(seal(tmp_path / "m.onnx"), providers=CPU, key=key)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        loader.session(seal(tmp_path / "empty.onnx"), providers=CPU, key=key)


def test_tampered_external_data(external, key):
    part = external / "1/w1.bin.sealed"
    changed = bytearray(part.read_bytes())
    changed[-1] ^= 1
    part.write_bytes(changed)
    with pytest.raises(PayloadTampered, match=r"w1\.bin"):
        loader.session(external, providers=CPU, key=key)


def test_which_model(tmp_path, seal, key, expected):
    folder = tmp_path / "dir"
    folder.mkdir()
    for name in ("a", "b"):
        onnx.save_model(build(), folder / f"{name}.onnx")
    (folder / "readme").write_text("x")
    sealed = seal(folder)
    with pytest.raises(UsageError, match="2 ONNX files"):
        loader.session(sealed, key=key)
    with strongroom.open(sealed, key=key) as model:
        session = loader.session(model, path="b.onnx", providers=CPU)
        assert numpy.array_equal(run(session), expected)
        with pytest.raises(NotFound):
            loader.session(model, path="c.onnx")


@pytest.mark.parametrize("choice", [None, "0"])
def test_onnxruntime_reports_nothing(tmp_path, choice):
    """It stores reports on a disk and sends them, unless the caller wants that."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if choice:
        environment["ORT_DISABLE_TELEMETRY"] = choice
    script = (
        "import os\nfrom strongroom.loaders import onnx\n"
        "try:\n    onnx.onnxruntime.InferenceSession(b'\\x08')\nexcept Exception:\n    pass\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (choice or "1")
    if choice is None:
        assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.skipif(
    psutil.virtual_memory().available < 6 << 30, reason="needs 5 GB of memory for a model of 2.1 GB"
)
def test_model_over_two_gigabytes(tmp_path, key):
    rows, columns = 270_000, 1000
    graph = helper.make_graph(
        [helper.make_node("Gather", [name, "i"], [f"y{name}"]) for name in "ab"],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, [2, columns]) for name in "ab"],
        [TensorProto(name=n, data_type=TensorProto.FLOAT, dims=[rows, columns]) for n in "ab"],
    )
    for i, weight in enumerate(graph.initializer):
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="w.data")
        weight.external_data.add(key="offset", value=str(i * rows * columns * 4))
        weight.external_data.add(key="length", value=str(rows * columns * 4))
    folder = tmp_path / "dir"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    first, last = (numpy.full(columns, value, "f4") for value in (1.5, 2.5))
    with open(folder / "w.data", "wb") as file:  # all zero but the first and the last row
        file.write(first.tobytes())
        file.seek((2 * rows - 1) * columns * 4)
        file.write(last.tobytes())
    assert (folder / "w.data").stat().st_size > 2 << 30
    sealed = tmp_path / "big.sealed"
    strongroom.seal(folder, sealed, key=key)
    try:
        session = loader.session(sealed, providers=CPU, key=key)
        found = session.run(None, {"i": numpy.array([0, rows - 1])})
        assert numpy.array_equal(found, [[first, 0 * first], [0 * last, last]])
    finally:
        (sealed / "w.data.sealed").unlink()
