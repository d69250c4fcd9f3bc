"""OpenVINO: IR with products of 1024 × 1024, read, and compiled for the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy

from strongroom.loaders.openvino import openvino  # without its reports

CORE = openvino.Core()


def build(folder: Path, size: int) -> Path:
    from openvino import opset13 as ops

    rng = numpy.random.default_rng(0)
    x = node = ops.parameter([1, 1024], numpy.float32)
    for _ in range(max(1, size >> 22)):
        weights = ops.constant(rng.random((1024, 1024), dtype="f4") / 1024)
        node = ops.tanh(ops.matmul(node, weights, False, False))
    (folder / "ir").mkdir()
    place = folder / "ir" / "m.xml"
    openvino.save_model(openvino.Model([node], [x]), place, compress_to_fp16=False)
    return folder / "ir"


def build_blob(folder: Path, size: int) -> Path:
    compiled = CORE.compile_model(build(folder, size) / "m.xml", "CPU")
    (folder / "m.blob").write_bytes(compiled.export_model().getvalue())
    return folder / "m.blob"


def in_memory(path: Path) -> object:
    tensor = openvino.Tensor(openvino.Type.u8, [path.stat().st_size])
    with path.open("rb", buffering=0) as file:
        file.readinto(memoryview(tensor.data))
    return tensor


def plain_read(place: Path) -> object:
    return CORE.read_model((place / "m.xml").read_bytes(), in_memory(place / "m.bin"))


def plain_compile(place: Path) -> object:
    return CORE.compile_model(plain_read(place), "CPU")


def plain_import(place: Path) -> object:
    return CORE.import_model(in_memory(place), "CPU")


def sealed_read(place: Path, key: bytes) -> object:
    from strongroom.loaders import openvino as loader

    return loader.read_model(place, key=key, core=CORE)


def sealed_compile(place: Path, key: bytes) -> object:
    from strongroom.loaders import openvino as loader

    return loader.compile_model(place, key=key, core=CORE)


def sealed_import(place: Path, key: bytes) -> object:
    from strongroom.loaders import openvino as loader

    return loader.import_model(place, "CPU", key=key, core=CORE)


CASES = {
    "openvino read_model": (build, plain_read, sealed_read),
    "openvino compile_model": (build, plain_compile, sealed_compile),
    "openvino import_model": (build_blob, plain_import, sealed_import),
}
