"""One model for each way of loading, and the load; run as a program it loads in a process of its own.

    python loading_cases.py load CASE SEALED [CASE SEALED …]
    python loading_cases.py peak CASE SEALED TINY_SEALED

Modules ``loading_cases_*.py`` beside this one add to ``CASES`` and ``COPIES``, one for each framework.

The key is read from the environment. ``peak`` prints two numbers: by how many bytes the memory of the
process, and of files in memory, rose at most while the model was loaded, and by how many it was higher
afterwards.
"""

import gc
import importlib
import json
import os
import sys
import warnings
from pathlib import Path

from marking import COLUMNS, MARK, marked
from watching import in_use, status, watched

CPU = ["CPUExecutionProvider"]


def tensors(size, count=8):
    import torch

    rows = size // count // (4 * COLUMNS)
    return {f"layer.{i}.weight": torch.from_numpy(marked(rows, i)) for i in range(count)}


# Making: (directory, bytes) → path of the plain model.


def make_torch(folder, size):
    import torch

    torch.save(tensors(size), folder / "m.pt")
    return folder / "m.pt"


def make_legacy(folder, size):
    import torch

    torch.save(tensors(size), folder / "m.pt", _use_new_zipfile_serialization=False)
    return folder / "m.pt"


def make_module(folder, size):
    import torch

    module = torch.nn.Module()
    for name, tensor in tensors(size).items():
        module.register_buffer(name.replace(".", "_"), tensor)
    torch.save(module, folder / "m.pt")
    return folder / "m.pt"


def _network(size):
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(tensors(size).values())

        def forward(self, x):
            for weight in self.weights:
                x = (x @ weight.T)[:, :1] * torch.ones(COLUMNS)
            return x

    return Network().eval(), torch.zeros(1, COLUMNS)


def make_torchscript(folder, size):
    import torch

    module, x = _network(size)
    torch.jit.save(torch.jit.trace(module, x), folder / "m.pt")
    return folder / "m.pt"


def make_export(folder, size):
    import torch

    module, x = _network(size)
    torch.export.save(torch.export.export(module, (x,)), folder / "m.pt2")
    return folder / "m.pt2"


def make_safetensors(folder, size):
    from safetensors.torch import save_file

    save_file(tensors(size), folder / "m.safetensors")
    return folder / "m.safetensors"


