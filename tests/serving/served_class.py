"""Classes of a user's own, as the environment of a server has them."""

from __future__ import annotations

import numpy as np

from strongroom.serving.tensors import TensorSpec


class Scorer:
    """The length of each text, times a factor out of the sealed model."""

    inputs = (TensorSpec("text", "bytes", (-1,)),)
    outputs = (TensorSpec("score", "float32", (-1,)), TensorSpec("upper", "bytes", (-1,)))
    batched = True
    closed = 0

    def __init__(self, model, *, scale=1.0):
        self.factor = float(model.read("factor.txt")) * scale

    def predict(self, inputs):
        texts = inputs["text"]
        scores = np.array([len(one) for one in texts], np.float64) * self.factor
        return {"score": scores, "upper": [one.decode().upper() for one in texts], "other": 1}

    def close(self):
        type(self).closed += 1


class WithoutSpecs:
    def __init__(self, model):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"] + 0.5}


class WithoutPredict:
    def __init__(self, model):
        pass


class BatchedWrongly(WithoutSpecs):
    inputs = (TensorSpec("x", "float32", (3,)),)
    outputs = (TensorSpec("y", "float32", (-1,)),)
    batched = True


class Leaving(WithoutSpecs):
    def predict(self, inputs):
        raise SystemExit(3)


FUNCTION = len
