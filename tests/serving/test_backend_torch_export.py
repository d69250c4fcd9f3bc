"""Programs of torch.export behind the server: what they say of themselves, and what they hide."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import Loader, run
from torch_models import ROWS, Identity, Layers, Looks, Two, X, export, spec

from strongroom.errors import FormatError, UsageError
from strongroom.serving.call import Call
from strongroom.serving.status import Code, RequestError


@pytest.fixture
def load(tmp_path):
    made = Loader(tmp_path)
    yield made
    made.close()


def test_an_exported_program_checks_too(load, tmp_path):
    path = export(tmp_path, Looks(), torch.zeros(2, 1, dtype=torch.int64), shapes={"x": {0: ROWS}})
    model = load(path)
    run(model, x=np.array([[1]]))
    with pytest.raises(RequestError) as caught:
        run(model, x=np.array([[31337]]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "31337" not in caught.value.message


class Everything(torch.nn.Module):
    """Dicts in and out, a flag, nothing, a number; and a keyword."""

    def forward(self, x, pair, flag, nothing, *, scale):
        first = x * scale if flag else x
        return {"first": first, "rest": (pair["a"].sum(1), pair["b"][0], nothing), "n": 3}


def test_what_an_exported_program_says(load, tmp_path):
    pair = {"a": torch.zeros(2, 16), "b": (torch.zeros(2, 5, dtype=torch.int32),)}
    shapes = {
        "x": {0: ROWS},
        "pair": {"a": {0: ROWS}, "b": ({0: ROWS},)},
        "flag": None,
        "nothing": None,
        "scale": {0: ROWS},
    }
    path = export(
        tmp_path,
        Everything(),
        *(torch.zeros(2, 16), pair, True, None),
        scale=torch.zeros(2, 1),
        shapes=shapes,
    )
    model = load(path)
    assert model.platform == "pytorch_export"
    signature = model.signatures["serving_default"]
    assert [*signature.inputs.values()] == [
        spec("x"),
        spec("pair_a"),
        spec("pair_b_0", (-1, 5), "int32"),
        spec("scale", (-1, 1)),
    ]
    assert [*signature.outputs.values()] == [
        spec("first"),
        spec("rest_0", (-1,)),
        spec("rest_1", (-1, 5), "int32"),
    ]
    assert signature.batched
    for rows in (1, 2, 64, 0):
        x = np.random.default_rng(0).random((rows, 16), np.float32)
        b = np.arange(5 * rows, dtype=np.int32).reshape(rows, 5)
        scale = np.full((rows, 1), 3, np.float32)
        found = run(model, x=x, pair_a=x, pair_b_0=b, scale=scale)
        assert np.array_equal(found["first"], x * 3)
        np.testing.assert_allclose(found["rest_0"], x.sum(1), rtol=1e-5)
        assert np.array_equal(found["rest_1"], b)


def test_open_dimensions_have_bounds_and_belong_together(load, tmp_path):
    rows = torch.export.Dim("rows", min=4, max=64)
    path = export(
        tmp_path, Two(), torch.zeros(8, 16), torch.zeros(8, 16), shapes={"x": {0: rows}, "y": {0: rows}}
    )
    model = load(path)
    for x, y, says in (
        (3, 3, "Input x has 3 in dimension 0, and the model takes at least 4"),
        (65, 65, "Input x has 65 in dimension 0, and the model takes at most 64"),
        (8, 9, "Input y has 9 in dimension 0, and the model wants 8, as elsewhere"),
    ):
        with pytest.raises(RequestError, match=says) as caught:
            model.run(
                "serving_default",
                {"x": np.zeros((x, 16), np.float32), "y": np.zeros((y, 16), np.float32)},
                ("output0",),
            )
        assert caught.value.code is Code.INVALID_ARGUMENT


class Halves(torch.nn.Module):
    def forward(self, x, y):
        return x[::2] + y


def test_dimensions_that_are_computed_are_checked_by_the_program(load, tmp_path):
    half = torch.export.Dim("half", min=1, max=64)
    shapes = {"x": {0: 2 * half}, "y": {0: half}}
    model = load(export(tmp_path, Halves(), torch.zeros(8, 16), torch.zeros(4, 16), shapes=shapes))
    assert not model.signatures["serving_default"].batched
    four, eight = np.ones((4, 16), np.float32), np.ones((8, 16), np.float32)
    assert run(model, x=eight, y=four)["output0"].shape == (4, 16)
    with pytest.raises(RequestError, match="cannot compute with these values"):
        run(model, x=four, y=four)


def test_names_of_your_own_for_an_exported_program(load, tmp_path):
    shapes = {"x": {0: ROWS}, "y": {0: ROWS}}
    path = export(tmp_path, Two(), torch.zeros(2, 16), torch.zeros(2, 16), shapes=shapes)
    own = {
        "inputs": (spec("left"), spec("right")),
        "outputs": (spec("difference"), spec("sum", (-1,))),
    }
    servable = load.servable(path, **own)
    found = servable.infer(Call("m", {"left": X, "right": X / 2})).outputs
    assert np.array_equal(found["difference"], X / 2)
    with pytest.raises(UsageError, match="are output0, output1, and not d"):
        load(path, outputs=[spec("d"), spec("output1", (-1,))])
    with pytest.raises(UsageError, match="not as configured"):
        load.servable(path, inputs=(spec("x"), spec("y", (-1, 3))))


class Times(torch.nn.Module):
    def forward(self, x, n: int):
        return x * n


class Sizes(torch.nn.Module):
    def forward(self, x):
        return x.shape[0]


def test_exported_programs_that_cannot_be_served(load, tmp_path):
    shapes = {"x": None, "n": torch.export.Dim.DYNAMIC}
    with pytest.raises(FormatError, match=r"input n of m\.pt2 is a number"):
        load(export(tmp_path, Times(), torch.zeros(2), 3, shapes=shapes))
    with pytest.raises(FormatError, match="no outputs that are tensors"):
        load(export(tmp_path, Sizes(), torch.zeros(2), shapes={"x": {0: torch.export.Dim.DYNAMIC}}))
    with pytest.raises(FormatError, match=r"x has the dtype torch\.float8_e5m2"):
        load(export(tmp_path, Identity(), torch.zeros(2, dtype=torch.float8_e5m2)))


def test_pickles_run_if_somebody_says_so(load, tmp_path, monkeypatch):
    """A class of example inputs that is not torch's."""
    program = torch.export.export(Layers(), (torch.zeros(2, 16),))
    program._example_inputs = ((Path("/"),), {})
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="pickle of more than tensors") as caught:
        load(tmp_path / "m.pt2")
    assert "options: {weights_only: false}" in caught.value.hint
    # torch says in its log that it does so, with a mistake in how.
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    assert load(tmp_path / "m.pt2", extra={"weights_only": False}).platform == "pytorch_export"
