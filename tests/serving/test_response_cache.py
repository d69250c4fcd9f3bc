"""Answers that are given again: only for the same request, to who may ask, while there is room and time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import ml_dtypes
import numpy as np
import pytest
from front_process import DOUBLED, PREDICT
from test_metrics import numbers

from strongroom.errors import UsageError
from strongroom.serving.batching import Work
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, Cache, Limits, ModelConfig
from strongroom.serving.config_files import read_models
from strongroom.serving.messages import message
from strongroom.serving.response_cache import ResponseCache
from strongroom.serving.servable import Servable
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import Signature, TensorSpec

X = np.arange(16, dtype=np.float32).reshape(1, 16)
DEFAULT = Cache()
SIZE = 768 + 2 * (256 + 64)
"""Of an answer: two outputs of 64 bytes each."""


class Counting:
    """Doubles, and says how often; what it gave it writes over with the next run."""

    platform = "test"

    def __init__(self):
        x, y, z = (TensorSpec(name, "float32", (-1, 16)) for name in "xyz")
        one = Signature({"x": x}, {"y": y, "z": z}, batched=True)
        self.signatures = {"serving_default": one, "other": one}
        self.runs, self.given = 0, []
        self.going, self.waiting = threading.Event(), threading.Event()
        self.going.set()
        self.failure = None
        self.reuses = True

    def run(self, signature, inputs, outputs):
        self.runs += 1
        self.waiting.set()
        assert self.going.wait(60)
        if self.failure is not None:
            raise self.failure
        for one in self.given if self.reuses else ():
            one[:] = -1
        self.given = [np.array(inputs["x"] * (2 + index)) for index, _ in enumerate(outputs)]
        return dict(zip(outputs, self.given, strict=True))

    def close(self):
        pass


@pytest.fixture
def make():
    made = []

    def servable(cache=DEFAULT, **options):
        model = Counting()
        made.append(Servable(ModelConfig("m", "nowhere", cache=cache, **options), 1, model))
        return made[-1], model

    yield servable
    for one in made:
        one.close()


def call(x=X, **options):
    return Call("m", {"x": x}, **options)


def infer(one, x=X, **options):
    return one.infer(call(x, **options)).outputs


def infer_async(one, x=X, **options):
    return asyncio.run(one.infer_async(call(x, **options))).outputs


@pytest.mark.parametrize("batching", [None, Batching(8)], ids=["alone", "batched"])
@pytest.mark.parametrize("ask", [infer, infer_async])
def test_what_was_asked_before(make, ask, batching):
    one, model = make(batching=batching)
    for _ in range(3):
        found = ask(one)
        assert np.array_equal(found["y"], 2 * X)
        assert np.array_equal(found["z"], 3 * X)
    assert model.runs == 1
    # The model has written over what it gave; the cache has its own.
    assert np.array_equal(ask(one, X + 1)["y"], 2 * (X + 1))
    assert np.array_equal(ask(one)["y"], 2 * X)
    assert model.runs == 2
    found = one.statistics()
    assert (found.requests, found.queued.number, found.batches.number) == (5, 2, 2)
    assert (found.cache.hits, found.cache.misses, found.cache.entries) == (3, 2, 2)
    with pytest.raises(ValueError, match="read-only"):
        ask(one)["y"][:] = 0


def test_without_a_cache_the_model_is_asked(make):
    one, model = make(cache=None)
    infer(one)
    infer(one)
    assert model.runs == 2
    assert one.statistics().cache is None


def test_part_of_a_batch_keeps_nothing_of_the_others(make):
    one, model = make(batching=Batching(8), limits=Limits(concurrency=1))
    model.going.clear()
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(infer, one, X - 1)
        assert model.waiting.wait(60)
        others = [threads.submit(infer, one, X + number) for number in range(5)]
        end = time.monotonic() + 60
        while one.statistics().waiting < 5:
            assert time.monotonic() < end
            time.sleep(0.005)
        model.going.set()
        for future in (first, *others):
            future.result(60)
    assert model.runs == 2
    found = one.statistics().cache
    assert found.bytes == 6 * SIZE
    assert np.array_equal(infer(one, X + 3)["y"], 2 * (X + 3))
    assert model.runs == 2


def key(inputs, signature="s", outputs=("y",)):
    call = Call("m", {name: np.asarray(one) for name, one in inputs.items()})
    return ResponseCache(Cache()).key(Work(call, signature, outputs, 1, 0.0))


def texts(*values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


def test_whatever_differs_is_another_request():
    base = np.arange(6, dtype=np.float32)
    zeros = np.zeros(2, np.float32)
    different = [
        key({"x": base}),
        key({"x": base}, "t"),
        key({"x": base}, outputs=("y", "z")),
        key({"x": base}, outputs=("z", "y")),
        key({"y": base}),
        key({"x": base.reshape(2, 3)}),
        key({"x": base.reshape(3, 2)}),
        key({"x": base.view(np.int32)}),
        key({"x": base.view(np.uint32)}),
        key({"x": base.view(ml_dtypes.bfloat16)}),
        key({"x": base.view(np.float16)}),
        key({"x": base + 1}),
        key({"x": base, "y": base}),
        key({"x": base[:3], "y": base[3:]}),
        key({"x": base[:2], "y": base[2:]}),
        key({"x": zeros}),
        key({"x": -zeros}),
        key({"x": zeros[:1]}),
        key({"x": zeros[0]}),
        key({"x": zeros[:0]}),
        key({"x": np.array([float("nan")], np.float32)}),
        key({"x": np.array([True, False])}),
        key({"x": texts(b"a", b"bc")}),
        key({"x": texts(b"ab", b"c")}),
        key({"x": texts(b"abc")}),
        key({"x": texts(b"abc", b"")}),
        key({"x": texts(b"", b"abc")}),
        key({"x": texts()}),
        key({"\ud800": base}),
    ]
    assert None not in different
    assert len(set(different)) == len(different)
    # Where the memory lies makes no difference.
    wide = np.zeros((6, 2), np.float32)
    wide[:, 0] = base
    assert key({"x": wide[:, 0]}) == key({"x": base}) == different[0]
    assert key({"x": base[::-1][::-1]}) == different[0]
    assert key({"y": base, "x": base}) == key({"x": base, "y": base})
    # What is no bytes is for no cache.
    assert key({"x": texts(b"a", "b")}) is None


def test_the_oldest_and_the_least_used_make_room(make):
    one, model = make(cache=Cache(bytes=3 * SIZE + 5))
    for number in (1, 2, 3, 1, 4):  # 2 goes
        infer(one, X * number)
    assert model.runs == 4
    for number in (1, 3, 4):
        infer(one, X * number)
    assert model.runs == 4
    infer(one, X * 2)
    assert model.runs == 5
    found = one.statistics().cache
    assert (found.entries, found.bytes, found.evicted) == (3, 3 * SIZE, 2)


def test_an_answer_larger_than_the_cache(make):
    one, model = make(cache=Cache(bytes=2000))
    infer(one)
    big = np.repeat(X, 100, axis=0)
    for _ in range(2):
        assert infer(one, big)["y"].shape == (100, 16)
    assert model.runs == 3
    infer(one)
    assert model.runs == 3
    assert one.statistics().cache.entries == 1


def test_answers_age(make):
    now = [100.0]
    cache = ResponseCache(Cache(seconds=10), clock=lambda: now[0])
    computed = []

    def ask(x):
        work = Work(call(x), "s", ("y",), 1, 1e9)
        return cache.answer(work, lambda work: computed.append(1) or {"y": x})

    ask(X)
    now[0] += 6
    ask(X + 1)
    ask(X)  # used anew, and no younger for it
    assert len(computed) == 2
    now[0] += 4
    ask(X + 1)
    assert len(computed) == 2
    # What is too old goes, though nobody asks for it.
    assert cache.numbers().entries == 1
    ask(X)
    assert len(computed) == 3
    assert cache.numbers().evicted == 0


@pytest.mark.parametrize("ask", [infer, infer_async])
def test_who_asks_the_same_meanwhile_waits_for_it(make, ask):
    one, model = make(limits=Limits(concurrency=4))
    model.going.clear()
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(infer, one)]
        assert model.waiting.wait(60)
        futures += [threads.submit(ask, one) for _ in range(3)]
        with pytest.raises(RequestError) as caught:
            ask(one, deadline=0.0)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        model.going.set()
        assert all(np.array_equal(future.result(60)["y"], 2 * X) for future in futures)
    assert model.runs == 1
    assert one.statistics().cache.misses == 1


@pytest.mark.parametrize("ask", [infer, infer_async])
def test_who_waits_for_another_has_a_deadline(make, ask):
    one, model = make(limits=Limits(concurrency=4, timeout=0.5))
    model.going.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(infer, one)
        assert model.waiting.wait(60)
        with pytest.raises(RequestError) as caught:
            ask(one)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        model.going.set()
        first.result(60)


@pytest.mark.parametrize("ask", [infer, infer_async])
def test_failures_are_not_kept(make, ask):
    one, model = make(limits=Limits(concurrency=4))
    model.failure = RequestError(Code.INVALID_ARGUMENT, "not these values")
    model.going.clear()
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(ask, one)]
        assert model.waiting.wait(60)
        futures += [threads.submit(ask, one) for _ in range(2)]
        model.going.set()
        for future in futures:
            with pytest.raises(RequestError, match="not these values"):
                future.result(60)
    # Who waited has asked for itself.
    assert model.runs == 3
    assert one.statistics().cache.entries == 0
    model.failure = None
    assert np.array_equal(ask(one)["y"], 2 * X)
    assert one.statistics().cache.entries == 1


def test_a_client_that_goes_leaves_others_their_answer(make):
    one, model = make(limits=Limits(concurrency=4))
    model.going.clear()
    model.reuses = False  # the second asks for itself, beside the run that nobody waits for

    async def both():
        first = asyncio.create_task(one.infer_async(call()))
        await asyncio.to_thread(model.waiting.wait, 20)
        second = asyncio.create_task(one.infer_async(call()))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        model.going.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert np.array_equal(asyncio.run(both()).outputs["y"], 2 * X)


def test_large_inputs_are_cached_too(make):
    one, model = make()
    big = np.repeat(X, 4096, axis=0)
    for _ in range(2):
        assert np.array_equal(infer_async(one, big)["y"], 2 * big)
    assert model.runs == 1


def test_signatures_and_outputs_have_answers_of_their_own(make):
    one, model = make()
    assert list(infer(one, outputs=("z", "y"))) == ["z", "y"]
    assert list(infer(one, outputs=("y",))) == ["y"]
    assert list(infer(one)) == ["y", "z"]
    infer(one, signature="other")
    assert model.runs == 4
    assert list(infer(one, outputs=("z", "y"))) == ["z", "y"]
    assert model.runs == 4


def test_over_both_protocols(start, tmp_path):
    digest = hashlib.sha256(b"sesame").hexdigest()
    (tmp_path / "m").write_text("0")
    path, cache = str(tmp_path / "m"), {"bytes": 1 << 20, "seconds": 0}
    server = start(
        models=[
            {"name": "open", "path": path, "cache": cache},
            {"name": "ours", "path": path, "cache": cache, "clients": [{"token_sha256": digest}]},
        ],
        listen={"management_port": 0},
    )
    server.until(lambda: server.text().count('"AVAILABLE"') == 2)
    token = {"authorization": "Bearer sesame"}

    def ask(model, headers=None):
        return server.ask("POST", f"/v1/models/{model}:predict", PREDICT, headers or {})

    def count(name, model="open", version=1):
        found = numbers(server.numbers())
        return found.get(f"{name}{{model={model},version={version}}}")

    # Who may not ask gets no answer that another got.
    assert ask("ours", token)[0] == 200
    assert [ask("ours")[0], ask("ours", {"authorization": "Bearer no"})[0]] == [401, 403]
    assert ask("ours", token)[0] == 200
    assert (count("cache_hits_total", "ours"), count("cache_misses_total", "ours")) == (1, 1)
    for _ in range(2):
        status, _, content = ask("open")
        assert (status, json.loads(content)) == (200, DOUBLED)
    x = [float(one) for one in range(16)]
    v2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": x}]}
    status, _, content = server.ask("POST", "/v2/models/open/infer", json.dumps(v2).encode())
    assert (status, json.loads(content)["outputs"][0]["data"]) == (200, [2 * one for one in x])
    assert (count("cache_hits_total"), count("cache_misses_total")) == (2, 1)
    assert count("batch_size_count") == 1
    assert count("cache_entries") == 1
    assert 0 < count("cache_bytes") < 1 << 20
    assert count("cache_evicted_total") == 0
    stats = json.loads(server.ask("GET", "/v2/models/open/stats")[2])["model_stats"][0]
    assert [stats["inference_stats"][name]["count"] for name in ("success", "cache_hit")] == [3, 2]
    config = json.loads(server.ask("GET", "/v2/models/open/config")[2])
    assert config["response_cache"] == {"enable": True}
    with grpc.insecure_channel(f"localhost:{server.grpc}") as channel:
        ask_config = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelConfig",
            request_serializer=message("inference.ModelConfigRequest").SerializeToString,
            response_deserializer=message("inference.ModelConfigResponse").FromString,
        )
        found = ask_config(message("inference.ModelConfigRequest")(name="open"), timeout=60)
        assert found.config.response_cache.enable
    # A file that is replaced makes another version of what it was made of: nothing is left.
    new = tmp_path / "new"
    new.write_text("0.0")
    new.replace(tmp_path / "m")
    server.until(lambda: server.text().count('"AVAILABLE"') == 4)
    assert ask("open")[0] == 200
    assert (count("cache_hits_total"), count("cache_misses_total")) == (0, 1)


def test_models_yaml(tmp_path):
    config = tmp_path / "models.yaml"

    def read(cache):
        config.write_text(f"models: [{{name: m, path: p, cache: {cache}}}]\n")
        return read_models(config)[0].cache

    assert read("{}") == Cache()
    assert read("{bytes: 1000, seconds: 2.5}") == Cache(1000, 2.5)
    for wrong, says in (
        ("{bytes: 0}", r"models\[0\].cache.bytes"),
        ("{bytes: 64MiB}", r"models\[0\].cache.bytes"),
        ("{seconds: -1}", r"models\[0\].cache.seconds"),
        ("true", r"models\[0\].cache must have members"),
        ("{size: 1}", r"models\[0\].cache.size is not known"),
    ):
        with pytest.raises(UsageError, match=says):
            read(wrong)
