"""Paddle Inference behind the server, in both graph formats."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backend_checks import (
    BATCHING,
    ask,
    check_batches,
    check_threads,
    refused,
    served,
    signature_of,
)

from strongroom.errors import FormatError, UsageError

__all__ = ["served"]

ROWS = np.random.default_rng(8).random((20, 4)).astype(np.float32)


def imported():
    # By the backend, which keeps the signals of the process from Paddle.
    from strongroom.serving.backends.paddle import _imported

    with _imported():
        from strongroom.loaders.paddle import paddle
    return paddle


def make(folder):
    """``folder/m``: of x and indices, sums of a linear layer and of rows of a table."""
    paddle = imported()
    paddle.seed(0)

    class Network(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = paddle.nn.Linear(4, 3)
            self.table = paddle.nn.Embedding(7, 3)

        def forward(self, x, at):
            table = self.table(at)
            return self.linear(x) + table, paddle.nn.functional.linear(
                table, self.linear.weight[0:1].t()
            ).flatten()

    specs = [
        paddle.static.InputSpec([None, 4], "float32", "x"),
        paddle.static.InputSpec([None], "int64", "at"),
    ]
    network = Network()
    paddle.jit.save(network, f"{folder}/m", input_spec=specs)
    x, at = ROWS, np.arange(len(ROWS)) % 7
    sums, rows = network(paddle.to_tensor(x), paddle.to_tensor(at))
    np.savez(f"{folder}/expected.npz", sums=sums.numpy(), rows=rows.numpy())


def of_one_input(folder, function, shape, dtype="float32"):
    paddle = imported()

    class Network(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.two = self.create_parameter([1])
            self.two.set_value(np.array([2], np.float32))

        def forward(self, x):
            return function(paddle, x, self.two)

    specs = [paddle.static.InputSpec(shape, dtype, "x")]
    paddle.jit.save(Network(), f"{folder}/layer/m", input_spec=specs)
    return folder / "layer"


@pytest.fixture(scope="module", params=["pir", "legacy"])
def saved(request, tmp_path_factory):
    """The folder of a saved layer, its outputs' names, and what they should be for ``ROWS``."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "pir":
        make(place)
    else:
        # Paddle 3 writes the older format only if it is told so before it is imported.
        environment = os.environ | {
            "FLAGS_enable_pir_api": "0",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        code = f"from test_backend_paddle import make; make({str(place)!r})"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    expected = np.load(place / "expected.npz")
    (place / "expected.npz").unlink()
    assert ((place / "m.pdmodel").exists()) == (request.param == "legacy")
    return place, expected["sums"], expected["rows"]


AT = np.arange(len(ROWS)) % 7


def test_as_the_layer_itself(served, saved):
    folder, sums, rows = saved
    servable = served(folder, threads=1)
    assert servable.platform == "paddle_inference"
    inputs, outputs = signature_of(servable)
    assert inputs == {"x": ("float32", (-1, 4)), "at": ("int64", (-1,))}
    assert list(outputs.values()) == [("float32", (-1, 3)), ("float32", (-1,))]
    assert servable.signatures["serving_default"].batched
    first, second = outputs
    found = ask(servable, x=ROWS, at=AT)
    assert np.allclose(found[first], sums, atol=1e-6)
    assert np.allclose(found[second], rows, atol=1e-6)
    assert list(ask(servable, [second], x=ROWS[:1], at=AT[:1])) == [second]
    empty = ask(servable, x=ROWS[:0], at=AT[:0])
    assert [one.shape for one in empty.values()] == [(0, 3), (0,)]
    # Neither the memory of the predictor nor that of the request.
    ROWS.flags.writeable = False
    try:
        again = ask(servable, x=ROWS[::-1], at=AT[::-1].copy())
    finally:
        ROWS.flags.writeable = True
    assert np.allclose(again[first], sums[::-1], atol=1e-6)
    assert np.allclose(found[first], sums, atol=1e-6)


def test_values_that_the_model_cannot_take(served, saved, capfd):
    folder, sums, _ = saved
    servable = served(folder, threads=1)
    capfd.readouterr()
    refused(servable, r"shape \[20, 3\]", x=ROWS[:, :3], at=AT)
    refused(servable, "dtype float64", x=ROWS.astype(float), at=AT)
    refused(servable, "cannot compute", x=ROWS, at=AT[:3])
    for at in ([77777777, 0], [-77777777, 0]):
        error = refused(
            servable, r"^The model cannot compute with these values\.$", x=ROWS[:2], at=np.array(at)
        )
        assert error.__cause__ is None
    # Fewer digits may be those of a time.
    assert "77777777" not in "".join(capfd.readouterr())
    (first, _) = servable.signatures["serving_default"].outputs
    assert np.allclose(ask(servable, x=ROWS, at=AT)[first], sums, atol=1e-6)


@pytest.mark.parametrize("predictors", [1, 3])
def test_several_threads_at_once(served, tmp_path, predictors):
    folder = of_one_input(tmp_path, lambda paddle, x, two: paddle.tanh(x) * two, [None, 4])
    servable = served(folder, threads=1, options={"predictors": predictors})
    (name,) = servable.signatures["serving_default"].outputs
    check_threads(servable, "x", ROWS, (name, np.tanh(ROWS) * 2))


def test_batches(served, tmp_path):
    folder = of_one_input(tmp_path, lambda paddle, x, two: paddle.tanh(x) * two, [None, 4])
    servable = served(folder, threads=1, batching=BATCHING)
    (name,) = servable.signatures["serving_default"].outputs
    check_batches(servable, "x", ROWS, (name, np.tanh(ROWS) * 2))


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float16", "float64", "uint8", "int8"])
def test_dtypes(served, tmp_path, dtype):
    folder = of_one_input(
        tmp_path, lambda paddle, x, two: (paddle.reshape(x, [3, 2]), two), [2, 3], dtype
    )
    servable = served(folder)
    assert not servable.signatures["serving_default"].batched
    x = np.array([[0, 1, 2], [3, 4, 100]]).astype(dtype)
    found = next(iter(ask(servable, x=x).values()))
    assert found.dtype == x.dtype
    assert np.array_equal(found, x.reshape(3, 2))


def test_a_dtype_that_paddle_inference_does_not_give_away(served, tmp_path):
    folder = of_one_input(
        tmp_path, lambda paddle, x, two: (paddle.reshape(x, [4]), two), [2, 2], "bfloat16"
    )
    with pytest.raises(FormatError, match="Input x is of bfloat16"):
        served(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"predictors": 0}, "from 1 to 256"),
        ({"predictors": True}, "from 1 to 256"),
        ({"set_model": ["a", "b"]}, "set_model is nothing"),
        ({"enable_nothing": []}, "enable_nothing is nothing"),
        ({"__class__": []}, "__class__ is nothing"),
        ({"switch_ir_optim": False}, "is a list"),
        ({"switch_ir_optim": ["no"]}, "has not the arguments"),
        ({"enable_save_optim_model": [True]}, "would write the optimised model to a disk"),
    ],
)
def test_configurations_that_are_none(served, tmp_path, options, says):
    folder = of_one_input(tmp_path, lambda paddle, x, two: x + two, [None, 4])
    with pytest.raises(UsageError, match=says):
        served(folder, options=options)


def test_methods_of_the_config(served, tmp_path):
    folder = of_one_input(tmp_path, lambda paddle, x, two: paddle.tanh(x) * two, [None, 4])
    servable = served(folder, options={"disable_onednn": [], "switch_ir_optim": [False]})
    (found,) = ask(servable, x=ROWS).values()
    assert np.allclose(found, np.tanh(ROWS) * 2, atol=1e-6)


HANDLERS = """
import ctypes, signal, sys
before = []
signal.signal(signal.SIGTERM, lambda *_: before.append(1))
from strongroom.serving.backends.paddle import _imported
with _imported():
    from strongroom.loaders import paddle
signal.raise_signal(signal.SIGTERM)
caught = next(line for line in open("/proc/self/status") if line.startswith("SigCgt"))
assert before == [1], before
print(int(caught.split()[1], 16) & 0x7fffffff)
"""


def test_the_signals_stay_with_the_server():
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    # SIGINT and SIGTERM, both of Python.
    assert int(done.stdout) == 1 << 1 | 1 << 14
    assert "ccache" not in done.stderr
