"""OpenVINO behind the server: IR and ONNX, names, dtypes, bounds, and what it would write to a disk."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from backends import (
    LARGE,
    Loader,
    at_once,
    batched_together,
    frees_what_it_held,
    read_only,
    run,
)
from onnx import TensorProto, helper
from onnx_graphs import FLOAT, doubling, graph, identity, tensor

from strongroom.errors import FormatError, NotFound, UsageError
from strongroom.loaders import openvino as loader
from strongroom.serving.backends.openvino_requests import Requests
from strongroom.serving.call import Call
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import TensorSpec

openvino = loader.openvino
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it a CPU that computes in bfloat16 does."""


@pytest.fixture
def load(tmp_path):
    made = Loader(tmp_path)
    yield made
    made.close()


@pytest.fixture
def from_onnx(load, tmp_path):
    """ONNX models are for ONNX Runtime, unless it is said otherwise."""

    def do(content, **options):
        (tmp_path / "m.onnx").write_bytes(content)
        return load(tmp_path / "m.onnx", "openvino", **options)

    return do


def layers(weights, rows=-1, names=("x", "y")):
    """y = max(0, x W)."""
    from openvino import opset13 as ops

    rows = rows if isinstance(rows, openvino.Dimension) else openvino.Dimension(rows)
    x = ops.parameter(openvino.PartialShape([rows, weights.shape[0]]), np.float32)
    y = ops.relu(ops.matmul(x, ops.constant(weights), False, False))
    if names:
        x.output(0).get_tensor().set_names({names[0]})
        y.output(0).get_tensor().set_names({names[1]})
    return openvino.Model([y], [x], "layers")


WEIGHTS = np.random.default_rng(0).standard_normal((16, 4), np.float32)


def save(folder, model):
    folder.mkdir(exist_ok=True)
    openvino.save_model(model, folder / "m.xml", compress_to_fp16=False)
    return folder


def answer(x):
    return np.maximum(x @ WEIGHTS, 0)


def test_an_ir_answers_as_the_plain_model(load, tmp_path):
    folder = save(tmp_path / "ir", layers(WEIGHTS))
    model = load(folder, extra=EXACT)
    assert model.platform == "openvino"
    signature = model.signatures["serving_default"]
    assert dict(signature.inputs) == {"x": TensorSpec("x", "float32", (-1, 16))}
    assert dict(signature.outputs) == {"y": TensorSpec("y", "float32", (-1, 4))}
    assert signature.batched
    plain = openvino.Core().compile_model(folder / "m.xml", "CPU", EXACT)
    for rows in (1, 5, 2, 0, 64):
        x = np.random.default_rng(rows).random((rows, 16), np.float32)
        for value in (x, read_only(x), np.asfortranarray(x), x[::-1]):
            found = run(model, x=value)["y"]
            assert np.array_equal(found, plain(np.ascontiguousarray(value))[0])
            np.testing.assert_allclose(found, answer(value), rtol=1e-4, atol=1e-5)


NUMBERS = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_dtype_comes_back_as_it_went(from_onnx, name):
    model = from_onnx(identity(NUMBERS[name]), extra=EXACT)
    signature = model.signatures["serving_default"]
    assert (signature.inputs["x"].dtype, signature.inputs["x"].shape) == (name, (-1, 2))
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    for x in (np.array([[0, 1], [2, 100]]).astype(dtype), np.zeros((0, 2), dtype)):
        y = run(model, x=read_only(x))["y"]
        assert y.dtype == x.dtype
        assert np.array_equal(y, x)


def test_scalars(from_onnx):
    model = from_onnx(identity(FLOAT, ()))
    assert not model.signatures["serving_default"].batched
    assert run(model, x=np.array(1.5, np.float32))["y"] == 1.5


def test_text_is_refused_with_a_reason(from_onnx):
    with pytest.raises(FormatError, match="input x has the type string") as caught:
        from_onnx(identity(TensorProto.STRING))
    assert "backend: onnx" in caught.value.hint


def test_answers_are_not_written_by_the_next_run(from_onnx):
    model = from_onnx(doubling())
    first = run(model, x=np.ones((2, 16), np.float32))["y"]
    second = run(model, x=np.zeros((2, 16), np.float32))["y"]
    assert (first.min(), first.max(), second.max()) == (2, 2, 0)


