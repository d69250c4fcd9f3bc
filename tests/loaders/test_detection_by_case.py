"""Every model that the loader tests make is recognised, and loaded by ``strongroom.load``, for what it is."""

import loading_cases
import pytest

import strongroom
from strongroom.loaders import registry

# By the beginning of a case's name; the first that fits.
FRAMEWORKS = {
    "torch.export": "torch.export",
    "torchscript": "torchscript",
    "torch": "torch",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "aotinductor": "aotinductor",
    "tensorflow graph": "tensorflow.graph_def",
    "tensorflow frozen": "tensorflow.graph_def",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "tflite": "tflite",
    "paddle jit": "paddle.jit",
    "paddle predictor": "paddle.jit",
    "paddle": "paddle",
    "llama.cpp": "llama_cpp",
    "openvino onnx": "onnx",
    "openvino": "openvino",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "skops": "sklearn",
    "joblib": "joblib",
    "flax": "flax",
}
UNKNOWN = ("tokenizer", "openvino blob", "leak")
"""Parts of models, and what only ``framework=`` can say."""

CASES = [case for case in loading_cases.CASES if not case.startswith(UNKNOWN)]


def expected(case):
    return next(name for start, name in FRAMEWORKS.items() if case.startswith(start))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_recognised(case, tmp_path, key):
    plain = loading_cases.CASES[case][0](tmp_path, 1 << 20)
    strongroom.seal(plain, tmp_path / "sealed", key=key)
    with strongroom.open(tmp_path / "sealed", key=key) as model:
        assert registry.detect(model) == expected(case)


def test_every_framework_has_a_case_or_cannot_be_recognised():
    found = {expected(case) for case in CASES}
    assert set(registry.FRAMEWORKS) - found == {"tensorrt", "torch2trt", "paddle.inference"}
