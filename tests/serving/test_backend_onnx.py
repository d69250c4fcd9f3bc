"""ONNX Runtime behind the server: dtypes, shapes, text, and what it refuses."""

from __future__ import annotations

import os
import threading

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import FLOAT, graph, identity, tensor

import strongroom
from strongroom.errors import FormatError, UsageError
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry
from strongroom.serving.backends.onnx import _cores
from strongroom.serving.checking import check_inputs
from strongroom.serving.status import Code, RequestError

KEY = bytes(range(32))


@pytest.fixture
def loaded(tmp_path):
    """Load the bytes of a model, or a folder, through a sealed one."""
    models = []

    def load(content, **options):
        source = content
        if isinstance(content, bytes):
            source = tmp_path / "model.onnx"
            source.write_bytes(content)
        sealed = tmp_path / "model.sealed"
        strongroom.seal(source, sealed, key=KEY, overwrite=True)
        with strongroom.open(sealed, key=KEY) as opened:
            models.append(registry.load(opened, None, BackendOptions(**options)))
        return models[-1]

    yield load
    for one in models:
        one.close()


def run(model, outputs=("y",), **inputs):
    check_inputs(inputs, model.signatures["serving_default"])
    return model.run("serving_default", inputs, outputs)


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
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_dtype_comes_back_as_it_went(loaded, name):
    model = loaded(identity(NUMBERS[name]))
    signature = model.signatures["serving_default"]
    assert (signature.inputs["x"].dtype, signature.inputs["x"].shape) == (name, (-1, 2))
    assert signature.batched
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    for x in (
        np.array([[0, 1], [2, 100]]).astype(dtype),
        np.zeros((0, 2), dtype),
        np.arange(12).reshape(3, 4).astype(dtype)[:, ::2],
    ):
        y = run(model, x=x)["y"]
        assert y.dtype == x.dtype
        assert np.array_equal(y, x)


def test_scalars(loaded):
    for kind, value in (
        (FLOAT, np.array(1.5, np.float32)),
        (TensorProto.BFLOAT16, np.array(1.5, ml_dtypes.bfloat16)),
        (TensorProto.STRING, np.array(b"a", object)),
    ):
        model = loaded(identity(kind, ()))
        assert not model.signatures["serving_default"].batched
        y = run(model, x=value)["y"]
        assert y.shape == ()
        assert y == value


def test_text(loaded):
    model = loaded(identity(TensorProto.STRING))
    x = np.array([["ü".encode(), b"b\0c\0"], [b"", "\U0001f511".encode()]], object)
    y = run(model, x=x)["y"]
    assert y.tolist() == x.tolist()
    assert run(model, x=np.empty((0, 2), object))["y"].shape == (0, 2)
    with pytest.raises(RequestError, match=r"^Input x is not text in UTF-8\.$") as caught:
        run(model, x=np.array([[b"\xff", b""]], object))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_bfloat16_to_another_dtype_and_beside_it(loaded):
    content = graph(
        [("Cast", ["x"], ["y"], {"to": FLOAT}), ("Identity", ["x"], ["z"], {})],
        [tensor("x", TensorProto.BFLOAT16, (None,))],
        [tensor("y", FLOAT, (None,)), tensor("z", TensorProto.BFLOAT16, (None,))],
    )
    model = loaded(content)
    x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    assert run(model, x=x)["y"].tolist() == [1.5, -2.0]
    both = run(model, ("z", "y"), x=x)
    assert list(both) == ["z", "y"]
    assert both["y"].tolist() == both["z"].astype(np.float32).tolist() == [1.5, -2.0]


def test_text_in_and_bfloat16_out_is_refused(loaded):
    bf16 = TensorProto.BFLOAT16
    content = graph(
        [("Identity", ["x"], ["y"], {}), ("Identity", ["s"], ["t"], {})],
        [tensor("x", bf16), tensor("s", TensorProto.STRING)],
        [tensor("y", bf16), tensor("t", TensorProto.STRING)],
    )
    with pytest.raises(FormatError, match="bfloat16"):
        loaded(content)


