"""For the tests of backends: a model sealed and loaded, and what is done to each."""

from __future__ import annotations

import ctypes
import gc
import threading
from base64 import urlsafe_b64encode
from pathlib import Path

import numpy as np

import strongroom
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry
from strongroom.serving.call import Call
from strongroom.serving.checking import check_inputs
from strongroom.serving.config import Batching, Limits, ModelConfig
from strongroom.serving.loading import load_servable

KEY = bytes(range(32))
LARGE = 256 << 20
"""Bytes of weights that are seen in a process whose memory others make more or less of."""


class Loader:
    """``load(path)``: the model of a plain file or folder, through a sealed one."""

    def __init__(self, place):
        self.place = place
        self.made = []

    def seal(self, plain):
        sealed = self.place / f"{Path(plain).name}.sealed"
        strongroom.seal(plain, sealed, key=KEY, overwrite=True)
        return sealed

    def __call__(self, plain, backend=None, **options):
        with strongroom.open(self.seal(plain), key=KEY) as opened:
            self.made.append(registry.load(opened, backend, BackendOptions(**options)))
        return self.made[-1]

    def servable(self, plain, **config):
        """The same behind the engine's queue."""
        (self.place / "key").write_bytes(urlsafe_b64encode(KEY))
        config = ModelConfig("m", str(self.seal(plain)), key=str(self.place / "key"), **config)
        self.made.append(load_servable(config, 1, config.path))
        return self.made[-1]

    def close(self):
        for one in self.made:
            one.close()


def run(model, *outputs, **inputs):
    """All outputs, or those named; what does not fit is refused as in the server."""
    signature = model.signatures["serving_default"]
    check_inputs(inputs, signature, together=False)
    return model.run("serving_default", inputs, outputs or tuple(signature.outputs))


def read_only(array):
    """As requests have them."""
    array.setflags(write=False)
    return array


def at_once(count, ask):
    """``ask(number)`` in so many threads; what they raise is raised."""
    failures = []

    def work(number):
        try:
            ask(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]


def batched_together(load, plain, answer, **config):
    """Four requests of different sizes are one run, and each has its own rows back."""
    config["batching"] = Batching(10, 10.0)  # full with the last of them, and until then they wait
    servable = load.servable(plain, limits=Limits(concurrency=1), warm_up=0, **config)

    def ask(number):
        x = np.random.default_rng(number).random((number + 1, 16), np.float32)
        outputs = servable.infer(Call("m", {"x": read_only(x)})).outputs
        (found,) = outputs.values()
        np.testing.assert_allclose(found, answer(x.copy()), rtol=1e-4, atol=1e-5)

    at_once(4, ask)
    numbers = servable.statistics()
    assert (numbers.requests, numbers.batches.number, numbers.examples) == (4, 1, 10)


def memory():
    """Bytes of this process that are in no file, without what malloc keeps for what comes."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10


def frees_what_it_held(load, size):
    """``load()`` gives a model of so many bytes; closing it needs no garbage collector."""
    load().close()
    gc.collect()
    gc.disable()
    try:
        before = memory()
        for _ in range(3):
            model = load()
            assert memory() - before > 0.8 * size
            model.close()
            del model
            assert memory() - before < 0.4 * size
    finally:
        gc.enable()