def _onnx(folder, size, external):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    arrays = {name: tensor.numpy() for name, tensor in tensors(size).items()}
    graph = helper.make_graph(
        [helper.make_node("Gather", [name, "i"], [f"y.{name}"]) for name in arrays],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
        [
            helper.make_tensor_value_info(f"y.{name}", TensorProto.FLOAT, [1, COLUMNS])
            for name in arrays
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    source = folder / "onnx"
    source.mkdir()
    onnx.save_model(
        model, source / "m.onnx", save_as_external_data=external, location="m.data", size_threshold=0
    )
    return source


def make_onnx(folder, size):
    return _onnx(folder, size, external=False)


def make_onnx_external(folder, size):
    return _onnx(folder, size, external=True)


def make_ort(folder, size):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    source = _onnx(folder, size, external=False) / "m.onnx"
    onnxruntime.InferenceSession(source, options, CPU)
    source.unlink()
    return folder / "m.ort"


def _llama(folder, size):
    import torch
    import transformers

    layers = max(1, size // (20 << 20))
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=1024 if size > 20 << 20 else 128,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for i, (_, parameter) in enumerate(model.named_parameters()):
        content = torch.from_numpy(marked(-(-parameter.numel() // COLUMNS), i)).view(-1)
        parameter.data.copy_(content[: parameter.numel()].view(parameter.shape))
    source = folder / "llama"
    source.mkdir()
    return model, source


def make_transformers(folder, size):
    model, source = _llama(folder, size)
    model.save_pretrained(source, max_shard_size="100MB")
    return source


def make_transformers_bin(folder, size):
    import torch

    model, source = _llama(folder, size)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    return source


def make_tokenizer(folder, size):
    words = {"[UNK]": 0} | {f"{MARK.decode()}{i}": i for i in range(1, size // 160)}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    source = folder / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(content))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    return source


# Loading: sealed model → something to keep.


def load_torch(sealed):
    from strongroom.loaders import torch

    return torch.load(sealed)


def load_torch_mmap(sealed):
    from strongroom.loaders import torch

    return torch.load(sealed, mmap=True)


def load_module(sealed):
    from strongroom.loaders import torch

    return torch.load(sealed, weights_only=False)


def load_torchscript(sealed):
    from strongroom.loaders import torch

    return torch.jit_load(sealed)


def load_export(sealed):
    from strongroom.loaders import torch

    return torch.export_load(sealed)


def load_safetensors(sealed):
    from strongroom.loaders import safetensors

    return safetensors.load_file(sealed)


def load_safe_open(sealed):
    from strongroom.loaders import safetensors

    with safetensors.safe_open(sealed, "pt") as file:
        return [file.get_tensor(n) for n in file.offset_keys()] + [
            file.get_slice(n)[1:3] for n in file.offset_keys()
        ]


def load_onnx(sealed):
    from strongroom.loaders import onnx

    session = onnx.session(sealed, providers=CPU)
    session.run(None, {"i": [1]})
    return session


def load_onnx_options(sealed):
    from strongroom.loaders import onnx

    return onnx.session(sealed, onnx.onnxruntime.SessionOptions(), CPU)


def load_transformers(sealed):
    from strongroom.loaders import transformers

    return transformers.from_pretrained(sealed)


def load_tokenizer(sealed):
    from strongroom.loaders import transformers

    return transformers.from_pretrained(sealed, auto_class="AutoTokenizer")


# Two that are wrong, to see that they are noticed.


def load_and_write(sealed):
    import strongroom

    with strongroom.open(sealed) as model:
        Path(f"{sealed}.leak").write_bytes(model.read())


def load_and_map(sealed):
    import numpy

    import strongroom

    with strongroom.open(sealed) as model:
        content = model.read()
        leak = numpy.memmap(f"{sealed}.leak", "u1", "w+", shape=len(content))
        leak[:] = numpy.frombuffer(content, "u1")


CASES = {
    "torch": (make_torch, load_torch),
    "torch legacy": (make_legacy, load_torch),
    "torch mmap": (make_torch, load_torch_mmap),
    "torch module": (make_module, load_module),
    "torchscript": (make_torchscript, load_torchscript),
    "torch.export": (make_export, load_export),
    "safetensors": (make_safetensors, load_safetensors),
    "safetensors safe_open": (make_safetensors, load_safe_open),
    "onnx": (make_onnx, load_onnx),
    "onnx external": (make_onnx_external, load_onnx),
    "onnx external, options": (make_onnx_external, load_onnx_options),
    "onnx ort": (make_ort, load_onnx),
    "transformers": (make_transformers, load_transformers),
    "transformers bin": (make_transformers_bin, load_transformers),
    "tokenizer": (make_tokenizer, load_tokenizer),
    "leak by write": (make_safetensors, load_and_write),
    "leak by map": (make_safetensors, load_and_map),
}

COPIES = {
    "torch": (1, 1),
    "torch mmap": (1, 1),
    "torch module": (1, 1),
    "safetensors": (1, 1),
    "transformers": (1, 1),
    "transformers bin": (1, 1),
    "torch.export": (1, 1),
    "torchscript": (2, 1),
    "onnx": (2, 1),
    "onnx external": (2, 1),
    "onnx ort": (3, 1),
}
# Copies of the model in memory at the highest point of its load, and afterwards.

for _path in sorted(Path(__file__).parent.glob("loading_cases_*.py")):
    _module = importlib.import_module(_path.stem)
    CASES |= _module.CASES
    COPIES |= _module.COPIES


def peak(load, sealed, tiny):
    load(tiny)  # whatever the first load imports and allocates
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest value begins anew, proc(5)
    before = in_use(os.getpid())
    with watched() as highest:
        kept = load(sealed)
    gc.collect()
    # Of what is mapped the kernel knows the highest value; files in memory are seen now and then.
    print(max(*highest, status(os.getpid(), "VmHWM")) - before, in_use(os.getpid()) - before)
    del kept


def main():
    warnings.simplefilter("ignore")
    action, *words = sys.argv[1:]
    if action == "peak":
        case, *places = words
        peak(CASES[case][1], *places)
    else:
        for case, place in zip(words[::2], words[1::2], strict=True):
            CASES[case][1](place)
    # Only what has been done so far counts, not how the frameworks are taken down.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
