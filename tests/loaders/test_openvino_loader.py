import gc
import io
import os
import subprocess
import sys

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import strongroom
from strongroom.errors import FormatError, NoMatchingRecipient, NotFound, PayloadTampered, UsageError
from strongroom.loaders import openvino as loader
from strongroom.loaders.openvino import openvino
from strongroom.model import memory_directory

SIZE = 128
X = numpy.linspace(0, 1, SIZE, dtype="f4").reshape(1, SIZE)
CORE = openvino.Core()


def save_ir(folder, name="m"):
    from openvino import opset13 as ops

    rng = numpy.random.default_rng(4)
    x = node = ops.parameter([1, SIZE], numpy.float32, name="x")
    for _ in range(4):
        weights = ops.constant(rng.standard_normal((SIZE, SIZE), dtype="f4") / 8)
        node = ops.tanh(ops.matmul(node, weights, False, False))
    # Gathered rows are used where they lie, not repacked as the others.
    table = ops.constant(rng.random((1000, SIZE), dtype="f4"))
    row = ops.gather(table, ops.constant(numpy.array([998])), ops.constant(numpy.array(0)))
    model = openvino.Model([ops.add(node, row)], [x], "net")
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def save_onnx(folder, external):
    rng = numpy.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.random((SIZE, SIZE), dtype="f4") / SIZE, f"w{i}") for i in range(3)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("x0", "x3")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    place = folder / "m.onnx"
    onnx.save_model(model, place, save_as_external_data=external, location="m.data", size_threshold=0)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def ir(folder, seal):
    save_ir(folder)
    return seal(folder)


def run(model):
    compiled = model if isinstance(model, openvino.CompiledModel) else CORE.compile_model(model, "CPU")
    return compiled(X)[0]


