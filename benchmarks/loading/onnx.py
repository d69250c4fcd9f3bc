"""ONNX Runtime: products of 1024 × 1024, weights in the file, beside it, and in ORT format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from memory import memory_file

from strongroom.loaders.onnx import onnxruntime  # without its reports

CPU = ["CPUExecutionProvider"]


def network(size: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    rng = numpy.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(max(1, size >> 22)):
        weights.append(numpy_helper.from_array(rng.random((1024, 1024), dtype="f4") / 512, f"w{i}"))
        nodes += [helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"])]
        nodes += [helper.make_node("Tanh", [f"m{i}"], [f"y{i}"])]
        x = f"y{i}"
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024])] for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def build(folder: Path, size: int) -> Path:
    import onnx

    onnx.save_model(network(size), folder / "m.onnx")
    return folder / "m.onnx"


def build_external(folder: Path, size: int) -> Path:
    import onnx

    (folder / "onnx").mkdir()
    place = folder / "onnx/m.onnx"
    onnx.save_model(network(size), place, save_as_external_data=True, location="m.data")
    return folder / "onnx"


def build_ort(folder: Path, size: int) -> Path:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(build(folder, size), options, CPU)
    (folder / "m.onnx").unlink()
    return folder / "m.ort"


def plain(place: Path) -> Any:
    with memory_file(place) as path:
        return onnxruntime.InferenceSession(path, providers=CPU)


def plain_ort(place: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.load_model_format", "ORT")
    with memory_file(place) as path:
        return onnxruntime.InferenceSession(path, options, providers=CPU)


def plain_external(place: Path) -> Any:
    options = onnxruntime.SessionOptions()
    data = (place / "m.data").read_bytes()
    options.add_external_initializers_from_files_in_memory(["m.data"], [data], [len(data)])
    with memory_file(place / "m.onnx") as path:
        return onnxruntime.InferenceSession(path, options, providers=CPU)


def sealed(place: Path, key: bytes) -> Any:
    from strongroom.loaders import onnx as loader

    return loader.session(place, key=key, providers=CPU)


CASES = {
    "onnx": (build, plain, sealed),
    "onnx, external data": (build_external, plain_external, sealed),
    "onnx, ORT format": (build_ort, plain_ort, sealed),
}
