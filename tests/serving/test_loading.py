"""From a sealed model on the disk to answers, and why not."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode

import numpy as np
import pytest
from onnx_graphs import FLOAT, doubling, graph, tensor

import strongroom
from strongroom.errors import (
    AccessError,
    IntegrityError,
    NoMatchingRecipient,
    NotFound,
    NotSealed,
    Truncated,
    UnknownFramework,
    UsageError,
)
from strongroom.serving import loading
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.loading import load_servable
from strongroom.serving.states import State
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec
from strongroom.serving.warmup import random_inputs, warm_up

KEY = bytes(range(32))
X = np.arange(16, dtype=np.float32).reshape(1, 16)
DECLARED = (TensorSpec("x", "float32", (-1, 16)),)


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(urlsafe_b64encode(KEY))
    return str(path)


@pytest.fixture
def sealed(tmp_path):
    plain = tmp_path / "model.onnx"
    plain.write_bytes(doubling())
    path = tmp_path / "model.sealed"
    strongroom.seal(plain, path, key=KEY)
    return path


@pytest.fixture
def load(sealed, key):
    made = []

    def do(**options):
        config = ModelConfig("m", **({"path": str(sealed), "key": key} | options))
        made.append(load_servable(config, 3, config.path))
        return made[-1]

    yield do
    for one in made:
        one.close()


@pytest.fixture
def logged(monkeypatch):
    lines = []

    class Log:
        def __getattr__(self, level):
            return lambda event, **members: lines.append((level, event, members))

    monkeypatch.setattr(loading, "log", Log())
    return lines


@pytest.mark.parametrize("batching", [None, Batching(4)], ids=["alone", "batched"])
def test_a_sealed_model_answers(load, logged, batching):
    servable = load(batching=batching, inputs=DECLARED, threads=1)
    answer = servable.infer(Call("m", {"x": X}))
    assert np.array_equal(answer.outputs["y"], 2 * X)
    assert (answer.version, servable.platform) == (3, "onnxruntime_onnx")
    assert [(level, event) for level, event, _ in logged] == [("info", "loaded")]
    assert servable.statistics().requests == 1  # the warm-up does not count


def test_the_key_may_come_from_the_environment(load, key, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEY_FILE", key)
    assert load(key=None).infer(Call("m", {"x": X})).version == 3


def test_a_plain_model_is_refused(load, tmp_path):
    with pytest.raises(NotSealed, match="only sealed models are served") as caught:
        load(path=str(tmp_path / "model.onnx"))
    assert "strongroom seal" in caught.value.hint
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotSealed, match="only sealed models are served"):
        load(path=str(tmp_path / "folder"))
    with pytest.raises(NotFound):
        load(path=str(tmp_path / "none"))


def changed(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda content: changed(content, len(content) - 1), IntegrityError),
        (lambda content: changed(content, 40), Exception),
        (lambda content: content[:-1], IntegrityError),
        (lambda content: content[: len(content) // 2], Truncated),
        (lambda content: content[:20], Truncated),
        (lambda content: b"", NotSealed),
    ],
    ids=["payload", "header", "last byte", "half", "header cut", "empty"],
)
def test_a_damaged_model_is_not_loaded(load, sealed, damage, error):
    sealed.write_bytes(damage(sealed.read_bytes()))
    with pytest.raises(error) as caught:
        load()
    assert isinstance(caught.value, strongroom.StrongroomError)


def test_another_key(load, tmp_path, monkeypatch):
    (tmp_path / "other").write_bytes(urlsafe_b64encode(bytes(32)))
    with pytest.raises(NoMatchingRecipient):
        load(key=str(tmp_path / "other"))
    monkeypatch.delenv("STRONGROOM_KEY", raising=False)
    monkeypatch.delenv("STRONGROOM_KEY_FILE", raising=False)
    with pytest.raises(AccessError):
        load(key=None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"inputs": (TensorSpec("z", "float32", None),)}, "The inputs of the model are x, and not z"),
        ({"inputs": (TensorSpec("x", "int8", None),)}, r"input x of the model is float32 \[-1, 16\]"),
        ({"outputs": (TensorSpec("y", "float32", (-1, 4)),)}, "output y of the model"),
        ({"outputs": (TensorSpec("y", "float32", (16,)),)}, "output y of the model"),
        ({"file": "other.onnx"}, "other.onnx"),
    ],
    ids=["name", "dtype", "shape", "rank", "file"],
)
def test_a_model_that_is_not_what_is_configured(load, options, says):
    with pytest.raises(UsageError, match=says):
        load(**options)


def test_no_backend(load, sealed, tmp_path):
    with pytest.raises(UnknownFramework, match="caffe cannot be served"):
        load(backend="caffe")
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    strongroom.seal(tmp_path / "weights.safetensors", sealed, key=KEY, overwrite=True)
    with pytest.raises(UnknownFramework):
        load()


def test_a_warm_up_that_fails_does_no_harm(load, sealed, tmp_path, logged):
    content = graph(
        [("Reshape", ["x", "s"], ["y"], {})],
        [tensor("x"), tensor("s", 7, (2,))],
        [tensor("y", FLOAT, None)],
    )
    (tmp_path / "model.onnx").write_bytes(content)
    strongroom.seal(tmp_path / "model.onnx", sealed, key=KEY, overwrite=True)
    servable = load()
    ((level, event, members),) = [one for one in logged if one[1] != "loaded"]
    assert (level, event, members["model"], members["version"]) == ("warning", "warm-up failed", "m", 3)
    shape = np.array([4, 4])
    assert servable.infer(Call("m", {"x": X, "s": shape})).outputs["y"].shape == (4, 4)
    logged.clear()
    with pytest.raises(RequestError) as caught:
        servable.infer(Call("m", {"x": X, "s": np.array([77, 77])}))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "77" not in str(logged) + caught.value.message


def test_warm_up_uses_inputs_that_fit():
    specs = {
        "f": TensorSpec("f", "bfloat16", (-1, 3, -1)),
        "i": TensorSpec("i", "int64", (-1,)),
        "b": TensorSpec("b", "bool", (-1, 2)),
        "t": TensorSpec("t", "bytes", (-1, 1)),
    }
    seen = []

    class Model:
        def __init__(self):
            outputs = {"y": TensorSpec("y", "int8", (-1,))}
            self.signatures = {"s": Signature(specs, outputs, batched=True)}

        def run(self, signature, inputs, outputs):
            seen.append((signature, {name: one.shape for name, one in inputs.items()}, outputs))

    warm_up(Model(), "s", 2, batch=8)
    assert [one[1]["f"] for one in seen] == [(1, 3, 1)] * 2 + [(8, 3, 1)] * 2
    assert seen[0][0] == "s"
    assert seen[0][2] == ("y",)
    inputs = random_inputs(Model().signatures["s"], 8)
    assert set(inputs["i"].tolist()) <= {0, 1}
    assert inputs["t"].tolist() == [[b"a"]] * 8
    scalar = Signature({"x": TensorSpec("x", "float32", None)}, {})
    assert random_inputs(scalar)["x"].shape == ()


def test_a_new_version_that_is_damaged_leaves_the_old_one(sealed, tmp_path, key):
    folder = tmp_path / "versions"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.sealed").write_bytes(sealed.read_bytes())
    engine = Engine([ModelConfig("m", str(folder), key=key)], load_servable, poll=0.02)
    engine.start()
    try:
        until(engine.ready)
        (folder / "tmp").mkdir()
        (folder / "tmp" / "model.sealed").write_bytes(sealed.read_bytes()[:-1])
        (folder / "tmp").rename(folder / "2")
        until(lambda: engine.status("m")[0].version == 2 and engine.status("m")[0].code)
        assert engine.status("m")[0].state is State.END
        assert engine.status("m")[0].code == Code.DATA_LOSS
        assert engine.infer(Call("m", {"x": X})).version == 1
        (folder / "3").mkdir()
        (folder / "3" / "model.onnx").write_bytes(doubling())
        until(lambda: engine.status("m")[0].version == 3 and engine.status("m")[0].code)
        assert "only sealed models are served" in engine.status("m")[0].message
        (folder / "3" / "model.onnx").write_bytes(sealed.read_bytes())
        until(lambda: engine.infer(Call("m", {"x": X})).version == 3)
    finally:
        engine.close(5)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
