"""PaddlePaddle: a state dict, a saved layer, a predictor of Paddle Inference.

Saved layers are loaded by their paths alone. The plain ones are copied to a directory in memory before, as
one would to have them off the disk.
"""

from __future__ import annotations

import io
from pathlib import Path

from memory import memory_place

COUNT = 8
COLUMNS = 1024


def _weights(size: int) -> list[object]:
    import numpy

    rng = numpy.random.default_rng(1)
    rows = size // COUNT // (4 * COLUMNS)
    return [rng.random((rows, COLUMNS), dtype="f4") for _ in range(COUNT)]


def build_state(folder: Path, size: int) -> Path:
    import paddle

    state = {f"layer.{i}.weight": paddle.to_tensor(w) for i, w in enumerate(_weights(size))}
    paddle.save(state, str(folder / "m.pdparams"))
    return folder / "m.pdparams"


def plain_state(place: Path) -> object:
    import paddle

    return paddle.load(io.BytesIO(place.read_bytes()))


def sealed_state(place: Path, key: bytes) -> object:
    from strongroom.loaders import paddle

    return paddle.load(place, key=key)


def build_layer(folder: Path, size: int) -> Path:
    import paddle

    weights = _weights(size)

    class Network(paddle.nn.Layer):  # type: ignore[misc]  # paddle has no types
        def __init__(self) -> None:
            super().__init__()
            for i, weight in enumerate(weights):
                made = self.create_parameter(list(weight.shape))  # type: ignore[attr-defined]  # an array
                made.set_value(weight)
                self.add_parameter(f"w{i}", made)

        def forward(self, x: object) -> object:
            for i in range(COUNT):
                x = paddle.matmul(x, getattr(self, f"w{i}"), transpose_y=True)[:, :1]
                x = x * paddle.ones([1, COLUMNS])
            return x

    spec = paddle.static.InputSpec([1, COLUMNS], "float32")
    paddle.jit.save(Network(), str(folder / "layer/m"), input_spec=[spec])
    return folder / "layer"


def plain_layer(place: Path) -> object:
    import paddle

    with memory_place(place) as folder:
        return paddle.jit.load(str(folder / "m"))


def sealed_layer(place: Path, key: bytes) -> object:
    from strongroom.loaders import paddle

    return paddle.jit_load(place, key=key)


def plain_predictor(place: Path) -> object:
    from paddle import inference

    with memory_place(place) as folder:
        config = inference.Config(str(folder / "m.json"), str(folder / "m.pdiparams"))
        config.disable_glog_info()
        return inference.create_predictor(config)


def sealed_predictor(place: Path, key: bytes) -> object:
    from strongroom.loaders import paddle

    return paddle.create_predictor(place, key=key)


CASES = {
    "paddle state dict": (build_state, plain_state, sealed_state),
    "paddle jit": (build_layer, plain_layer, sealed_layer),
    "paddle predictor": (build_layer, plain_predictor, sealed_predictor),
}
