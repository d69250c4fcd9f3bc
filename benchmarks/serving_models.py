"""Models for the benchmarks of serving, with random weights, and requests for them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from strongroom.serving.messages import message

FLOAT = TensorProto.FLOAT
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class Graph:
    """A graph that grows by a node at a time."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(0)

    def weight(self, *shape: int, fan: int) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.standard_normal(shape, np.float32) * np.float32((2 / fan) ** 0.5)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def conv(self, x: str, before: int, after: int, size: int, stride: int = 1) -> str:
        kernel = self.weight(after, before, size, size, fan=before * size * size)
        bias = self.weight(after, fan=1 << 20)
        return self.add("Conv", x, kernel, bias, strides=[stride] * 2, pads=[size // 2] * 4)

    def save(self, path: Path, x: list[Any], y: list[Any], last: str) -> Path:
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        made = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", FLOAT, x)],
            [helper.make_tensor_value_info("y", FLOAT, y)],
            self.weights,
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


def identity(path: Path) -> Path:
    """y = x, float32[n, 16]."""
    return Graph().save(path, ["n", 16], ["n", 16], "x")


def mlp(path: Path) -> Path:
    """784 → 1024 → 1024 → 10, 7 MB."""
    graph, x = Graph(), "x"
    for before, after in ((784, 1024), (1024, 1024), (1024, 10)):
        x = graph.add("Relu", graph.add("MatMul", x, graph.weight(before, after, fan=before)))
    return graph.save(path, ["n", 784], ["n", 10], x)


def wide(path: Path) -> Path:
    """Five layers of 3072 → 3072, 189 MB."""
    graph, x = Graph(), "x"
    for _ in range(5):
        x = graph.add("Relu", graph.add("MatMul", x, graph.weight(3072, 3072, fan=3072)))
    return graph.save(path, ["n", 3072], ["n", 3072], x)


def resnet50(path: Path) -> Path:
    """ResNet-50 v1.5 with its normalisations folded, 102 MB; float32[n, 3, 224, 224]."""
    graph = Graph()
    x = graph.add("Relu", graph.conv("x", 3, 64, 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for number, (width, blocks) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            y = graph.add("Relu", graph.conv(x, channels, width, 1))
            y = graph.add("Relu", graph.conv(y, width, width, 3, stride))
            y = graph.conv(y, width, 4 * width, 1)
            if not block:
                x = graph.conv(x, channels, 4 * width, 1, stride)
            # Without normalisation, sums would grow from block to block.
            half = graph.add("Constant", value_float=0.7)
            x = graph.add("Relu", graph.add("Mul", graph.add("Add", x, y), half))
            channels = 4 * width
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    x = graph.add("MatMul", x, graph.weight(2048, 1000, fan=2048))
    return graph.save(path, ["n", 3, 224, 224], ["n", 1000], x)


def v2_json(shape: list[int]) -> bytes:
    """A request of the Open Inference Protocol."""
    values = np.arange(np.prod(shape), dtype=np.float32) + 0.5
    one = {"name": "x", "shape": shape, "datatype": "FP32", "data": values.tolist()}
    return json.dumps({"inputs": [one]}).encode()


def v2_binary(shape: list[int]) -> tuple[bytes, int]:
    """With the binary tensor extension: the body, and the length of its header."""
    data = np.ones(shape, np.float32).tobytes()
    parameters = {"binary_data_size": len(data)}
    one = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": parameters}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return head + data, len(head)


def tfs_json(shape: list[int]) -> bytes:
    """A request of TensorFlow Serving's API."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 0.5
    return json.dumps({"instances": values.tolist()}).encode()


def v2_grpc(model: str, shape: list[int]) -> bytes:
    """A ``ModelInferRequest``."""
    request = message("inference.ModelInferRequest")(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.ones(shape, np.float32).tobytes())
    return bytes(request.SerializeToString())


def tfs_grpc(model: str, shape: list[int]) -> bytes:
    """A ``PredictRequest``."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = model
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for size in shape:
        tensor.tensor_shape.dim.add().size = size
    tensor.tensor_content = np.ones(shape, np.float32).tobytes()
    return bytes(request.SerializeToString())


def framed(message_: bytes) -> bytes:
    """A message as gRPC sends it over HTTP/2."""
    return b"\0" + struct.pack(">I", len(message_)) + message_