@pytest.fixture(autouse=True)
def nothing_stays_behind(monkeypatch):
    """Directories in memory that this process makes are gone after the test."""
    made = []
    real = memory_directory.tempfile.mkdtemp

    def mkdtemp(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(memory_directory.tempfile, "mkdtemp", mkdtemp)
    yield made
    assert not any(map(os.path.exists, made))


def exported(compiled):
    blob = compiled.export_model()
    return blob if isinstance(blob, bytes) else blob.getvalue()  # bytes up to 2025


def churn():
    """Use the memory that was freed, so that whoever still reads it gets something else."""
    gc.collect()
    for size in (10, 14, 16, 18, 20, 22):
        for _ in range(8):
            numpy.full(1 << size, 255, dtype="u1")


def test_ir(ir, folder, key):
    mine = loader.read_model(ir, key=key)
    theirs = CORE.read_model(folder / "m.xml")
    assert type(mine) is openvino.Model
    assert mine.friendly_name == theirs.friendly_name
    assert numpy.array_equal(run(mine), run(theirs))


def test_the_weights_outlive_everything(ir, folder, key):
    expected = run(CORE.read_model(folder / "m.xml"))
    model = loader.read_model(ir, key=key)
    churn()
    assert numpy.array_equal(run(model), expected)
    compiled = CORE.compile_model(model, "CPU")
    del model
    churn()
    assert numpy.array_equal(run(compiled), expected)
    request = compiled.create_infer_request()
    del compiled
    churn()
    assert numpy.array_equal(request.infer({0: X})[0], expected)


def test_weights_are_not_copied(folder, seal, key, monkeypatch):
    from openvino import opset13 as ops

    table = ops.constant(numpy.random.default_rng(1).random((64, 1024), dtype="f4"))
    x = ops.parameter([1], numpy.int64)
    model = openvino.Model([ops.gather(table, x, ops.constant(numpy.array(0)))], [x])
    openvino.save_model(model, folder / "m.xml", compress_to_fp16=False)
    tensors = []
    real = loader._tensor

    def tensor(*arguments):
        tensors.append(real(*arguments))
        return tensors[-1]

    monkeypatch.setattr(loader, "_tensor", tensor)
    mine = loader.read_model(seal(folder), key=key)
    address = tensors[0].data.ctypes.data
    constants = [node for node in mine.get_ops() if node.get_type_name() == "Constant"]
    largest = max(constants, key=lambda node: node.get_byte_size())
    assert address <= largest.data.ctypes.data < address + tensors[0].byte_size


def test_compile(ir, folder, key):
    expected = run(CORE.read_model(folder / "m.xml"))
    compiled = loader.compile_model(ir, key=key)
    assert type(compiled) is openvino.CompiledModel
    assert numpy.array_equal(run(compiled), expected)
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": 1}
    with strongroom.open(ir, key=key) as model:
        compiled = loader.compile_model(model, None, config, path="m.xml", core=core)
    assert compiled.get_property("EXECUTION_DEVICES") == ["CPU"]
    churn()
    theirs = CORE.compile_model(folder / "m.xml", "AUTO", config)  # one thread sums in another order
    assert numpy.array_equal(run(compiled), run(theirs))


def test_names_of_the_weights(folder, seal, key, tmp_path):
    save_ir(folder)
    expected = run(CORE.read_model(folder / "m.xml"))
    (folder / "m.bin").rename(folder / "other.weights")
    sealed = seal(folder)
    with pytest.raises(NotFound, match=r"has no m\.bin, the weights of m\.xml"):
        loader.read_model(sealed, key=key)
    assert numpy.array_equal(run(loader.read_model(sealed, "other.weights", key=key)), expected)
    compiled = loader.compile_model(sealed, weights="other.weights", key=key)
    assert numpy.array_equal(run(compiled), expected)
    with pytest.raises(NotFound):
        loader.read_model(sealed, "none.bin", key=key)


def test_two_sealed_files(folder, seal, key):
    save_ir(folder)
    expected = run(CORE.read_model(folder / "m.xml"))
    xml, weights = seal(folder / "m.xml"), seal(folder / "m.bin")
    assert numpy.array_equal(run(loader.read_model(xml, weights, key=key)), expected)
    with strongroom.open(weights, key=key) as opened:
        assert numpy.array_equal(run(loader.read_model(xml, opened, key=key)), expected)
    with pytest.raises(NotFound, match="weights"):
        loader.read_model(xml, key=key)


def test_a_model_without_weights(folder, seal, key):
    from openvino import opset13 as ops

    x = ops.parameter([1, SIZE], numpy.float32)
    openvino.save_model(openvino.Model([ops.relu(x)], [x]), folder / "m.xml")
    assert (folder / "m.bin").stat().st_size == 0
    assert numpy.array_equal(run(loader.read_model(seal(folder), key=key)), X)
    assert numpy.array_equal(run(loader.read_model(seal(folder / "m.xml"), key=key)), X)


def test_several_models(folder, seal, key):
    (folder / "text").mkdir()
    save_ir(folder)
    save_ir(folder / "text", "encoder")
    sealed = seal(folder)
    with pytest.raises(UsageError, match="2 OpenVINO files"):
        loader.read_model(sealed, key=key)
    expected = run(CORE.read_model(folder / "m.xml"))
    assert numpy.array_equal(run(loader.read_model(sealed, key=key, path="text/encoder.xml")), expected)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_onnx(folder, seal, key, external, below):
    inner = folder / "1" if below else folder
    inner.mkdir(exist_ok=True)
    save_onnx(inner, external)
    if below:
        (folder / "m.data").write_bytes(b"of another folder")
        (inner / "config.json").write_text("{}")
    mine = loader.read_model(seal(folder), key=key)
    churn()
    assert numpy.array_equal(run(mine), run(CORE.read_model(inner / "m.onnx")))


def test_a_single_onnx_file(folder, seal, key):
    save_onnx(folder, external=False)
    sealed = seal(folder / "m.onnx")
    expected = run(CORE.read_model(folder / "m.onnx"))
    assert numpy.array_equal(run(loader.compile_model(sealed, key=key)), expected)
    with pytest.raises(UsageError, match="takes no weights"):
        loader.read_model(sealed, "x", key=key)


def test_onnx_takes_what_its_graph_names(folder, seal, key, monkeypatch):
    save_onnx(folder, external=True)
    (folder / "large.bin").write_bytes(bytes(100))
    placed = []
    real = loader.place_files

    def place_files(model, names, directory):
        placed.extend(names)
        real(model, names, directory)

    monkeypatch.setattr(loader, "place_files", place_files)
    loader.read_model(seal(folder), key=key)
    assert placed == ["m.onnx", "m.data"]


def test_import(ir, folder, tmp_path, key, seal):
    compiled = CORE.compile_model(folder / "m.xml", "CPU")
    (tmp_path / "m.blob").write_bytes(exported(compiled))
    mine = loader.import_model(seal(tmp_path / "m.blob"), "CPU", key=key)
    churn()
    assert type(mine) is openvino.CompiledModel
    assert numpy.array_equal(run(mine), run(compiled))


def test_import_before_it_took_tensors(ir, folder, tmp_path, key, seal):
    compiled = CORE.compile_model(folder / "m.xml", "CPU")
    (tmp_path / "m.blob").write_bytes(exported(compiled))

    class Older:
        def import_model(self, stream, *arguments):
            if not isinstance(stream, io.BytesIO):
                raise TypeError("must be an io.BytesIO object or bytes")
            return CORE.import_model(stream, *arguments)

    mine = loader.import_model(seal(tmp_path / "m.blob"), "CPU", key=key, core=Older())
    assert numpy.array_equal(run(mine), run(compiled))


CACHES = {
    "config": lambda place: {"CACHE_DIR": place},
    "property": lambda place: {openvino.properties.cache_dir: place},
    "device": lambda place: {"DEVICE_PROPERTIES": {"CPU": {"CACHE_DIR": place}}},
    "text": lambda place: {"DEVICE_PROPERTIES": f"{{CPU:{{CACHE_DIR:{place}}}}}"},
    "callbacks": lambda place: {"CACHE_DIR": place, "CACHE_ENCRYPTION_CALLBACKS": [bytes, bytes]},
}


@pytest.mark.parametrize("way", CACHES)
def test_a_cache_on_disk_is_refused(way, ir, tmp_path, key):
    config = CACHES[way](str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="in clear") as error:
        loader.compile_model(ir, "CPU", config, key=key)
    assert "import_model" in error.value.hint
    with pytest.raises(UsageError, match="in clear"):
        loader.import_model(ir, "CPU", config, key=key)
    assert not (tmp_path / "cache").exists()


def test_encryption_callbacks_leave_the_weights_in_clear(folder, tmp_path):
    """The reason to refuse them: if this fails, OpenVINO has become better, and the refusal can go."""
    save_ir(folder)
    config = {
        "CACHE_DIR": str(tmp_path / "cache"),
        "CACHE_ENCRYPTION_CALLBACKS": [_reversed, _reversed],
    }
    CORE.compile_model(CORE.read_model(folder / "m.xml"), "CPU", config)
    (cached,) = (tmp_path / "cache").iterdir()
    assert (folder / "m.bin").read_bytes()[1000:3000] in cached.read_bytes()


def _reversed(text):
    return text[::-1]


@pytest.mark.parametrize("device", [None, "CPU", "AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"])
@pytest.mark.parametrize("level", ["core", "device"])
def test_a_cache_of_the_core_is_not_used(device, level, ir, tmp_path, key):
    core = openvino.Core()
    config = {"CACHE_DIR": str(tmp_path / "cache")}
    core.set_property(config) if level == "core" else core.set_property("CPU", config)
    loader.compile_model(ir, device, key=key, core=core)
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written == []
    assert core.get_property("CPU", "CACHE_DIR") == str(tmp_path / "cache")
    # And without this loader it would be.
    core.compile_model(core.read_model(tmp_path / "model" / "m.xml"), "CPU")
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_the_cache_of_the_npu_driver(ir, key):
    for device in ("NPU", "AUTO:NPU,CPU"):
        with pytest.raises(UsageError, match="driver of the NPU") as error:
            loader.compile_model(ir, device, key=key)
        assert "NPU_BYPASS_UMD_CACHING" in error.value.hint
    with pytest.raises(RuntimeError):  # there is no such device here
        loader.compile_model(ir, "NPU", {"NPU_BYPASS_UMD_CACHING": True}, key=key)


def test_what_openvino_refuses(folder, seal, key, tmp_path):
    save_ir(folder)
    (folder / "m.bin").write_bytes(bytes(100))
    with pytest.raises(RuntimeError, match="Incorrect weights"):
        loader.read_model(seal(folder), key=key)
    (tmp_path / "m.blob").write_bytes(b"no blob " * 20)
    with pytest.raises(RuntimeError):
        loader.import_model(seal(tmp_path / "m.blob"), "CPU", key=key)
    (tmp_path / "m.xml").write_bytes(b"<net secret")
    with pytest.raises(RuntimeError) as error:
        loader.read_model(seal(tmp_path / "m.xml"), key=key)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"secret: words", b"<?xml version='1.0'?><secret/>"])
