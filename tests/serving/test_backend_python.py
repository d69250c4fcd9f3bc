"""A class of the user's own: from the server's environment, and never out of the sealed model."""

from __future__ import annotations

import sys
from base64 import urlsafe_b64encode

import numpy as np
import pytest
from served_class import Scorer

import strongroom
from strongroom.errors import UsageError
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.loading import load_servable
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import TensorSpec

KEY = bytes(range(32))
SPECS = {"inputs": (TensorSpec("x", "float32", (-1,)),), "outputs": (TensorSpec("y", "int32", (-1,)),)}


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEY", urlsafe_b64encode(KEY).decode())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "factor.txt").write_text("2")
    (folder / "evil_in_model.py").write_text("class Evil: pass")
    made = []

    def do(name, batching=None, specs=None, **options):
        sealed = tmp_path / "sealed"
        if not sealed.exists():
            strongroom.seal(folder, sealed, key=KEY)
        options = {"class": name, **options} if name else options
        config = ModelConfig(
            "m", str(sealed), backend="python", options=options, batching=batching, **(specs or {})
        )
        made.append(load_servable(config, 1, config.path))
        return made[-1]

    yield do
    for one in made:
        one.close()


@pytest.mark.parametrize("batching", [None, Batching(4)], ids=["alone", "batched"])
def test_a_class_answers(load, batching):
    servable = load("served_class:Scorer", batching, scale=10)
    answer = servable.infer(Call("m", {"text": np.array([b"abc", "ü".encode()], object)}))
    assert answer.outputs["score"].tolist() == [60, 40]
    assert answer.outputs["score"].dtype == np.float32
    assert answer.outputs["upper"].tolist() == [b"ABC", "Ü".encode()]
    closed = Scorer.closed
    servable.close()
    assert Scorer.closed == closed + 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (None, "needs the option class"),
        ("served_class", "needs the option class"),
        ("served_class:", "needs the option class"),
        (":Scorer", "needs the option class"),
        (7, "needs the option class"),
        ("served_class:Scorer.x", "needs the option class"),
        ("served_class:Other", "is no class"),
        ("served_class:FUNCTION", "is no class"),
        ("no_such_module_here:Scorer", "there is no module no_such_module_here"),
        ("evil_in_model:Evil", "there is no module evil_in_model"),
        ("served_class:WithoutSpecs", "does not say its inputs"),
        ("served_class:WithoutPredict", "has no method predict"),
        ("served_class:BatchedWrongly", "not every shape of it has -1"),
    ],
    ids=range(13),
)
def test_a_class_that_cannot_be_served(load, name, says):
    with pytest.raises(UsageError, match=says):
        load(name)
    assert "evil_in_model" not in sys.modules


def test_options_that_the_class_does_not_take(load):
    with pytest.raises(TypeError):
        load("served_class:Scorer", other=1)


def test_outputs_are_what_the_specs_say(load):
    servable = load("served_class:WithoutSpecs", specs=SPECS)
    # 0.5 is no int32, and is not made one.
    with pytest.raises(RequestError, match="TypeError") as caught:
        servable.infer(Call("m", {"x": np.zeros(1, np.float32)}))
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize("batching", [None, Batching(4)], ids=["alone", "batched"])
def test_a_class_that_leaves_does_not_end_the_server(load, batching):
    servable = load("served_class:Leaving", batching, specs=SPECS)
    for _ in range(3):
        with pytest.raises(RequestError, match="SystemExit") as caught:
            servable.infer(Call("m", {"x": np.zeros(1, np.float32)}))
        assert caught.value.code is Code.INTERNAL
