"""For tests of backends: a model through ``load_servable``, and what every backend has to do alike."""

from __future__ import annotations

import threading
from base64 import urlsafe_b64encode

import numpy as np
import pytest

import strongroom
from strongroom.serving.call import Call
from strongroom.serving.config import Batching, ModelConfig
from strongroom.serving.loading import load_servable
from strongroom.serving.status import Code, RequestError

KEY = bytes(range(32))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """``served(path, **config)``: a plain model, sealed and loaded; a :class:`Servable`."""
    monkeypatch.setenv("STRONGROOM_KEY", urlsafe_b64encode(KEY).decode())
    made = []

    def load(path, **config):
        sealed = tmp_path / f"{len(made)}.sealed"
        strongroom.seal(path, sealed, key=KEY)
        made.append(None)
        made[-1] = load_servable(ModelConfig("m", str(sealed), **config), 1, str(sealed))
        return made[-1]

    yield load
    for one in made:
        if one is not None:
            one.close()


def ask(servable, outputs=(), signature=None, **inputs):
    return servable.infer(Call("m", inputs, outputs=list(outputs), signature=signature)).outputs


def signature_of(servable, name="serving_default"):
    """Inputs and outputs: name → dtype and shape."""
    signature = servable.signatures[name]
    return tuple(
        {spec.name: (spec.dtype, spec.shape) for spec in specs.values()}
        for specs in (signature.inputs, signature.outputs)
    )


def refused(servable, says, **inputs):
    with pytest.raises(RequestError, match=says) as caught:
        ask(servable, **inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value


def check_threads(servable, name, rows, expected):
    """Several threads at once, each with a row of its own in each of its requests."""
    wrong = []

    def work(number):
        for step in range(30):
            at = (number * 7 + step) % len(rows)
            found = ask(servable, [expected[0]], **{name: rows[at : at + 1]})[expected[0]]
            if not np.allclose(found[0], expected[1][at], rtol=1e-5, atol=1e-6):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


BATCHING = Batching(8, 0.05)


def check_batches(servable, name, rows, expected):
    """Requests of different sizes are put together, and each gets its own rows back."""
    sizes = [1, 2, 3, 2]
    found: dict[int, np.ndarray] = {}
    begin = threading.Barrier(len(sizes))

    def work(number, start, size):
        begin.wait()
        part = {name: rows[start : start + size]}
        found[number] = ask(servable, [expected[0]], **part)[expected[0]]

    starts = np.cumsum([0, *sizes])
    threads = [
        threading.Thread(target=work, args=(number, starts[number], size))
        for number, size in enumerate(sizes)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for number, size in enumerate(sizes):
        start = starts[number]
        assert np.allclose(found[number], expected[1][start : start + size], rtol=1e-5, atol=1e-6)
    numbers = servable.statistics()
    assert numbers.requests == len(sizes)
    assert numbers.examples == sum(sizes)
