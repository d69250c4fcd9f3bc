"""A model with a signature for each way of asking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from strongroom.serving.config import ModelConfig
from strongroom.serving.engine import Engine
from strongroom.serving.messages import message
from strongroom.serving.servable import Servable
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tensors import BYTES, DTYPES, Signature, TensorSpec


def signature(inputs, outputs, method="predict", batched=False):
    return Signature(
        {name: TensorSpec(name, *spec) for name, spec in inputs.items()},
        {name: TensorSpec(name, *spec) for name, spec in outputs.items()},
        method,
        batched=batched,
    )


LABELS = np.array([[b"low", b"high"]], object)


SIGNATURES = {
    "serving_default": signature({"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}, batched=True),
    "two": signature(
        {"a": ("float32", (-1, 2)), "b": ("int64", (-1,))},
        {"s": ("float32", (-1, 2)), "name_bytes": (BYTES, (-1,)), "label": (BYTES, (-1,))},
    ),
    "classify": signature(
        {"inputs": (BYTES, (-1,))},
        {"classes": (BYTES, (-1, 2)), "scores": ("float32", (-1, 2))},
        "classify",
    ),
    "regress": signature({"inputs": (BYTES, (-1,))}, {"outputs": ("float32", (-1, 1))}, "regress"),
    "by_feature": signature(
        {"x": ("float32", (-1, 2)), "n": ("int64", (-1,)), "t": (BYTES, (-1,))},
        {"scores": ("float32", (-1, 2)), "outputs": ("float64", (-1,))},
    ),
    "total": signature({"x": ("float32", (-1,))}, {"sum": ("float32", ())}),
    "faulty": signature({"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}),
    **{f"echo_{one}": signature({"x": (one, None)}, {"x": (one, None)}) for one in DTYPES},
}


class Everything:
    platform = "test"
    signatures: Mapping[str, Signature] = SIGNATURES

    def run(self, signature, inputs, outputs):
        found = getattr(self, f"_{signature.partition('_')[0] if 'echo' in signature else signature}")(
            inputs
        )
        return {name: found[name] for name in outputs}

    def _serving_default(self, inputs):
        return {"y": inputs["x"] / 2 + 2}

    def _two(self, inputs):
        names = np.array([b"\xff%d" % one for one in inputs["b"]], object)
        labels = np.array([b"n%d" % one for one in inputs["b"]], object)
        return {"s": inputs["a"] * 2, "name_bytes": names, "label": labels}

    def _classify(self, inputs):
        found = self._parsed(inputs)
        return {"classes": np.repeat(LABELS, len(found), 0), "scores": np.stack([found, -found], 1)}

    def _regress(self, inputs):
        return {"outputs": self._parsed(inputs)[:, None]}

    def _by_feature(self, inputs):
        assert all(isinstance(one, bytes) for one in inputs["t"])
        return {"scores": inputs["x"], "outputs": inputs["n"] + inputs["x"].sum(1, dtype=np.float64)}

    def _total(self, inputs):
        return {"sum": inputs["x"].sum()[()].reshape(())}

    def _faulty(self, inputs):
        raise RuntimeError("the secret")

    def _echo(self, inputs):
        return inputs

    def _parsed(self, inputs):
        found = []
        for one in inputs["inputs"]:
            try:
                feature = message("tensorflow.Example").FromString(one).features.feature
            except DecodeError:
                raise RequestError(Code.INVALID_ARGUMENT, "That is no example.") from None
            if "x" not in feature:
                raise RequestError(Code.INVALID_ARGUMENT, "Feature x is missing.")
            found.append(sum(feature["x"].float_list.value))
        return np.array(found, np.float32)

    def close(self):
        pass


@contextmanager
def serving(folder, model=Everything, **options):
    """An engine that serves ``m``, ready."""
    path = folder / "m.sealed"
    path.write_bytes(b"1")

    def load(config, version, location):
        return Servable(config, version, model())

    engine = Engine([ModelConfig("m", str(path), labels={"stable": 1}, **options)], load, poll=0.05)
    engine.start()
    try:
        until(engine.ready)
        yield engine
    finally:
        engine.close(5)


@contextmanager
def grpc_server(handlers):
    """A server upon loopback; its address."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
