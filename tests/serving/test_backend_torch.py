"""PyTorch behind the server: TorchScript, exported programs, compiled packages."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple, Optional

import compiled_package
import numpy as np
import pytest
import torch
import yaml
from backends import (
    Loader,
    at_once,
    batched_together,
    frees_what_it_held,
    read_only,
    run,
)

from strongroom.errors import FormatError, UsageError
from strongroom.serving.call import Call
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
ROWS = torch.export.Dim("rows", min=1, max=64)
WIDE = (-1, 16)


@pytest.fixture
def load(tmp_path):
    made = Loader(tmp_path)
    yield made
    made.close()


def spec(name, shape=WIDE, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def script(folder, module):
    path = folder / "m.pt"
    torch.jit.script(module.eval()).save(path)
    return path


def export(folder, module, *args, shapes=None, **kwargs):
    path = folder / "m.pt2"
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)
        )

    def forward(self, x):
        return self.layers(x)


class Identity(torch.nn.Module):
    def forward(self, x):
        return x.view(x.size())


class Two(torch.nn.Module):
    def forward(self, x, y):
        return x - y, (x + y).sum(1)


def plain(module, *args):
    with torch.inference_mode():
        return module.eval()(*args)


def test_torchscript_answers_as_the_module(load, tmp_path):
    module = Layers()
    x = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 16)
    expected = plain(module, torch.from_numpy(x.copy())).numpy()
    read_only(x)
    traced = tmp_path / "traced.pt"
    torch.jit.trace(module, torch.zeros(1, 16)).save(traced)
    frozen = tmp_path / "frozen.pt"
    torch.jit.freeze(torch.jit.script(module)).save(frozen)
    for path in (script(tmp_path, module), traced, frozen):
        model = load(path, inputs=[spec("x")], outputs=[spec("y", (-1, 4))])
        assert model.platform == "pytorch_libtorch"
        assert model.signatures["serving_default"].batched
        np.testing.assert_allclose(run(model, x=x)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_module_saved_in_training_does_not_drop_out(load, tmp_path):
    module = torch.jit.script(torch.nn.Sequential(torch.nn.Dropout(0.5)).train())
    module.save(tmp_path / "m.pt")
    model = load(tmp_path / "m.pt", inputs=[spec("input")], outputs=[spec("y")])
    x = np.ones((4, 16), np.float32)
    assert np.array_equal(run(model, input=x)["y"], x)


def numbers():
    return [name for name in DTYPES if name != "bytes"]


def arrays(dtype):
    whole = np.arange(12).reshape(3, 4)
    yield (whole % 2 if dtype == "bool" else whole).astype(DTYPES[dtype])
    yield np.zeros((0, 4), DTYPES[dtype])
    yield np.arange(24).reshape(3, 8).astype(DTYPES[dtype])[:, ::2]
    yield np.arange(12).reshape(4, 3).astype(DTYPES[dtype]).T
    yield np.arange(12).reshape(3, 4).astype(DTYPES[dtype])[::-1]
    size = 12 * DTYPES[dtype].itemsize
    yield np.frombuffer(bytes(size + 1), np.uint8)[1:].view(DTYPES[dtype]).reshape(3, 4)


@pytest.mark.parametrize("dtype", numbers())
def test_every_dtype_comes_back_as_it_went(load, tmp_path, dtype):
    of_torch = getattr(torch, dtype)
    rows = torch.export.Dim.DYNAMIC
    exported = export(tmp_path, Identity(), torch.zeros(3, 4, dtype=of_torch), shapes={"x": {0: rows}})
    declared = {"inputs": [spec("x", (-1, 4), dtype)], "outputs": [spec("output0", (-1, 4), dtype)]}
    for model in (load(script(tmp_path, Identity()), **declared), load(exported)):
        assert model.signatures["serving_default"].inputs["x"] == declared["inputs"][0]
        for x in arrays(dtype):
            for value in (x, read_only(x)):
                y = run(model, x=value)["output0"]
                assert y.dtype == x.dtype
                assert np.array_equal(y, x)


def test_scalars_and_any_rank(load, tmp_path):
    model = load(script(tmp_path, Identity()), inputs=[spec("x", None)], outputs=[spec("y", None)])
    assert not model.signatures["serving_default"].batched
    for shape in ((), (2,), (1, 2, 3)):
        assert run(model, x=np.ones(shape, np.float32))["y"].shape == shape
    model = load(export(tmp_path, Identity(), torch.zeros(())))
    assert run(model, x=np.array(2.5, np.float32))["output0"] == 2.5


class AddsInPlace(torch.nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2


class WritesThroughAView(torch.nn.Module):
    def forward(self, x):
        x[:, 0] = 7
        return x * 1


class WritesBehindDropout(torch.nn.Module):
    """Dropout gives back what it is given, and no analysis of aliases knows it."""

    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout()

    def forward(self, x):
        return torch.nn.functional.relu(self.drop(x), inplace=True)


class WritesInALoop(torch.nn.Module):
    def forward(self, x):
        for _ in range(2):
            if x.dim() == 2:
                torch.neg_(x)
                x += 1
        return x


@pytest.mark.parametrize("kind", [AddsInPlace, WritesThroughAView, WritesBehindDropout, WritesInALoop])
@pytest.mark.parametrize("exported", [False, True], ids=["torchscript", "exported"])
def test_what_a_model_writes_in_place_is_not_the_requests(load, tmp_path, kind, exported):
    if exported:
        model = load(export(tmp_path, kind(), torch.zeros(2, 16)))
    else:
        path = script(tmp_path, kind())
        model = load(path, inputs=[spec("x")], outputs=[spec("output0")])
    start = -np.ones((2, 16), np.float32)
    expected = plain(kind(), torch.from_numpy(start.copy())).numpy()
    for x in (start.copy(), read_only(start.copy())):
        for _ in range(2):
            assert np.array_equal(run(model, x=x)["output0"], expected)
        assert np.array_equal(x, start)


@pytest.mark.parametrize("exported", [False, True], ids=["torchscript", "exported"])
def test_nothing_is_copied_of_what_is_only_read(load, tmp_path, exported):
    if exported:
        model = load(export(tmp_path, Identity(), torch.zeros(2, 16)))
    else:
        model = load(script(tmp_path, Identity()), inputs=[spec("x")], outputs=[spec("output0")])
    for x in (np.ones((2, 16), np.float32), read_only(np.ones((2, 16), np.float32))):
        assert np.shares_memory(run(model, x=x)["output0"], x)


class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x, self.count


def test_an_answer_does_not_change_with_the_next_run(load, tmp_path):
    declared = {"inputs": [spec("x")], "outputs": [spec("y"), spec("n", (1,))]}
    exported = export(tmp_path, Counts(), torch.zeros(2, 16))
    for model in (load(script(tmp_path, Counts()), **declared), load(exported)):
        x = np.zeros((2, 16), np.float32)
        name = list(model.signatures["serving_default"].outputs)[1]
        first, second = (run(model, x=x)[name] for _ in range(2))
        assert (first.tolist(), second.tolist()) == ([1], [2])


class Pair(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


class GivesADict(torch.nn.Module):
    def forward(self, x, y: Optional[torch.Tensor] = None, n: int = 2):  # noqa: UP045  TorchScript
        return {"twice": x * n, "sum": x.sum(1)}


class GivesNames(torch.nn.Module):
    def forward(self, x):
        return Pair(x - 1, x + 1)


class GivesNested(torch.nn.Module):
    def forward(self, x):
        return x * 2, [x.sum(1), x * 3]


class TakesADict(torch.nn.Module):
    def forward(self, batch: dict[str, torch.Tensor]):
        return batch["a"] - batch["b"]


class TakesAList(torch.nn.Module):
    def forward(self, batch: list[torch.Tensor]):
        return batch[0] - batch[1]


class TakesAText(torch.nn.Module):
    def forward(self, x, mode: str):
        return x if mode == "a" else -x


X = np.arange(32, dtype=np.float32).reshape(2, 16)


def test_what_torchscript_gives(load, tmp_path):
    sums, twice = spec("sum", (-1,)), spec("twice")
    model = load(script(tmp_path, GivesADict()), inputs=[spec("x")], outputs=[sums, twice])
    assert np.array_equal(run(model, x=X)["twice"], X * 2)
    assert list(run(model, "twice", x=X)) == ["twice"]
    model = load(
        script(tmp_path, GivesNames()), inputs=[spec("x")], outputs=[spec("high"), spec("low")]
    )
    assert np.array_equal(run(model, x=X)["low"], X - 1)
    model = load(script(tmp_path, GivesNames()), inputs=[spec("x")], outputs=[spec("a"), spec("b")])
    assert np.array_equal(run(model, x=X)["a"], X - 1)
    model = load(
        script(tmp_path, GivesNested()),
        inputs=[spec("x")],
        outputs=[spec("a"), spec("b", (-1,)), spec("c")],
    )
    assert np.array_equal(run(model, x=X)["c"], X * 3)


def test_what_torchscript_takes(load, tmp_path):
    for kind in (TakesADict, TakesAList):
        both = [spec("a"), spec("b")]
        model = load(script(tmp_path, kind()), inputs=both, outputs=[spec("y")])
        assert np.array_equal(run(model, a=X, b=X / 2)["y"], X / 2)
    for names in ("xy", "yx", "ab"):  # by the file's names, or in order under others
        path = script(tmp_path, Two())
        model = load(path, inputs=[*map(spec, names)], outputs=[spec("d"), spec("s", (-1,))])
        found = run(model, **dict(zip(sorted(names), (X, X / 2), strict=True)))
        assert np.array_equal(found["d"], X / 2)
    with pytest.raises(UsageError, match=r"mode of m\.pt is of type str"):
        load(script(tmp_path, TakesAText()), inputs=[spec("x")])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([spec("x")], "lack y"),
        ([spec("x"), spec("z")], "are x, y, and not x, z"),
        ([spec("a"), spec("b"), spec("c")], "are x, y, and not a, b, c"),
        ([spec("x", dtype="bytes"), spec("y")], "has no text, and x"),
    ],
    ids=["too few", "mixed", "too many", "text"],
)
def test_inputs_that_do_not_fit(load, tmp_path, inputs, says):
    with pytest.raises(UsageError, match=says):
        load(script(tmp_path, Two()), inputs=inputs, outputs=[spec("d"), spec("s", (-1,))])


@pytest.mark.parametrize("kind", [Two, GivesADict, GivesNested])
def test_the_hints_can_be_written_into_models_yaml(load, tmp_path, kind):
    def suggested(what, **known):
        with pytest.raises(UsageError, match=f"does not say dtypes and shapes of its {what}") as caught:
            load(path, **known)
        written = caught.value.hint.partition("such as ")[2].rpartition("; -1")[0]
        (found,) = yaml.safe_load(written).items()
        assert found[0] == what
        return [
            TensorSpec(one["name"], one["dtype"], tuple(-1 if n == -1 else n for n in one["shape"]))
            for one in found[1]
        ]

    path = script(tmp_path, kind())
    inputs = [spec(one.name) for one in suggested("inputs") if kind is Two or one.name == "x"]
    outputs = suggested("outputs", inputs=inputs)
    model = load(path, inputs=inputs, outputs=outputs)
    assert model.signatures["serving_default"].batched
    found = run(model, **{one.name: X for one in inputs})
    assert set(found) == {"sum", "twice"} or set(found) <= {
        "output0",
        "output1",
        "output1_0",
        "output1_1",
    }


def test_outputs_that_are_not_as_configured(load, tmp_path):
    path = script(tmp_path, GivesADict())
    for outputs, says in (
        ([spec("twice", dtype="float64")], "gives float32 .* configured to be float64"),
        ([spec("twice", (-1, 3))], "configured to be float32"),
        ([spec("thrice")], "gives twice, sum, and no thrice"),
    ):
        model = load(path, inputs=[spec("x")], outputs=outputs)
        with pytest.raises(UsageError, match=says):
            run(model, x=X)
    model = load(script(tmp_path, Two()), inputs=[spec("x"), spec("y")], outputs=[spec("d")])
    with pytest.raises(UsageError, match="gives 2 tensors, and 1 outputs"):
        run(model, x=X, y=X)


class Looks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 2)

    def forward(self, x):
        return self.table(x).sum(1)


class Reshapes(torch.nn.Module):
    def forward(self, x):
        return x.reshape(-1, 3)


class Fills(torch.nn.Module):
    def forward(self, x):
        return torch.zeros([int(x[0])])


class Asserts(torch.nn.Module):
    def forward(self, x):
        assert bool((x > 0).all()), "31337"
        return x


FAILING = [
    (Looks, spec("x", (-1,), "int64"), np.array([1]), np.array([31337])),
    (Reshapes, spec("x", (-1,)), np.zeros(3, np.float32), np.zeros(4, np.float32)),
    (Asserts, spec("x", (-1,)), np.ones(3, np.float32), np.zeros(3, np.float32)),
]


@pytest.mark.parametrize(("kind", "x", "good", "bad"), FAILING, ids=["index", "shape", "assert"])
def test_whose_fault_it_is(load, tmp_path, kind, x, good, bad):
    model = load(script(tmp_path, kind()), inputs=[x], outputs=[spec("y", None)])
    with pytest.raises((RuntimeError, torch.jit.Error)):  # nothing has shown yet that it works
        model.run("serving_default", {"x": bad if kind is Asserts else bad[None]}, ("y",))
    if kind is Looks:
        good, bad = good[None], bad[None]
    model.run("serving_default", {"x": good}, ("y",))
    with pytest.raises(RequestError, match=r"^The model cannot compute with these values\.$") as caught:
        model.run("serving_default", {"x": bad}, ("y",))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.__cause__ is None


def test_an_exported_program_checks_too(load, tmp_path):
    path = export(tmp_path, Looks(), torch.zeros(2, 1, dtype=torch.int64), shapes={"x": {0: ROWS}})
    model = load(path)
    run(model, x=np.array([[1]]))
    with pytest.raises(RequestError) as caught:
        run(model, x=np.array([[31337]]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "31337" not in caught.value.message


def test_memory_that_is_not_there_is_not_the_models_fault(load, tmp_path):
    model = load(
        script(tmp_path, Fills()), inputs=[spec("x", (1,), "int64")], outputs=[spec("y", (-1,))]
    )
    with pytest.raises(RequestError) as caught:
        run(model, x=np.array([1 << 50]))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert run(model, x=np.array([2]))["y"].tolist() == [0, 0]


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


def test_weights_alone_are_no_program(load, tmp_path):
    torch.save(Layers().state_dict(), tmp_path / "m.pt")
    for backend in (None, "torch", "torchscript"):
        with pytest.raises(UsageError, match="weights without the program") as caught:
            load(tmp_path / "m.pt", backend)
        assert "torch.export" in caught.value.hint


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


def test_a_file_among_others(load, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(Layers().state_dict(), folder / "weights.pt")
    export(folder, Layers(), torch.zeros(2, 16))
    for backend, hint in (
        (None, "Say which file with file: …, or which loader with backend: …"),
        ("torch", "Say which: file: 'm.pt2', or one of 'weights.pt'"),
    ):
        with pytest.raises(UsageError) as caught:
            load(folder, backend)
        assert hint in caught.value.hint
    assert load(folder, file="m.pt2").platform == "pytorch_export"
    (folder / "weights.pt").unlink()
    (folder / "README.md").write_text("x")
    assert load(folder).platform == load(folder, "torch").platform == "pytorch_export"


def test_threads_are_those_of_the_model_that_runs(load, tmp_path):
    declared = {"inputs": [spec("x")], "outputs": [spec("y", (-1, 4))]}
    path = script(tmp_path, Layers())
    default = torch.get_num_threads()
    models = {number: load(path, threads=number, **declared) for number in (0, 1, 3)}

    def ask(_):
        for number in (1, 0, 3, 0, 1):
            run(models[number], x=X)
            # What it says is of the thread that asks.
            assert torch.get_num_threads() == (number or default)

    try:
        at_once(2, ask)
    finally:
        torch.set_num_threads(default)


def test_threads_at_once(load, tmp_path):
    module = Layers()
    declared = {"inputs": [spec("x")], "outputs": [spec("output0", (-1, 4))]}
    exported = export(tmp_path, module, torch.zeros(2, 16), shapes={"x": {0: ROWS}})
    for model in (load(script(tmp_path, module), **declared), load(exported)):

        def ask(number, model=model):
            for rows in range(1, 20):
                x = np.full((rows, 16), number, np.float32)
                expected = plain(module, torch.from_numpy(x)).numpy()
                np.testing.assert_allclose(run(model, x=x)["output0"], expected, rtol=1e-5)

        at_once(4, ask)


def test_requests_are_put_together(load, tmp_path):
    module = Layers()
    batched_together(
        load,
        export(tmp_path, module, torch.zeros(2, 16), shapes={"x": {0: ROWS}}),
        lambda x: plain(module, torch.from_numpy(x)).numpy(),
    )
    batched_together(
        load,
        script(tmp_path, module),
        lambda x: plain(module, torch.from_numpy(x)).numpy(),
        inputs=(spec("x"),),
        outputs=(spec("y", (-1, 4)),),
    )


class Large(torch.nn.Module):
    SIZE = 32 << 20

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(self.SIZE >> 2), requires_grad=False)

    def forward(self, x):
        return x + self.weight.sum()


@pytest.mark.parametrize("exported", [False, True], ids=["torchscript", "exported"])
def test_closing_frees_the_weights(load, tmp_path, exported):
    if exported:
        path, declared = export(tmp_path, Large(), torch.zeros(2, 16)), {}
    else:
        path = script(tmp_path, Large())
        declared = {"inputs": [spec("x")], "outputs": [spec("y")]}

    def make():
        model = load(path, **declared)
        load.made.clear()
        run(model, x=X)
        return model

    frees_what_it_held(make, Large.SIZE)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("packages are compiled with g++, which is not installed")
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