def test_names(load, tmp_path):
    folder = tmp_path / "ir"
    made = layers(WEIGHTS)
    made.inputs[0].get_tensor().set_names({"b", "a"})
    save(folder, made)
    assert list(load(folder).signatures["serving_default"].inputs) == ["a"]
    servable = load.servable(folder, inputs=(TensorSpec("b", "float32", (-1, 16)),))
    x = np.ones((2, 16), np.float32)
    assert servable.infer(Call("m", {"b": x})).outputs["y"].shape == (2, 4)
    with pytest.raises(UsageError, match="inputs of the model are a, and not c"):
        load.servable(folder, inputs=(TensorSpec("c", "float32", (-1, 16)),))
    # Without names they have those that OpenVINO's own servers would ask for.
    save(folder, layers(WEIGHTS, names=None))
    model = load(folder)
    plain = openvino.Core().compile_model(folder / "m.xml", "CPU")
    (name,) = model.signatures["serving_default"].inputs
    assert name == plain.inputs[0].get_any_name()
    (found,) = run(model, **{name: x}).values()
    assert found.shape == (2, 4)


def test_dimensions_have_bounds(load, tmp_path):
    model = load(save(tmp_path / "ir", layers(WEIGHTS, openvino.Dimension(2, 8))))
    assert model.signatures["serving_default"].inputs["x"].shape == (-1, 16)
    assert run(model, x=np.ones((8, 16), np.float32))["y"].shape == (8, 4)
    for rows, says in ((1, "at least 2"), (9, "at most 8")):
        says = f"has {rows} in dimension 0, and the model takes {says}"
        refused(model, says, x=np.ones((rows, 16), np.float32))
    fixed = load(save(tmp_path / "ir", layers(WEIGHTS, 3)))
    assert not fixed.signatures["serving_default"].batched
    with pytest.raises(RequestError, match=r"wants \[3, 16\]"):
        run(fixed, x=np.ones((2, 16), np.float32))


def matrices(from_onnx):
    """y = a b, of any sizes."""
    ends = [tensor(name, FLOAT, (None, None)) for name in "aby"]
    return from_onnx(graph([("MatMul", ["a", "b"], ["y"], {})], ends[:2], ends[2:]))


GOOD, BAD = np.eye(3, dtype=np.float32), np.full((4, 5), 31337, np.float32)


