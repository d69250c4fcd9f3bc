"""Models that come and go under load, clients that go away, and runs that never end."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress

import numpy as np
import pytest

from strongroom.errors import NotFound, ServerUnavailable
from strongroom.serving import repository
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, Limits, ModelConfig, VersionPolicy
from strongroom.serving.engine import Engine
from strongroom.serving.servable import Servable
from strongroom.serving.states import State
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec

X = np.ones((1, 4), np.float32)


class Model:
    """y = factor · x; says what is wrong with how it is used."""

    platform = "test"

    def __init__(self, factor=1.0, work=None):
        specs = [{n: TensorSpec(n, "float32", (-1, 4))} for n in "xy"]
        self.signatures = {"serving_default": Signature(*specs, batched=True)}
        self.factor, self.work = factor, work
        self.running, self.closed, self.sizes = 0, 0, []
        self.lock = threading.Lock()

    def run(self, signature, inputs, outputs):
        with self.lock:
            assert not self.closed, "it runs after it was closed"
            self.running += 1
            self.sizes.append(len(inputs["x"]))
        try:
            if self.work:
                self.work(inputs["x"])
            return {"y": inputs["x"] * np.float32(self.factor)}
        finally:
            with self.lock:
                self.running -= 1

    def close(self):
        with self.lock:
            assert not self.running, "it is closed while it runs"
            assert not self.closed, "it is closed twice"
            self.closed += 1


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def serve(place):
    """An engine with one model "m" in a directory of versions; all that it has loaded."""
    engines = []

    def make(make_model=Model, *, close=5, poll=0.01, **options):
        made = []

        def load(config, version, location):
            made.append(make_model())
            return Servable(config, version, made[-1])

        engine = Engine([ModelConfig("m", str(place), **options)], load, poll=poll)
        engines.append((engine, close))
        engine.start()
        return engine, made

    yield make
    for engine, seconds in engines:
        engine.close(seconds)


def add(place, number, content=b"x"):
    folder = place / f".{number}"
    folder.mkdir()
    (folder / "model.sealed").write_bytes(content)
    folder.rename(place / str(number))


def remove(place, number):
    (place / str(number)).rename(place / f".gone-{number}")


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def ask(engine, size=1, **options):
    return engine.infer(Call("m", {"x": np.ones((size, 4), np.float32)}, **options))


def code_of(function, *arguments, **options):
    with pytest.raises(RequestError) as caught:
        function(*arguments, **options)
    return caught.value.code


class Asking:
    """Threads, and an event loop, that ask all the time."""

    def __init__(self, engine, threads=2, allowed=()):
        self.engine, self.allowed = engine, allowed
        self.stop, self.failures, self.answers = threading.Event(), [], 0
        targets = [self._sync] * threads + [lambda: asyncio.run(self._loop())]
        self.threads = [threading.Thread(target=one) for one in targets]

    def __enter__(self):
        for one in self.threads:
            one.start()
        return self

    def __exit__(self, *exc_info):
        self.stop.set()
        for one in self.threads:
            one.join(60)
            assert not one.is_alive()

    def _note(self, error):
        if not (isinstance(error, RequestError) and error.code in self.allowed):
            self.failures.append(error)

    def _sync(self):
        while not self.stop.is_set():
            try:
                ask(self.engine)
                self.answers += 1
            except Exception as error:
                self._note(error)
                time.sleep(0.001)

    async def _loop(self):
        async def one():
            while not self.stop.is_set():
                try:
                    await self.engine.infer_async(Call("m", {"x": X}))
                    self.answers += 1
                except Exception as error:
                    self._note(error)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(one() for _ in range(4)))


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
def test_two_hundred_swaps_without_a_failed_request(serve, place, batching):
    add(place, 1)
    engine, made = serve(batching=batching)
    until(engine.ready)
    with Asking(engine) as asking:
        for number in range(2, 202):
            add(place, number)
            until(lambda wanted=number: ask(engine).version == wanted)
            remove(place, number - 1)
    assert not asking.failures
    assert asking.answers > 200
    until(lambda: [one.closed for one in made] == [1] * 200 + [0])
    assert [one.version for one in engine.status("m")][:2] == [201, 200]
    assert len(engine.status("m")) <= 18


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
def test_everything_at_once(serve, place, batching):
    """Load, unload, reconfigure and new versions from several threads, under load."""
    add(place, 1)
    engine, made = serve(batching=batching)
    until(engine.ready)
    config = engine.config("m")
    configs = [
        config,
        ModelConfig("m", str(place), versions=VersionPolicy(all=True), batching=batching),
        ModelConfig("m", str(place), batching=Batching(2), limits=Limits(1)),
    ]
    wrong = []

    def disturb(seed):
        chosen = random.Random(seed)
        for _ in range(25):
            try:
                what = chosen.randrange(4)
                if what == 0:
                    engine.unload("m")
                elif what == 1:
                    engine.load("m")
                elif what == 2:
                    engine.reconfigure([chosen.choice(configs)])
                else:
                    engine.reconfigure([])
                    engine.reconfigure([config])
            except RequestError as error:
                if error.code not in (Code.UNAVAILABLE, Code.NOT_FOUND):
                    wrong.append(error)

    disturbing = [threading.Thread(target=disturb, args=(seed,)) for seed in range(3)]
    with Asking(engine, allowed=(Code.UNAVAILABLE, Code.NOT_FOUND)) as asking:
        for one in disturbing:
            one.start()
        for number in range(2, 10):
            add(place, number)
            time.sleep(0.02)
        for one in disturbing:
            one.join(60)
            assert not one.is_alive()
        engine.reconfigure([config])
        engine.load("m")
        until(lambda: engine.status("m")[0].state is State.AVAILABLE)
    assert not asking.failures
    assert not wrong
    until(lambda: sum(not one.closed for one in made) == 1)
    assert ask(engine).version == 9
    engine.close(60)
    assert all(one.closed == 1 for one in made)


def test_a_close_waits_for_what_runs_and_refuses_the_rest(serve, place):
    add(place, 1)
    running, go = threading.Event(), threading.Event()
    engine, (*_,) = serve(lambda: Model(2.0, lambda x: running.set() or go.wait(60)))
    until(engine.ready)
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(engine).outputs["y"][0, 0]))
    thread.start()
    assert running.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: not engine._repository.available("m"))
    assert code_of(ask, engine) is Code.UNAVAILABLE
    assert closing.is_alive()
    go.set()
    thread.join()
    closing.join(60)
    assert found == [2.0]
    assert engine.status("m")[0].state is State.END


def test_a_close_while_a_model_is_loaded(serve, place):
    go = threading.Event()

    def slow():
        assert go.wait(60)
        return Model()

    add(place, 1)
    engine, made = serve(slow)
    until(lambda: engine.status("m"))
    threading.Timer(0.1, go.set).start()
    engine.close(60)
    assert [one.closed for one in made] == [1]


def threads():
    return {one for one in threading.enumerate() if one.is_alive()}


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
def test_no_thread_is_left(serve, place, batching):
    before = threads()
    add(place, 1)
    engine, made = serve(lambda: Model(work=lambda x: time.sleep(0.002)), batching=batching)
    until(engine.ready)
    with Asking(engine):
        time.sleep(0.1)
        add(place, 2)
        until(lambda: ask(engine).version == 2)
    engine.unload("m")
    engine.load("m")
    engine.close(5)
    until(lambda: threads() <= before)
    assert all(one.closed for one in made)


def test_a_model_that_never_returns(serve, place, monkeypatch):
    """Its requests end by their deadlines, another version takes over, and closing is bounded."""
    stuck = threading.Event()
    models = iter([Model(work=lambda x: stuck.wait(60)), Model(3.0)])
    monkeypatch.setattr(repository, "_UNLOAD_SECONDS", 0.1)
    add(place, 1)
    engine, made = serve(lambda: next(models), limits=Limits(concurrency=1), batching=Batching(4))
    until(engine.ready)
    try:
        while not made[0].sizes:  # a busy machine may not have begun
            assert code_of(ask, engine, deadline=time.monotonic() + 0.05) is Code.DEADLINE_EXCEEDED
        add(place, 2)
        until(lambda: engine.describe("m").version == 2)
        assert ask(engine).outputs["y"][0, 0] == 3
        until(lambda: engine.status("m", 1)[0].state is State.UNLOADING)
        assert code_of(engine.unload, "m") is Code.DEADLINE_EXCEEDED
        began = time.monotonic()
        engine.close(0.2)
        assert time.monotonic() - began < 30
    finally:
        stuck.set()
    until(lambda: made[0].closed)


def test_a_process_ends_though_a_model_does_not(tmp_path):
    """The threads of a stuck model do not keep the process from ending."""
    (tmp_path / "m").write_bytes(b"x")
    script = f"""
