import io
import json
import subprocess
import sys
import zipfile

import numpy
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import save as save_safetensors
from test_onnx_loader import build as build_onnx
from test_torch_loader import Net
from test_transformers_loader import bert

import strongroom
from strongroom.errors import MissingExtra, NotFound, UnknownFramework
from strongroom.loaders import registry
from strongroom.loaders.source import extra_for

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def in_memory(save, *arguments, **options):
    buffer = io.BytesIO()
    save(*arguments, buffer, **options)
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


X = torch.ones(1, 16)
CONTENTS = {
    "torch": lambda: in_memory(torch.save, {"w": torch.ones(3)}),
    "legacy torch": lambda: in_memory(
        torch.save, {"w": torch.ones(3)}, _use_new_zipfile_serialization=False
    ),
    "torchscript": lambda: in_memory(torch.jit.save, torch.jit.trace(Net(), X)),
    "torch.export": lambda: in_memory(torch.export.save, torch.export.export(Net(), (X,))),
    "older torch.export": lambda: zipped("serialized_exported_program.json", "version"),
    "safetensors": lambda: save_safetensors({"w": torch.ones(3)}),
    "onnx": lambda: build_onnx().SerializeToString(),
    "ort onnx": lambda: b"\x18\0\0\0ORTM" + bytes(100),
}
OTHERS = {
    "nothing": b"",
    "a byte": b"\x08",
    "text": b"just some text, and then more of it",
    "zeros": bytes(4096),
    "another archive": zipped("word/document.xml"),
    "no archive": b"PK\3\4" + bytes(50),
    "the beginning of an archive": b"PK\3\4",
    "a pickle": b"\x80\x04K\x01.",
    "a header longer than the file": (1000).to_bytes(8, "little") + b'{"a": 1}',
}


@pytest.fixture
def framework_names(tmp_path, key):
    def detect(content: bytes | dict[str, bytes], **options):
        source = tmp_path / "model"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            for name, part in content.items():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(part)
        strongroom.seal(source, tmp_path / "sealed", key=key, overwrite=True)
        with strongroom.open(tmp_path / "sealed", key=key) as model:
            return registry.detect(model, **options)

    return detect


@pytest.mark.parametrize("name", CONTENTS)
def test_by_content_alone(name, framework_names):
    assert framework_names(CONTENTS[name]()) == name.rpartition(" ")[2]


@pytest.mark.parametrize("name", OTHERS)
def test_no_framework(name, framework_names):
    with pytest.raises(UnknownFramework, match="No loader knows") as error:
        framework_names(OTHERS[name])
    assert all(choice in error.value.hint for choice in registry.FRAMEWORKS)


CONFIG = json.dumps({"model_type": "bert", "architectures": ["BertModel"]}).encode()


@pytest.mark.parametrize(
    "weights",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
)
def test_transformers(weights, framework_names):
    assert framework_names({"config.json": CONFIG, weights: b"{}"}) == "transformers"


def test_directories(framework_names):
    tensors = CONTENTS["safetensors"]()
    assert framework_names({"a/w.safetensors": tensors, "readme.md": b"x"}) == "safetensors"
    assert framework_names({"config.json": b"{}", "model.safetensors": tensors}) == "safetensors"
    assert framework_names({"config.json": b"[", "model.safetensors": tensors}) == "safetensors"


def test_onnx_directory(framework_names):
    content = {"model.onnx": CONTENTS["onnx"](), "w.bin": b"\0" * 1000, "config.json": CONFIG}
    assert framework_names(content) == "onnx"


def test_suffix_that_lies(framework_names):
    assert framework_names({"m.bin": CONTENTS["torchscript"](), "x.pt": b"text"}) == "torchscript"


def test_several(framework_names):
    content = {"m.pt": CONTENTS["torch"](), "m.onnx": CONTENTS["onnx"]()}
    with pytest.raises(UnknownFramework, match=r"m\.onnx \(onnx\), m\.pt \(torch\)") as error:
        framework_names(content)
    assert "framework=" in error.value.hint
    assert "path=" in error.value.hint
    assert framework_names(content, path="m.pt") == "torch"
    with pytest.raises(UnknownFramework, match="No loader knows"):
        framework_names({"notes.txt": b"x", "m.pt": b"text", "m.onnx": b"text"})


