"""Models come, answer and go, whatever happens to their files."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from strongroom.errors import NotFound, PayloadTampered, ServerUnavailable
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, Limits, ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.servable import Servable
from strongroom.serving.states import State
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec

X = np.arange(16, dtype=np.float32).reshape(1, 16)


class Doubling:
    platform = "test"

    def __init__(self, factor=2.0, wait=0.0):
        shape = (-1, 16)
        self.signatures = {
            "serving_default": Signature(
                {"x": TensorSpec("x", "float32", shape)},
                {"y": TensorSpec("y", "float32", shape)},
                batched=True,
            )
        }
        self.factor, self.wait, self.sizes, self.closed = factor, wait, [], False

    def run(self, signature, inputs, outputs):
        assert not self.closed
        time.sleep(self.wait)
        self.sizes.append(len(inputs["x"]))
        return {"y": inputs["x"] * self.factor}

    def close(self):
        self.closed = True


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "m.sealed"
    path.write_bytes(b"1")
    return path


@pytest.fixture
def serve(place):
    """An engine with one model "m"; ``load`` is asked for each version."""
    engines = []

    def make(load, **options):
        def servable(config, version, location):
            return Servable(config, version, load(version))

        engine = Engine([ModelConfig("m", str(place), **options)], servable, poll=0.02)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for one in engines:
        one.close(5)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def replace(place, content):
    new = place.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, place)


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
def test_an_answer(serve, batching):
    engine = serve(lambda version: Doubling(), batching=batching)
    until(engine.ready)
    answer = engine.infer(Call("m", {"x": X}))
    assert np.array_equal(answer.outputs["y"], 2 * X)
    assert (answer.model, answer.version, answer.signature) == ("m", 1, "serving_default")
    again = asyncio.run(engine.infer_async(Call("m", {"x": X})))
    assert np.array_equal(again.outputs["y"], 2 * X)
    ((version, numbers),) = engine.statistics("m")
    assert (version, numbers.requests, numbers.failed, numbers.examples) == (1, 2, 0, 2)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "Input x is missing"),
        ({"x": X, "z": X}, "no input 'z'"),
        ({"x": X.astype(np.float64)}, "has dtype float64, and the model wants float32"),
        ({"x": X[0]}, r"has shape \[16\], and the model wants \[-1, 16\]"),
        ({"x": X[:, :3]}, r"has shape \[1, 3\]"),
    ],
    ids=["missing", "unknown", "dtype", "rank", "shape"],
)
def test_inputs_that_do_not_fit(serve, inputs, says):
    engine = serve(lambda version: Doubling())
    until(engine.ready)
    with pytest.raises(RequestError, match=says) as caught:
        engine.infer(Call("m", inputs))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert engine.statistics("m")[0][1].failed == 1


def test_a_replaced_file_is_served_without_a_failed_request(serve, place):
    made = []

    def load(version):
        made.append(Doubling(factor=1.0 + len(made)))
        return made[-1]

    engine = serve(load)
    until(engine.ready)
    stop, failures, answers = threading.Event(), [], set()

    def ask():
        while not stop.is_set():
            try:
                answers.add(float(engine.infer(Call("m", {"x": X})).outputs["y"][0, 1]))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for one in threads:
        one.start()
    for round in range(5):
        replace(place, b"x" * (round + 2))
        until(lambda wanted=round: float(wanted + 2) in answers)
    stop.set()
    for one in threads:
        one.join()
    assert not failures
    until(lambda: [one.closed for one in made] == [True] * 5 + [False])


def test_a_bad_new_version_leaves_the_old_one(serve, place):
    def load(version):
        if place.read_bytes() == b"bad":
            raise PayloadTampered("weights", 3)
        return Doubling()

    engine = serve(load)
    until(engine.ready)
    replace(place, b"bad")
    time.sleep(0.2)
    assert engine.infer(Call("m", {"x": X})).version == 1
    replace(place, b"good")
    assert engine.ready()


def test_a_model_that_cannot_be_loaded_says_why(serve):
    def load(version):
        raise PayloadTampered("weights", 3)

    engine = serve(load)
    until(lambda: engine.status("m") and engine.status("m")[0].state is State.END)
    (status,) = engine.status("m")
    assert status.code == Code.DATA_LOSS
    assert "segment 3 does not authenticate" in status.message
    assert not engine.ready()
    # Whatever is wrong with the model, it is no client's fault.
    for version in (None, 1):
        with pytest.raises(RequestError, match="does not authenticate") as caught:
            engine.infer(Call("m", {"x": X}, version=version))
        assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailable("The key server does not answer."),
        NotFound("key.txt: no such file or directory."),
    ],
)
def test_what_may_be_there_later_is_tried_again(serve, error):
    tries = []

    def load(version):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise error
        return Doubling()

    engine = serve(load)
    until(lambda: engine.status("m") and engine.status("m")[0].code)
    with pytest.raises(RequestError, match=r"does not answer|no such file"):
        engine.infer(Call("m", {"x": X}))
    until(engine.ready)
    assert len(tries) == 3
    assert tries[1] - tries[0] > 0.4


def test_unload_and_load(serve):
    made = []

    def load(version):
        made.append(Doubling())
        return made[-1]

    engine = serve(load)
    until(engine.ready)
    engine.unload("m")
    assert made[0].closed
    with pytest.raises(RequestError, match="is not loaded") as caught:
        engine.infer(Call("m", {"x": X}))
    assert caught.value.code is Code.UNAVAILABLE
    engine.load("m")
    assert engine.infer(Call("m", {"x": X})).version == 1
    assert len(made) == 2


def test_requests_are_put_together(serve):
    go = threading.Event()

    class Held(Doubling):
        def run(self, signature, inputs, outputs):
            assert go.wait(60)
            return super().run(signature, inputs, outputs)

    model = Held()
    engine = serve(lambda version: model, batching=Batching(16), limits=Limits(concurrency=1, queue=64))
    until(engine.ready)
    found = {}

    def ask(number):
        x = np.full((1, 16), number, np.float32)
        found[number] = engine.infer(Call("m", {"x": x})).outputs["y"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for one in threads:
        one.start()
    # Whoever came while one ran is put together.
    until(lambda: engine.statistics("m")[0][1].waiting >= 16)
    go.set()
    for one in threads:
        one.join()
    assert all(np.array_equal(y, np.full((1, 16), 2.0 * n)) for n, y in found.items())
    assert sum(model.sizes) == 32
    assert max(model.sizes) == 16


@pytest.mark.parametrize("batching", [None, Batching(8, 0.0)], ids=["alone", "batched"])
@pytest.mark.parametrize("how", ["blocking", "loop"])
def test_a_full_queue_and_a_deadline(serve, batching, how):
    running, go_on = threading.Event(), threading.Event()

    class Held(Doubling):
        def run(self, signature, inputs, outputs):
            running.set()
            assert go_on.wait(60)
            return super().run(signature, inputs, outputs)

    model = Held()
    engine = serve(lambda version: model, batching=batching, limits=Limits(concurrency=1, queue=1))
    until(engine.ready)

    def ask(seconds):
        call = Call("m", {"x": X}, deadline=time.monotonic() + seconds)
        try:
            if how == "blocking":
                engine.infer(call)
            else:
                asyncio.run(engine.infer_async(call))
        except RequestError as error:
            return error.code
        return None

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, 60)
        assert running.wait(60)
        second = threads.submit(ask, 3)
        until(lambda: engine.statistics("m")[0][1].waiting)
        assert ask(60) is Code.RESOURCE_EXHAUSTED
        assert second.result(60) is Code.DEADLINE_EXCEEDED
        go_on.set()
        assert first.result(60) is None
    assert engine.infer(Call("m", {"x": X})).version == 1


def test_a_fault_of_the_model_is_not_told(serve):
    class Faulty(Doubling):
        def run(self, signature, inputs, outputs):
            raise RuntimeError(f"secret {inputs['x']}")

    engine = serve(lambda version: Faulty())
    until(engine.ready)
    with pytest.raises(RequestError, match=r"The model m failed \(RuntimeError\)\.$") as caught:
        engine.infer(Call("m", {"x": X}))
    assert caught.value.code is Code.INTERNAL
    assert caught.value.__cause__ is None


def test_an_unknown_model_version_and_label(serve):
    engine = serve(lambda version: Doubling(), labels={"stable": 1, "canary": 7})
    until(engine.ready)
    assert engine.infer(Call("m", {"x": X}, label="stable")).version == 1
    for wrong in ({"model": "n"}, {"version": 2}, {"label": "canary"}, {"label": "other"}):
        with pytest.raises(RequestError) as caught:
            engine.infer(Call(**({"model": "m", "inputs": {"x": X}} | wrong)))
        assert caught.value.code is Code.NOT_FOUND