def test_not_an_ir(content, seal, key, tmp_path, capfd):
    (tmp_path / "m.xml").write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.xml is not an OpenVINO IR"):
        loader.read_model(seal(tmp_path / "m.xml"), key=key)
    assert capfd.readouterr() == ("", "")


def test_tampered_and_wrong_key(ir, key):
    with pytest.raises(NoMatchingRecipient):
        loader.read_model(ir, key=bytes(32))
    part = ir / "m.bin.sealed"
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)
    with pytest.raises(PayloadTampered):
        loader.read_model(ir, key=key)


REPORTS = """
import sys
{before}
import strongroom.loaders.openvino
print(sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__, "openvino_telemetry" in sys.modules)
"""


def test_nothing_is_reported(tmp_path):
    command = [sys.executable, "-c", REPORTS.format(before="")]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert list(tmp_path.iterdir()) == []


def test_whoever_has_imported_the_reports_keeps_them(tmp_path):
    command = [sys.executable, "-c", REPORTS.format(before="import openvino_telemetry")]
    environment = os.environ | {"HOME": str(tmp_path), "CI": "true"}  # in CI nothing is sent
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["openvino_telemetry", "True"]


def test_weights_are_kept_out_of_core_dumps(tmp_path, seal, key):
    (tmp_path / "m.bin").write_bytes(bytes(8 << 20))
    with strongroom.open(seal(tmp_path / "m.bin"), key=key) as model:
        tensor = loader._tensor(model, "m.bin")
    middle = tensor.data.__array_interface__["data"][0] + (4 << 20)
    flags, inside = [], False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            head, _, rest = line.partition(" ")
            if "-" in head:
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= middle < end
            elif inside and head == "VmFlags:":
                flags = rest.split()
    assert "dd" in flags