def test_load_gives_what_the_framework_gives(tmp_path, key):
    for name in ("torch", "legacy torch", "torchscript", "torch.export", "safetensors", "onnx"):
        (tmp_path / "m").write_bytes(CONTENTS[name]())
        strongroom.seal(tmp_path / "m", tmp_path / "s", key=key, overwrite=True)
        options = {"providers": ["CPUExecutionProvider"]} if name == "onnx" else {}
        loaded = strongroom.load(tmp_path / "s", key=key, **options)
        kind = {
            "torchscript": torch.jit.ScriptModule,
            "torch.export": torch.export.ExportedProgram,
            "onnx": onnxruntime.InferenceSession,
        }.get(name, dict)
        assert isinstance(loaded, kind)
        if kind is dict:
            assert torch.equal(loaded["w"], torch.ones(3))


def test_load_of_transformers(tmp_path, key):
    model = bert()
    model.save_pretrained(tmp_path / "m")
    strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
    loaded = strongroom.load(tmp_path / "s", key=key)
    assert type(loaded) is transformers.BertForSequenceClassification
    tensors = strongroom.load(tmp_path / "s", key=key, framework="safetensors")
    assert set(tensors) == set(model.state_dict())
    arrays = strongroom.load(tmp_path / "s", key=key, path="model.safetensors", framework="safetensors")
    assert set(arrays) == set(tensors)


def test_machine_code_that_is_only_found_is_not_run(tmp_path, key):
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/other/x.cpp", b"")
    strongroom.seal(tmp_path / "m.pt2", tmp_path / "s", key=key)
    for options in ({}, {"allow_native_code": 1}, {"path": "m.pt2"}):
        with pytest.raises(UnknownFramework, match="machine code") as error:
            strongroom.load(tmp_path / "s", key=key, **options)
        assert "allow_native_code=True" in error.value.hint
    # Where somebody has said so, the loader looks at it.
    for options in ({"allow_native_code": True}, {"framework": "aotinductor"}):
        with pytest.raises(NotFound, match="has no model"):
            strongroom.load(tmp_path / "s", key=key, **options)
    # For others the word means nothing.
    (tmp_path / "m").write_bytes(CONTENTS["safetensors"]())
    strongroom.seal(tmp_path / "m", tmp_path / "t", key=key)
    assert strongroom.load(tmp_path / "t", key=key, allow_native_code=True)["w"].shape == (3,)


def test_options_reach_the_loader(tmp_path, key):
    (tmp_path / "m").write_bytes(CONTENTS["safetensors"]())
    strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
    with pytest.raises(UnknownFramework, match="'np'") as error:
        strongroom.load(tmp_path / "s", key=key, framework="np")
    assert "safetensors" in error.value.hint
    with pytest.raises(TypeError, match="no_such_option"):
        strongroom.load(tmp_path / "s", key=key, no_such_option=1)
    with strongroom.open(tmp_path / "s", key=key) as model:
        assert numpy.array_equal(registry.load(model)["w"], numpy.ones(3))


BLOCKED = """
import sys
sys.modules[{module!r}] = None  # importing it raises ModuleNotFoundError
import strongroom
try:
    getattr(strongroom.loaders, {loader!r})
except strongroom.errors.MissingExtra as error:
    print(error, error.hint, error.extra, sep="|")
"""


@pytest.mark.parametrize(
    ("loader", "module"),
    [
        ("torch", "torch"),
        ("safetensors", "safetensors"),
        ("onnx", "onnxruntime"),
        ("transformers", "transformers"),
        ("transformers", "torch"),
    ],
)
def test_missing_package_names_the_extra(loader, module):
    script = BLOCKED.format(loader=loader, module=module)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    message, hint, extra = done.stdout.strip().split("|")
    assert message.endswith("needs packages that are not installed.")
    assert hint == f'pip install "strongroom[{extra}]"'
    assert extra == loader


def test_detection_imports_no_framework(tmp_path, key):
    (tmp_path / "m").write_bytes(CONTENTS["torch"]())
    strongroom.seal(tmp_path / "m", tmp_path / "s", key=key)
    script = (
        "import sys, strongroom\nfrom strongroom.loaders import registry\n"
        f"with strongroom.open({str(tmp_path / 's')!r}, key={key!r}) as model:\n"
        "    print(registry.detect(model))\n"
        "assert not {'torch', 'numpy', 'onnxruntime', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "torch\n"


def test_a_package_that_is_there_but_broken_is_not_called_missing():
    broken = ModuleNotFoundError("No module named 'libfoo'", name="libfoo")
    assert extra_for(broken, "torch", "x", "torch") is broken
    assert isinstance(extra_for(ModuleNotFoundError(name="torch"), "torch", "x", "torch"), MissingExtra)
