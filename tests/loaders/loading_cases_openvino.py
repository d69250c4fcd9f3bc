"""OpenVINO: gathered rows, which are used where they lie, and products, which are repacked."""

from marking import COLUMNS, marked


def _import():
    # As the loader does it: nothing of this is about making a model.
    from strongroom.loaders.openvino import openvino

    return openvino


def make_ir(folder, size):
    import numpy

    openvino = _import()
    from openvino import opset13 as ops

    x = ops.parameter([1], numpy.int64)
    rows = size // 8 // (4 * COLUMNS)
    tables = [ops.constant(marked(rows, i)) for i in range(8)]
    axis = ops.constant(numpy.array(0))
    model = openvino.Model([ops.gather(table, x, axis) for table in tables], [x])
    source = folder / "ir"
    source.mkdir()
    openvino.save_model(model, source / "m.xml", compress_to_fp16=False)
    return source


def make_products(folder, size):
    import numpy

    openvino = _import()
    from openvino import opset13 as ops

    x = node = ops.parameter([1, COLUMNS], numpy.float32)
    for i in range(max(1, size // (4 * COLUMNS**2))):
        node = ops.matmul(node, ops.constant(marked(COLUMNS, i)), False, False)
    source = folder / "ir"
    source.mkdir()
    openvino.save_model(openvino.Model([node], [x]), source / "m.xml", compress_to_fp16=False)
    return source


def _onnx(folder, size, external):
    from loading_cases import _onnx as build

    return build(folder, size, external)


def make_onnx(folder, size):
    return _onnx(folder, size, external=False)


def make_onnx_external(folder, size):
    return _onnx(folder, size, external=True)


def make_blob(folder, size):
    openvino = _import()
    compiled = openvino.Core().compile_model(make_products(folder, size) / "m.xml", "CPU")
    (folder / "m.blob").write_bytes(compiled.export_model().getvalue())
    return folder / "m.blob"


def load_model(sealed):
    from strongroom.loaders import openvino

    return openvino.read_model(sealed)


def load_compiled(sealed):
    from strongroom.loaders import openvino

    return openvino.compile_model(sealed)


def load_blob(sealed):
    from strongroom.loaders import openvino

    return openvino.import_model(sealed, "CPU")


CASES = {
    "openvino": (make_ir, load_model),
    "openvino gathered": (make_ir, load_compiled),
    "openvino products": (make_products, load_compiled),
    "openvino onnx": (make_onnx, load_compiled),
    "openvino onnx external": (make_onnx_external, load_model),
    "openvino blob": (make_blob, load_blob),
}
COPIES = {
    "openvino": (1, 1),
    "openvino gathered": (1, 1),
    "openvino products": (2, 2),
    "openvino blob": (2, 2),
}
