"""Packages of AOTInductor behind the server. Making one takes a C++ compiler and a quarter of a minute."""

from __future__ import annotations

import shutil

import compiled_package
import numpy as np
import pytest
import torch
from backends import Loader, at_once, read_only, run
from torch_models import X, spec

from strongroom.errors import UsageError
from strongroom.serving.status import Code, RequestError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="packages are compiled with g++, which is not installed"
    ),
]


@pytest.fixture
def load(tmp_path):
    made = Loader(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "m.pt2"
    path.write_bytes(compiled_package.package())
    return path


TRUSTED = {"allow_native_code": True}
MASKED = {
    "extra": TRUSTED,
    "inputs": [spec("mask", (-1, 1)), spec("x")],
    "outputs": [spec("z_0"), spec("y", (-1, 4))],
}


def test_a_compiled_package(load, package):
    model = load(package, **MASKED)
    assert model.platform == "torch_aoti"
    assert model.signatures["serving_default"].batched
    network = compiled_package.network()
    for rows in (2, 1, 0, 1, 64):
        x = np.random.default_rng(rows).random((rows, 16), np.float32)
        mask = np.full((rows, 1), 0.5, np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(x.copy()), mask=torch.from_numpy(mask))
        for value in (x.copy(), read_only(x.copy())):
            found = run(model, x=value, mask=mask)
            np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)
            assert np.array_equal(found["z_0"], x + 1)
            assert np.array_equal(value, x)  # it adds in place


def test_machine_code_runs_if_somebody_says_so(load, package):
    for extra in ({}, {"allow_native_code": False}, {"allow_native_code": "yes"}):
        with pytest.raises(UsageError, match="is machine code") as caught:
            load(package, **{**MASKED, "extra": extra})
        assert "options: {allow_native_code: true}" in caught.value.hint


def test_a_package_never_reads_beyond_its_inputs(load, package):
    """As configured, and not as compiled."""
    too_wide = {**MASKED, "inputs": [spec("mask", (-1, 1)), spec("x", (-1, -1))]}
    model = load(package, **too_wide)
    mask = np.ones((2, 1), np.float32)
    run(model, x=np.zeros((2, 16), np.float32), mask=mask)
    for shape in ((2, 15), (2, 1), (2, 0)):
        with pytest.raises(RequestError) as caught:
            run(model, x=np.zeros(shape, np.float32), mask=mask)
        assert caught.value.code is Code.INVALID_ARGUMENT
    wrong = {**MASKED, "inputs": [spec("mask", (-1, 1)), spec("x", dtype="float64")]}
    with pytest.raises(RuntimeError):
        run(load(package, **wrong), x=np.zeros((2, 16)), mask=mask)


def test_what_a_package_does_not_say(load, package):
    with pytest.raises(UsageError, match="dtypes and shapes of its inputs") as caught:
        load(package, extra=TRUSTED)
    assert "{name: input0, " in caught.value.hint
    assert "{name: mask, " in caught.value.hint
    with pytest.raises(UsageError, match="dtypes and shapes of its outputs") as caught:
        load(package, inputs=MASKED["inputs"], extra=TRUSTED)
    assert "{name: y, dtype: float32, shape: [-1, 4]}, {name: z_0, " in caught.value.hint
    own = [spec("a", (-1, 4)), spec("b")]
    inputs = [spec("first"), spec("second", (-1, 1))]
    model = load(package, inputs=inputs, outputs=own, extra=TRUSTED)
    found = run(model, first=X, second=np.ones((2, 1), np.float32))
    assert np.array_equal(found["b"], X + 1)


def test_a_package_in_several_threads(load, package):
    model = load(package, **{**MASKED, "extra": {"num_runners": 2, **TRUSTED}})

    def ask(number):
        for rows in (1, 2, 7, 64) * 5:
            x = np.full((rows, 16), number, np.float32)
            found = run(model, x=x, mask=np.ones((rows, 1), np.float32))
            assert np.array_equal(found["z_0"], x + 1)

    at_once(4, ask)