import sys, time
sys.path.insert(0, {str(sys.path[0])!r})
from test_engine_races import *
import asyncio
engine = Engine(
    [ModelConfig("m", {str(tmp_path / "m")!r})],
    lambda config, version, location: Servable(config, version, Model(work=lambda x: time.sleep(600))),
)
engine.start()
until(engine.ready)
call = Call("m", {{"x": X}}, deadline=time.monotonic() + 0.1)
try:
    asyncio.run(engine.infer_async(call))
except RequestError as error:
    print(error.code.name)
engine.close(0.1)
"""
    environment = {"PYTHONPATH": str(__file__.rpartition("/")[0])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.stdout, done.returncode) == ("DEADLINE_EXCEEDED\n", 0), done.stderr


def test_clients_that_go_away(serve, place):
    """What nobody waits for any more leaves the queue, and is not run."""
    go = threading.Event()
    add(place, 1)
    engine, made = serve(
        lambda: Model(work=lambda x: go.wait(60)), limits=Limits(concurrency=1, queue=4)
    )
    until(engine.ready)

    async def scenario():
        tasks = [asyncio.create_task(engine.infer_async(Call("m", {"x": X}))) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError) as caught:
            await engine.infer_async(Call("m", {"x": X}))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        for one in tasks[1:]:
            one.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        again = asyncio.create_task(engine.infer_async(Call("m", {"x": X})))
        await asyncio.sleep(0.05)
        go.set()
        return [(await one).version for one in (tasks[0], again)]

    assert asyncio.run(scenario()) == [1, 1]
    assert made[0].sizes == [1, 1]


@pytest.mark.parametrize("how", ["cancelled", "flag"])
def test_clients_of_a_batch_that_go_away(serve, place, how):
    go = threading.Event()
    add(place, 1)
    engine, made = serve(
        lambda: Model(work=lambda x: go.wait(60)),
        limits=Limits(concurrency=1, queue=4),
        batching=Batching(16),
    )
    until(engine.ready)

    async def scenario():
        calls = [Call("m", {"x": X}) for _ in range(5)]
        first = asyncio.create_task(engine.infer_async(calls[0]))
        while not made[0].sizes:
            await asyncio.sleep(0.001)
        tasks = [asyncio.create_task(engine.infer_async(one)) for one in calls[1:]]
        await asyncio.sleep(0.05)
        for call, task in zip(calls[1:3], tasks[:2], strict=True):
            if how == "flag":
                call.cancelled = True
            else:
                task.cancel()
        await asyncio.sleep(0.05)
        if how == "cancelled":  # their places in the queue are free
            tasks.append(asyncio.create_task(engine.infer_async(Call("m", {"x": X}))))
            await asyncio.sleep(0.05)
        go.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    first, one, two, *others = asyncio.run(scenario())
    for gone in (one, two):
        assert isinstance(gone, asyncio.CancelledError if how == "cancelled" else RequestError)
        assert how == "cancelled" or gone.code is Code.CANCELLED
    assert [answer.version for answer in (first, *others)] == [1] * (1 + len(others))
    assert made[0].sizes == [1, len(others)]


def test_a_slow_run_does_not_hold_up_the_loop_again(serve, place):
    """Values decide how long this model runs: the event loop runs it no more once it was slow."""
    in_the_loop = []

    def work(x):
        in_the_loop.append(threading.current_thread() is threading.main_thread())
        if x[0, 0] < 0:
            time.sleep(0.3)

    add(place, 1)
    engine, _ = serve(lambda: Model(work=work))
    until(engine.ready)

    async def run(x):
        await engine.infer_async(Call("m", {"x": x}))
        return in_the_loop[-1]

    async def scenario():
        assert not await run(X)  # how long it takes is not known
        end = time.monotonic() + 60
        while not await run(X):
            assert time.monotonic() < end
        assert not await run(np.ones((50, 4), np.float32))  # larger than what was quick
        while not await run(-X):  # one that a busy machine held up is slow, too, and pays for it
            while not await run(X):
                assert time.monotonic() < end
        assert not await run(X)
        assert not await run(-X)

    asyncio.run(scenario())


def test_batches_of_any_sizes(serve, place):
    """More examples than a batch takes run alone, none is as good as some, and parts come back right."""
    add(place, 1)
    engine, made = serve(
        lambda: Model(2.0, lambda x: time.sleep(0.005)),
        batching=Batching(8, delay=0.005),
        limits=Limits(concurrency=2),
    )
    until(engine.ready)
    chosen = random.Random(1)
    sizes = [chosen.choice([0, 1, 2, 3, 7, 8, 9, 20]) for _ in range(100)]

    async def one(number, size):
        x = np.full((size, 4), number, np.float32)
        answer = await engine.infer_async(Call("m", {"x": x}))
        return np.array_equal(answer.outputs["y"], 2 * x)

    async def scenario():
        return await asyncio.gather(*(one(number, size) for number, size in enumerate(sizes)))

    assert all(asyncio.run(scenario()))
    assert sum(made[0].sizes) == sum(sizes)
    assert {size for size in made[0].sizes if size > 8} <= {9, 20}
    assert len(made[0].sizes) < len(sizes)


def test_what_is_wrong_with_one_of_a_batch_is_its_own(serve, place):
    def refuse(x):
        time.sleep(0.01)
        if (x < 0).any():
            raise ValueError("negative")

    add(place, 1)
    engine, _ = serve(lambda: Model(work=refuse), batching=Batching(8), limits=Limits(concurrency=1))
    until(engine.ready)

    async def scenario():
        values = [1, 2, -1, 3, 4]
        calls = [Call("m", {"x": np.full((1, 4), one, np.float32)}) for one in values]
        return await asyncio.gather(*(engine.infer_async(one) for one in calls), return_exceptions=True)

    found = asyncio.run(scenario())
    assert [one.outputs["y"][0, 0] for one in found if not isinstance(one, Exception)] == [1, 2, 3, 4]
    assert found[2].code is Code.INTERNAL


def test_a_model_that_mixes_examples_is_run_for_each(serve, place):
    class Mixing(Model):
        def run(self, signature, inputs, outputs):
            time.sleep(0.005)
            return {"y": super().run(signature, inputs, outputs)["y"][:1]}

    add(place, 1)
    engine, _ = serve(Mixing, batching=Batching(8), limits=Limits(concurrency=1))
    until(engine.ready)

    async def scenario():
        calls = [Call("m", {"x": np.full((1, 4), one, np.float32)}) for one in range(6)]
        return await asyncio.gather(*(engine.infer_async(one) for one in calls))

    assert [one.outputs["y"][0, 0] for one in asyncio.run(scenario())] == list(range(6))


def test_text_in_batches(serve, place):
    class Upper(Model):
        def __init__(self):
            super().__init__(work=lambda x: time.sleep(0.01))
            specs = [{n: TensorSpec(n, "bytes", (-1, -1))} for n in "xy"]
            self.signatures = {"serving_default": Signature(*specs, batched=True)}

        def run(self, signature, inputs, outputs):
            self.sizes.append(len(inputs["x"]))
            self.work(None)
            texts = [one.upper() for one in inputs["x"].flat]
            return {"y": np.array(texts, object).reshape(inputs["x"].shape)}

    add(place, 1)
    engine, made = serve(Upper, batching=Batching(64), limits=Limits(concurrency=1))
    until(engine.ready)

    async def scenario():
        # Of two widths, which do not fit together.
        values = [np.array([[b"a%d\0" % n] * (1 + n % 2)], object) for n in range(40)]
        return await asyncio.gather(*(engine.infer_async(Call("m", {"x": x})) for x in values))

    for number, answer in enumerate(asyncio.run(scenario())):
        assert answer.outputs["y"].tolist() == [[b"A%d\0" % number] * (1 + number % 2)]
    assert len(made[0].sizes) < 10


def test_a_failed_model_whose_files_are_gone_costs_nothing(place, tmp_path):
    """Where a retry was due and the files are gone, the thread that looks after it all rests."""
    add(place, 1)

    def away(config, version, location):
        raise ServerUnavailable("The key server does not answer.")

    engine = Engine([ModelConfig("m", str(place))], away, poll=30)
    engine.start()
    try:
        until(lambda: engine.status("m") and engine.status("m")[0].code)
        place.rename(tmp_path / "elsewhere")
        model = engine._repository._models["m"]
        until(lambda: model.problem is not None)
        looked = model.looked
        time.sleep(0.3)
        assert model.looked - looked < 3
        assert code_of(ask, engine) is Code.UNAVAILABLE
    finally:
        engine.close(5)


def test_a_path_that_no_system_takes_harms_no_other_model(place):
    add(place, 1)
    models = [ModelConfig("bad", "a\0b"), ModelConfig("m", str(place))]
    engine = Engine(models, lambda config, version, location: Servable(config, version, Model()))
    engine.start()
    try:
        until(lambda: engine.status("m") and engine.status("m")[0].state is State.AVAILABLE)
        until(lambda: engine._repository._models["bad"].problem)
        assert ask(engine).version == 1
        assert not engine.ready()
    finally:
        engine.close(5)


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError(), ValueError("secret")], ids=repr)
def test_whatever_loading_raises_is_in_the_status(place, error):
    def fail(config, version, location):
        raise error

    add(place, 1)
    told = []
    engine = Engine([ModelConfig("m", str(place))], fail, told=lambda *args: (told.append(args), 1 / 0))
    engine.start()
    try:
        until(lambda: engine.status("m") and engine.status("m")[0].state is State.END)
        (status,) = engine.status("m")
        assert status.code == Code.INTERNAL
        assert status.message == f"Version 1 of m cannot be loaded: {type(error).__name__}"
        assert [one[1].state for one in told] == [State.LOADING, State.END]
    finally:
        engine.close(5)


def test_each_try_is_told_once_with_its_own_reason(place, monkeypatch):
    monkeypatch.setattr("strongroom.serving.keeper._FIRST_RETRY", 0.05)
    tries = iter(
        [
            ServerUnavailable("It is away."),
            NotFound("The key file is missing.", hint="Mount it."),
        ]
    )

    def load(config, version, location):
        for error in tries:
            raise error
        return Servable(config, version, Model())

    add(place, 1)
    told = []
    engine = Engine([ModelConfig("m", str(place))], load, told=lambda _, status: told.append(status))
    engine.start()
    try:
        until(lambda: told and told[-1].state is State.AVAILABLE)
    finally:
        engine.close(5)
    reason = "Version 1 of m cannot be loaded: "
    assert [(one.state, one.code, one.message) for one in told[:4]] == [
        (State.LOADING, 0, ""),
        (State.LOADING, Code.UNAVAILABLE, reason + "It is away."),
        (State.LOADING, Code.NOT_FOUND, reason + "The key file is missing."),
        (State.AVAILABLE, 0, ""),
    ]
    assert [(one.why.get("error"), one.why.get("hint")) for one in told[:4]] == [
        (None, None),
        ("ServerUnavailable", None),
        ("NotFound", "Mount it."),
        (None, None),
    ]


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
@pytest.mark.parametrize("how", ["answered", "failed", "late"])
def test_what_was_sent_is_free_when_it_is_answered(serve, place, batching, how):
    """Not when the garbage collector comes by: requests may be large."""

    def work(x):
        if how == "failed":
            raise ValueError("no")
        if how == "late":
            time.sleep(0.1)

    add(place, 1)
    engine, _ = serve(lambda: Model(work=work), batching=batching)
    until(engine.ready)

    def call(seen):
        x = np.ones((1, 4), np.float32)
        seen.append(weakref.ref(x))
        deadline = time.monotonic() + (0.03 if how == "late" else 5)
        return Call("m", {"x": x}, deadline=deadline)

    async def scenario(seen):
        with suppress(RequestError):
            await engine.infer_async(call(seen))

    seen = []
    gc.collect()
    gc.disable()
    try:
        asyncio.run(scenario(seen))
        with suppress(RequestError):
            engine.infer(call(seen))
        until(lambda: all(one() is None for one in seen))
    finally:
        gc.enable()
