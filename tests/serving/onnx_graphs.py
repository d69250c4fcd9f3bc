"""Small ONNX models."""

from __future__ import annotations

from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT


def tensor(name, kind=FLOAT, shape=(None, 16)):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes, inputs, outputs, initializers=()):
    """The bytes of a model.

    Args:
        nodes: (operator, inputs, outputs, attributes).
    """
    made = helper.make_graph(
        [helper.make_node(op, given, taken, **attributes) for op, given, taken, attributes in nodes],
        "graph",
        inputs,
        outputs,
        initializers,
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()


def doubling():
    """y = 2 x, float32[-1, 16]."""
    return graph([("Add", ["x", "x"], ["y"], {})], [tensor("x")], [tensor("y")])


def identity(kind, shape=(None, 2)):
    """y = x."""
    nodes = [("Identity", ["x"], ["y"], {})]
    return graph(nodes, [tensor("x", kind, shape)], [tensor("y", kind, shape)])
