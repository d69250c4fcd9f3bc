"""PaddlePaddle: state dicts, saved layers in both graph formats, Paddle Inference."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

from marking import COLUMNS, marked

COUNT = 8


def imported():
    """The module ``paddle``, whose import warns where ccache is not installed.

    By the loader, since it ends the process if TensorFlow has been imported before.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No ccache found", UserWarning)
        from strongroom.loaders.paddle import paddle
    return paddle


def arrays(size):
    rows = size // COUNT // (4 * COLUMNS)
    return [marked(rows, i) for i in range(COUNT)]


def make_state(folder, size):
    paddle = imported()
    state = {f"layer.{i}.weight": paddle.to_tensor(a) for i, a in enumerate(arrays(size))}
    paddle.save(state, str(folder / "m.pdparams"))
    return folder / "m.pdparams"


def make_pir(folder, size):
    paddle = imported()
    weights = arrays(size)

    class Network(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            for i, weight in enumerate(weights):
                made = self.create_parameter(list(weight.shape))
                made.set_value(weight)
                self.add_parameter(f"w{i}", made)

        def forward(self, x):
            for i in range(COUNT):
                weight = getattr(self, f"w{i}")
                ones = paddle.ones([1, weight.shape[0]])
                x = paddle.nn.functional.linear(ones * paddle.mean(x), weight)
            return x

    os.makedirs(folder / "layer")
    spec = paddle.static.InputSpec([1, COLUMNS], "float32")
    paddle.jit.save(Network(), str(folder / "layer/m"), input_spec=[spec])
    return folder / "layer"


def make_legacy(folder, size):
    # Paddle 3 writes the older format only if it is told so before it is imported.
    subprocess.run(
        [sys.executable, __file__, folder, str(size)],
        env=os.environ | {"FLAGS_enable_pir_api": "0"},
        check=True,
        capture_output=True,
    )
    return folder / "layer"


def load_state(sealed):
    from strongroom.loaders import paddle

    return paddle.load(sealed)


def load_numpy(sealed):
    from strongroom.loaders import paddle

    return paddle.load(sealed, return_numpy=True)


def load_state_pickle(sealed):
    from strongroom.loaders import paddle

    return paddle.load(sealed, allow_pickle=True)


def load_layer(sealed):
    from strongroom.loaders import paddle

    return paddle.jit_load(sealed)


def load_predictor(sealed):
    from strongroom.loaders import paddle

    return paddle.create_predictor(sealed)


CASES = {
    "paddle": (make_state, load_state),
    "paddle numpy": (make_state, load_numpy),
    "paddle pickle": (make_state, load_state_pickle),
    "paddle jit": (make_pir, load_layer),
    "paddle jit pdmodel": (make_legacy, load_layer),
    "paddle predictor": (make_pir, load_predictor),
    "paddle predictor pdmodel": (make_legacy, load_predictor),
}

COPIES = {
    "paddle": (1, 1),
    "paddle pickle": (2, 1),
    "paddle jit": (2, 1),
    "paddle predictor": (2, 1),
}

if __name__ == "__main__":
    make_pir(Path(sys.argv[1]), int(sys.argv[2]))
