"""Real engines and models for them; run as a program, since nothing of it is for the process of the tests.

    python engines.py make PLAIN ENGINE…
    python engines.py compare PLAIN MOUNTED ENGINE…

says of each engine whether it comes to the same from both directories.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(Path(__file__).parent.parent / "loaders"))
TOKENS = [1, 5, 9, 30]


def make_safetensors(folder):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({f"layer.{i}": torch.rand(256, 128 + i) for i in range(8)}, folder / "m.safetensors")


def read_safetensors(folder):
    from safetensors import safe_open
    from safetensors.torch import load_file

    loaded = load_file(folder / "m.safetensors")
    with safe_open(folder / "m.safetensors", "pt") as file:
        part = file.get_slice("layer.7")[3:5, 1:4]
    return [one.numpy() for one in (*loaded.values(), part)]


def make_onnxruntime(folder):
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy.random.default_rng(0).standard_normal((64, 512), dtype="f4")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 512])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save_model(model, folder / "m.onnx", **options)


def read_onnxruntime(folder):
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": numpy.arange(64, dtype="f4")[None] / 64})


def make_tensorflow(folder):
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self):
            self.weights = tf.Variable(tf.random.stateless_normal((64, 512), seed=(1, 2)))

        @tf.function(input_signature=[tf.TensorSpec([None, 64])])
        def serve(self, x):
            return {"y": x @ self.weights}

    model = Model()
    tf.saved_model.save(model, folder, signatures={"serving_default": model.serve})


def read_tensorflow(folder):
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    return [model.signatures["serving_default"](x=tf.ones((2, 64)) / 64)["y"].numpy()]


def make_transformers(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 320}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200KB")


def read_transformers(folder):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return [model(torch.tensor([TOKENS])).logits.numpy()]


def make_llama_cpp(folder):
    from loading_cases_llama_cpp import write_gguf

    write_gguf(folder / "m.gguf")


def read_llama_cpp(folder):
    import llama_cpp

    options = {"n_ctx": 64, "n_batch": 64, "logits_all": True, "n_threads": 1, "verbose": False}
    found = []
    for mapped in (True, False):
        model = llama_cpp.Llama(str(folder / "m.gguf"), use_mmap=mapped, **options)
        model.eval(TOKENS)
        found.append(model.scores[: len(TOKENS)].copy())
    return found


PACKAGES = {
    "safetensors": ("safetensors", "torch"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "tensorflow": ("tensorflow",),
    "transformers": ("transformers", "torch"),
    "llama_cpp": ("gguf", "llama_cpp"),
}


def compare(plain, mounted, engine):
    import numpy

    read = globals()[f"read_{engine}"]
    expected, found = read(plain / engine), read(mounted / engine)
    assert all(numpy.isfinite(one).all() and one.std() > 0 for one in expected), engine
    same = [numpy.array_equal(*pair) for pair in zip(expected, found, strict=True)]
    print(engine, all(same) and len(same) > 0, flush=True)


def main():
    warnings.simplefilter("ignore")
    action, plain, *words = sys.argv[1:]
    if action == "make":
        for engine in words:
            Path(plain, engine).mkdir(parents=True)
            globals()[f"make_{engine}"](Path(plain, engine))
    else:
        for engine in words[1:]:
            compare(Path(plain), Path(words[0]), engine)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