def test_optional_inputs_and_sequences_are_refused_with_a_reason(loaded):
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    content = graph(
        [("OptionalHasElement", ["x"], ["y"], {})],
        [helper.make_value_info("x", optional)],
        [tensor("y", TensorProto.BOOL, ())],
    )
    with pytest.raises(FormatError, match=r"Input x has the type optional\(tensor\(float\)\)"):
        loaded(content)
    content = graph(
        [("SequenceConstruct", ["x", "x"], ["y"], {})],
        [tensor("x")],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )
    with pytest.raises(FormatError, match=r"Output y has the type seq\(tensor\(float\)\)"):
        loaded(content)


def test_values_that_the_model_cannot_take_are_the_clients_mistake(loaded, capfd):
    content = graph(
        [("Gather", ["d", "i"], ["y"], {})],
        [tensor("d", FLOAT, (3,)), tensor("i", TensorProto.INT64, (None,))],
        [tensor("y", FLOAT, (None,))],
    )
    model = loaded(content)
    d = np.zeros(3, np.float32)
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            run(model, d=d, i=np.array([77777777]))
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.message == "The model cannot compute with these values."
        assert caught.value.__cause__ is None
    assert "77777777" not in capfd.readouterr().err  # fewer digits may be those of a time
    assert run(model, d=d, i=np.array([2]))["y"].tolist() == [0]


def test_an_option_that_onnx_runtime_would_pass_over(loaded):
    with pytest.raises(UsageError, match="no option provders") as caught:
        loaded(identity(FLOAT, ["n"]), extra={"provders": ["CPUExecutionProvider"]})
    assert "providers" in caught.value.hint


def test_an_unknown_rank_takes_any(loaded):
    content = graph(
        [("Reshape", ["x", "s"], ["y"], {})],
        [tensor("x"), tensor("s", TensorProto.INT64, (None,))],
        [tensor("y", FLOAT, None)],
    )
    model = loaded(content)
    assert model.signatures["serving_default"].outputs["y"].shape is None
    x = np.zeros((1, 16), np.float32)
    assert run(model, x=x, s=np.array([2, 8]))["y"].shape == (2, 8)


def test_external_data_and_threads(loaded, tmp_path, monkeypatch):
    weights = np.arange(16 * 4, dtype=np.float32).reshape(16, 4)
    content = graph(
        [("MatMul", ["x", "w"], ["y"], {})],
        [tensor("x")],
        [tensor("y", FLOAT, (None, 4))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        onnx.load_from_string(content),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    x = np.ones((2, 16), np.float32)
    # It is in no directory, whatever the number of threads.
    monkeypatch.setattr("strongroom.loaders.onnx.memory_directory", None)
    for threads in (0, 1):
        model = loaded(folder, threads=threads)
        assert np.array_equal(run(model, x=x)["y"], x @ weights)


@pytest.mark.parametrize("threads", [0, 3])
def test_its_threads_are_tied_to_no_processor(loaded, monkeypatch, threads):
    monkeypatch.setattr("strongroom.serving.backends.onnx._cores", lambda: 3)
    before = set(os.listdir("/proc/self/task"))
    loaded(identity(FLOAT), threads=threads)
    made = [int(one) for one in set(os.listdir("/proc/self/task")) - before]
    assert len(made) >= 2  # and the one that runs the model
    assert {frozenset(os.sched_getaffinity(one)) for one in made} == {
        frozenset(os.sched_getaffinity(0))
    }


def test_cores_are_those_of_this_process(monkeypatch):
    everything = os.sched_getaffinity(0)
    assert 1 <= _cores() <= len(everything)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {min(everything)})
    assert _cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1 << 20, 1 + (1 << 20)})
    assert _cores() == 2  # nobody says that they are one
    monkeypatch.delattr(os, "sched_getaffinity")
    assert _cores() == 0


def test_threads_at_once(loaded):
    model = loaded(identity(TensorProto.STRING))
    wrong = []

    def ask(number):
        x = np.full((3, 2), b"%d" % number, object)
        answers = [run(model, x=x)["y"].tolist() for _ in range(50)]
        wrong.extend(one for one in answers if one != x.tolist())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
