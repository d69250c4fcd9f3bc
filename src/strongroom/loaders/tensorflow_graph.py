"""Frozen TensorFlow graphs: the plain ``GraphDef``, and functions made of it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

from strongroom.errors import UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory import allocate
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import numpy
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no types
except ModuleNotFoundError as error:
    raise extra_for(error, "tensorflow", "Loading TensorFlow models", "tensorflow") from None

__all__ = ["graph_def", "graph_def_load"]

_NODE: Final = 1
# GraphDef.node, graph.proto.
_VARINT: Final = 0
_BYTES: Final = 2
# Wire types of protobuf.
_LARGE: Final = 64 << 10
# Shapes, axes and the like, which TensorFlow wants to see in the graph, are far smaller than weights.
_PLACEHOLDERS: Final = frozenset({"Placeholder", "PlaceholderV2"})
_NO_RESULT: Final = _PLACEHOLDERS | {"Const", "NoOp", "Assert"}


def graph_def(source: ModelSource, *, key: KeySource | None = None, path: str | None = None) -> Any:
    """A frozen graph as ``tf.compat.v1.GraphDef``, for ``tf.graph_util.import_graph_def``.

    While it is parsed there are two copies, afterwards one.

    Args:
        source: the place of a sealed file or directory, or an open model.
        path: the file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is no GraphDef.
    """
    with opened(source, key) as model:
        name = pick(model, path, (".pb",), "GraphDef")
        return _checked(model, name, model.read(name))


def graph_def_load(
    source: ModelSource,
    inputs: str | Sequence[str] | None = None,
    outputs: Any = None,
    name: str = "",
    *,
    capture_weights: bool = False,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """A ``tf.types.experimental.ConcreteFunction`` of a frozen graph, or of a part of it.

    TensorFlow copies a constant from one form of the graph to the next: there are four copies of the
    weights while the function is made, three afterwards, and up to fourteen during its first call,
    when TensorFlow optimises it. ``capture_weights`` avoids all of this.

    Args:
        source: the place of a sealed file or directory, or an open model.
        inputs: nodes or tensors ("x", "x:0") that become the arguments, in this order; by default all
            placeholders, in the order of the graph. Keywords are their names.
        outputs: a node or tensor, or any structure of them; the function returns the same structure. By
            default a dict of all that nothing in the graph consumes, by node.
        name: a prefix for the names in the function's graph, as in ``import_graph_def``.
        capture_weights: hand weights of 64 KiB and more to the function as tensors that it captures, as
            those of a SavedModel, and not as constants: one copy of them, and a first call that does
            not optimise for long (15 s with 200 MB). TensorFlow then cannot fold constants: calls may
            take longer (1.5 times with a ResNet-50), and results may differ in the last bits.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is no GraphDef, or lacks one of the names.
        TensorFlow's errors: as ``import_graph_def`` raises them.
    """
    weights: dict[str, Any] = {}
    with opened(source, key) as model:
        file = pick(model, path, (".pb",), "GraphDef")
        if capture_weights:
            with io.BufferedReader(model.open(file), 1 << 20) as stream:
                rest = _without_weights(stream, model.files[file].size, weights)
                graph = _checked(model, file, b"".join(rest))
        else:
            graph = _checked(model, file, model.read(file))
    nodes = {node.name: node for node in graph.node}
    if inputs is None:
        inputs = [name for name, node in nodes.items() if node.op in _PLACEHOLDERS]
    feeds = [_tensor(nodes, feed) for feed in ([inputs] if isinstance(inputs, str) else inputs)]
    if outputs is None:
        fetches = _results(graph)
    else:
        fetches = tf.nest.map_structure(lambda fetch: _tensor(nodes, fetch), outputs)
    wanted = tf.nest.flatten(fetches)
    signature = _signature(graph, nodes, feeds)
    nodes.clear()
    used = _cut(graph, wanted, {*feeds, *weights})
    # Only this list has the graph from here on, until it is imported and freed.
    waiting = [graph]
    del graph

    def run(*arguments: Any) -> Any:
        given = dict(zip(feeds, arguments, strict=True))
        # Names of the graph's own nodes stay as they are.
        given |= {
            tensor: tf.identity(weight, f"captured/{_node(tensor)}")
            for tensor, weight in weights.items()
        }
        missing = [fetch for fetch in wanted if fetch not in given]
        found = tf.graph_util.import_graph_def(
            waiting.pop(),
            {tensor: value for tensor, value in given.items() if tensor in used},
            missing,
            name,
        )
        if outputs is None:
            return _by_node(dict(zip(wanted, found, strict=True)))
        given |= zip(missing, found, strict=True)
        return tf.nest.map_structure(given.__getitem__, fetches)

    traced = tf.function(run, input_signature=signature, autograph=False)
    return traced.get_concrete_function()


def _checked(model: SealedModel, name: str, content: bytes) -> Any:
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(content)
    except DecodeError:
        graph.Clear()
    if not graph.node:
        raise UsageError(
            f"{name} in {model.name} is no frozen graph (GraphDef).",
            hint="saved_model.pb is part of a SavedModel: seal its whole folder, and use saved_model_load.",
        )
    return graph


def _without_weights(file: BinaryIO, end: int, weights: dict[str, Any]) -> Iterator[bytes]:
    """The bytes of a GraphDef of which large constants are taken out, into ``weights``, by tensor.

    The graph is read node by node, so that no more than one weight is there twice.
    """
    while start := file.read(1):
        tag = _varint(file, start)
        if tag & 7 == _VARINT:
            yield _encoded(tag) + _encoded(_varint(file))
            continue
        size = _varint(file) if tag & 7 == _BYTES else -1
        if not 0 <= size <= end - file.tell():
            yield b"\xff"  # no GraphDef: the parser says so
            return
        content = file.read(size)
        if tag >> 3 == _NODE and size >= _LARGE:
            content = _without_weight(content, weights)
        yield _encoded(tag) + _encoded(len(content)) + content


def _without_weight(content: bytes, weights: dict[str, Any]) -> bytes:
    node = tf.compat.v1.NodeDef()
    try:
        node.ParseFromString(content)
    except DecodeError:
        return content
    # One with control inputs belongs to one branch of a condition or to a loop, and stays in it.
    if node.op != "Const" or node.input or node.attr["dtype"].type == tf.string.as_datatype_enum:
        return content
    del content
    dtype, tensor = node.attr["dtype"].type, node.attr["value"].tensor
    kept = tf.compat.v1.NodeDef(name=node.name, op="Const", device=node.device)
    kept.attr["dtype"].type = kept.attr["value"].tensor.dtype = dtype
    kept.attr["value"].tensor.tensor_shape.CopyFrom(tensor.tensor_shape)  # without values: zeros
    weights[f"{kept.name}:0"] = _eager(tensor)
    return bytes(kept.SerializeToString())


def _eager(value: Any) -> Any:
    """The eager tensor of a TensorProto."""
    numpy_type = numpy.dtype(tf.dtypes.as_dtype(value.dtype).as_numpy_dtype)
    if len(value.tensor_content) < _LARGE or numpy_type.kind not in "fiu":
        return tf.constant(tf.make_ndarray(value))
    # tf.constant would copy twice, and free the first copy when it makes its next tensor.
    memory = allocate(len(value.tensor_content))
    memory[:] = value.tensor_content
    array = numpy.frombuffer(memory, numpy_type).reshape([dim.size for dim in value.tensor_shape.dim])
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _varint(file: BinaryIO, start: bytes = b"") -> int:
    number = shift = 0
    while True:
        byte = start or file.read(1)
        start = b""
        if not byte or shift > 63:
            return 0
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
        shift += 7


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _node(reference: str) -> str:
    """The node in "node", "node:1" or "^node"."""
    return reference.lstrip("^").partition(":")[0]


def _tensor(nodes: Mapping[str, Any], reference: str) -> str:
    node, _, number = reference.partition(":")
    if node not in nodes:
        like = [name for name, found in nodes.items() if found.op in _PLACEHOLDERS] + list(nodes)[-3:]
        raise UsageError(
            f"The graph has no node {node!r}.", hint="Among those it has: " + ", ".join(like[:8]) + "."
        )
    return f"{node}:{number or 0}"


def _results(graph: Any) -> list[str]:
    """The nodes that nothing consumes."""
    consumed = {_node(reference) for node in graph.node for reference in node.input}
    found = [n.name for n in graph.node if n.name not in consumed and n.op not in _NO_RESULT]
    if not found:
        raise UsageError("Every node of the graph is consumed by another.", hint="Say outputs=…")
    return found


def _by_node(operations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name if len(operation.outputs) == 1 else f"{name}:{number}": tensor
        for name, operation in operations.items()
        for number, tensor in enumerate(operation.outputs)
    }


def _signature(graph: Any, nodes: Mapping[str, Any], feeds: Sequence[str]) -> list[Any]:
    found = {}
    for feed in feeds:
        attributes = nodes[_node(feed)].attr
        if nodes[_node(feed)].op in _PLACEHOLDERS:
            found[feed] = tf.TensorShape(attributes["shape"].shape), attributes["dtype"].type
    others = [feed for feed in feeds if feed not in found]
    if others:
        # What a tensor inside the graph is like, TensorFlow finds out by importing it.
        with tf.Graph().as_default():
            for tensor in tf.graph_util.import_graph_def(graph, None, others, ""):
                found[tensor.name] = tensor.shape, tensor.dtype
    return [tf.TensorSpec(*found[feed], name=_node(feed)) for feed in feeds]


def _cut(graph: Any, wanted: Sequence[str], feeds: set[str]) -> set[str]:
    """Leave only the nodes between ``feeds`` and ``wanted``; the tensors that they consume."""
    nodes = {node.name: node for node in graph.node}
    waiting = [_node(reference) for reference in wanted if reference not in feeds]
    reached: set[str] = set()
    used: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node in reached or node not in nodes:
            continue
        reached.add(node)
        for reference in nodes[node].input:
            tensor = reference if ":" in reference or reference[0] == "^" else f"{reference}:0"
            used.add(tensor)
            if tensor not in feeds:
                waiting.append(_node(reference))
    del nodes
    for number in reversed(range(len(graph.node))):
        if graph.node[number].name not in reached:
            del graph.node[number]
    return used