def refused(model, says="with these values", **inputs):
    with pytest.raises(RequestError, match=says) as caught:
        run(model, **inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "31337" not in caught.value.message


def test_sizes_that_do_not_fit_do_not_reach_the_model(from_onnx):
    model = matrices(from_onnx)
    compiled = model._requests.compiled
    for _ in range(2):
        refused(model, "with inputs of these shapes", a=GOOD, b=BAD)
        assert np.array_equal(run(model, a=GOOD, b=GOOD)["y"], GOOD)
    assert model._requests.compiled is compiled


def test_a_run_that_failed_leaves_nothing_to_others(from_onnx, monkeypatch):
    """OpenVINO itself would answer the second of these, with values of the first."""
    model = matrices(from_onnx)
    monkeypatch.setattr(model, "_check_shapes", lambda shapes: None)
    with pytest.raises(RuntimeError):  # nothing has shown yet that it works
        run(model, a=GOOD, b=BAD)
    for _ in range(2):
        assert np.array_equal(run(model, a=GOOD, b=GOOD)["y"], GOOD)
        refused(model, a=GOOD, b=BAD)
        refused(model, a=np.ones((3, 4), np.float32), b=GOOD)


def test_who_runs_beside_one_that_fails_has_the_right_answers(from_onnx, monkeypatch):
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2}
    shapes = [tensor("x", FLOAT, (None,)), tensor("s", TensorProto.INT64, (2,))]
    ends = [tensor("y", FLOAT, (None, None))]
    model = from_onnx(graph([("Reshape", ["x", "s"], ["y"], {})], shapes, ends), extra=options)
    x = np.arange(12, dtype=np.float32)
    run(model, x=x, s=np.array([3, 4]))

    def ask(number):
        for rows in (1, 2, 3, 4) * 3:
            if number == 0:
                refused(model, x=x, s=np.array([5, 31337]))
            else:
                found = run(model, x=x * number, s=np.array([rows, 12 // rows]))["y"]
                assert np.array_equal(found, (x * number).reshape(rows, -1))

    at_once(4, ask)


def test_a_compilation_that_fails_is_tried_again():
    class Compiled:
        def get_property(self, name):
            return 1

        def create_infer_request(self):
            return SimpleNamespace(query_state=list)

    answers = iter([Compiled(), MemoryError(), Compiled()])

    def compiled():
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    def fail(request):
        raise KeyError

    requests = Requests(compiled)
    with pytest.raises(KeyError):
        requests.run(fail)
    with pytest.raises(MemoryError):
        requests.run(id)
    assert requests.run(lambda request: "sound") == "sound"


def test_a_model_that_the_device_cannot_run(from_onnx):
    content = graph(
        [("Relu", ["x"], ["y"], {})], [tensor("x", FLOAT, None)], [tensor("y", FLOAT, None)]
    )
    with pytest.raises(FormatError, match="cannot compile this model for CPU") as caught:
        from_onnx(content)
    assert "dynamic rank" in caught.value.hint


def test_what_a_model_keeps_is_not_the_next_clients(load, tmp_path):
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = (
        openvino.PartialShape([1, 2]),
        openvino.Type.f32,
        "sum",
    )
    variable = Variable(info)
    x = ops.parameter([1, 2], np.float32)
    x.output(0).get_tensor().set_names({"x"})
    before = ops.read_value(ops.constant(np.zeros((1, 2), np.float32)), variable)
    both = ops.add(before, x)
    both.output(0).get_tensor().set_names({"y"})
    made = openvino.Model([ops.result(both)], [ops.assign(both, variable)], [x], "sum")
    model = load(save(tmp_path / "ir", made), extra=EXACT)
    for _ in range(3):
        assert run(model, x=np.ones((1, 2), np.float32))["y"].tolist() == [[1, 1]]


def test_indices_that_are_out_of_range_do_no_harm(from_onnx):
    nodes = [("Gather", ["d", "i"], ["y"], {})]
    inputs = [tensor("d", FLOAT, (None,)), tensor("i", TensorProto.INT64, (None,))]
    model = from_onnx(graph(nodes, inputs, [tensor("y", FLOAT, (None,))]))
    d = np.arange(1, 4, dtype=np.float32)
    assert run(model, d=d, i=np.array([0, 7777]))["y"].tolist() == [1, 0]


def test_options_are_openvinos_own(load, tmp_path):
    folder = save(tmp_path / "ir", layers(WEIGHTS))
    extra = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2}
    model = load(folder, threads=2, extra=extra)
    compiled = model._requests.compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 2
    assert run(load(folder, extra={"device_name": "AUTO"}), x=np.ones((1, 16), np.float32))


@pytest.mark.parametrize(
    ("extra", "error", "says"),
    [
        ({"NOPE": 1}, UsageError, "no option NOPE for CPU"),
        ({"device_name": "TPU"}, UsageError, "finds no TPU on this machine"),
        ({"device_name": 7}, UsageError, "device_name must be a name"),
        ({"CACHE_DIR": "cache"}, UsageError, "in clear"),
        ({"device_name": "AUTO", "CACHE_DIR": "cache"}, UsageError, "in clear"),
        ({"weights": "other.bin"}, NotFound, r"has no file 'other\.bin'"),
    ],
    ids=["property", "device", "no name", "cache", "cache of AUTO", "weights"],
)
def test_options_that_are_refused(load, tmp_path, extra, error, says):
    with pytest.raises(error, match=says):
        load(save(tmp_path / "ir", layers(WEIGHTS)), extra=extra)


def test_weights_of_another_name(load, tmp_path):
    folder = save(tmp_path / "ir", layers(WEIGHTS))
    (folder / "m.bin").rename(folder / "other.bin")
    model = load(folder, extra={"weights": "other.bin", **EXACT})
    x = np.ones((1, 16), np.float32)
    np.testing.assert_allclose(run(model, x=x)["y"], answer(x), rtol=1e-4)


def test_external_data(load, tmp_path):
    weights = helper.make_tensor("w", FLOAT, WEIGHTS.shape, WEIGHTS.ravel())
    content = graph(
        [("MatMul", ["x", "w"], ["y"], {})], [tensor("x")], [tensor("y", FLOAT, (None, 4))], [weights]
    )
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        onnx.load_from_string(content),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    model = load(folder, "openvino", extra=EXACT)
    x = np.ones((2, 16), np.float32)
    np.testing.assert_allclose(run(model, x=x)["y"], x @ WEIGHTS, rtol=1e-4, atol=1e-5)


def test_threads_at_once(load, tmp_path):
    model = load(save(tmp_path / "ir", layers(WEIGHTS)), extra=EXACT)

    def ask(number):
        for rows in range(1, 30):
            x = np.full((rows, 16), number, np.float32)
            np.testing.assert_allclose(run(model, x=x)["y"], answer(x), rtol=1e-4, atol=1e-4)

    at_once(4, ask)


def test_requests_are_put_together(load, tmp_path):
    folder = save(tmp_path / "ir", layers(WEIGHTS))
    batched_together(load, folder, answer, options=EXACT)


def test_closing_frees_the_weights(load, tmp_path):
    folder = save(tmp_path / "ir", layers(np.ones((1024, LARGE >> 12), np.float32)))

    def make():
        model = load(folder, extra=EXACT)
        load.made.clear()
        run(model, x=np.ones((1, 1024), np.float32))
        return model

    frees_what_it_held(make, LARGE)
