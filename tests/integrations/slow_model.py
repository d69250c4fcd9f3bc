"""A class of a user's own, which takes its time."""

import time

from strongroom.serving.tensors import TensorSpec


class Slow:
    inputs = (TensorSpec("x", "float32", (-1, 16)),)
    outputs = (TensorSpec("y", "float32", (-1, 16)),)

    def __init__(self, model):
        model.read("m.onnx")

    def predict(self, inputs):
        time.sleep(0.2)
        return {"y": inputs["x"]}
