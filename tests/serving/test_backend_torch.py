"""PyTorch behind the server: TorchScript, and what holds for exported programs too."""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np
import pytest
import torch
import yaml
from backends import (
    LARGE,
    Loader,
    at_once,
    batched_together,
    frees_what_it_held,
    read_only,
    run,
)
from torch_models import ROWS, Identity, Layers, Looks, Two, X, export, plain, script, spec

from strongroom.errors import UsageError
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import DTYPES, TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture
def load(tmp_path):
    made = Loader(tmp_path)
    yield made
    made.close()


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


class HasNoForward(torch.nn.Module):
    @torch.jit.export
    def score(self, x):
        return x


def test_a_module_without_forward(load, tmp_path):
    with pytest.raises(UsageError, match="has no method forward"):
        load(script(tmp_path, HasNoForward()), inputs=[spec("x")], outputs=[spec("y")])


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


def test_memory_that_is_not_there_is_not_the_models_fault(load, tmp_path):
    model = load(
        script(tmp_path, Fills()), inputs=[spec("x", (1,), "int64")], outputs=[spec("y", (-1,))]
    )
    with pytest.raises(RequestError) as caught:
        run(model, x=np.array([1 << 50]))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert run(model, x=np.array([2]))["y"].tolist() == [0, 0]


def test_weights_alone_are_no_program(load, tmp_path):
    torch.save(Layers().state_dict(), tmp_path / "m.pt")
    for backend in (None, "torch", "torchscript"):
        with pytest.raises(UsageError, match="weights without the program") as caught:
            load(tmp_path / "m.pt", backend)
        assert "torch.export" in caught.value.hint


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
    SIZE = LARGE

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
