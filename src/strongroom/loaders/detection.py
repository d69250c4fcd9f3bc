"""Which framework a model is for, by the names of its files and their first bytes."""

from __future__ import annotations

import json
from typing import Any, Final

from strongroom.errors import UnknownFramework
from strongroom.loaders.source import archive_members
from strongroom.model.reader import SealedModel

__all__ = ["detect"]

_SUFFIXES: Final = (
    *(".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".pt2", ".ts", ".jit", ".torchscript"),
    *(".safetensors", ".onnx", ".ort", ".keras", ".h5", ".hdf5", ".tflite", ".pb", ".gguf", ".xml"),
    *(".pdparams", ".pdopt", ".pdmodel", ".json", ".ubj", ".plan", ".engine", ".trt", ".txt"),
    *(".lgb", ".skops", ".joblib", ".pickle", ".msgpack"),
)
"""Of a directory, files with other names are not looked at."""

_SAVED_MODELS: Final = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_HEAD: Final = 256
_MAX_SAFETENSORS_HEADER: Final = 100_000_000
_MAX_CONFIG: Final = 16 << 20

_STARTS: Final = (
    (b"GGUF", "llama_cpp"),
    (b"\x89HDF\r\n\x1a\n", "keras"),
    (b'{"base_code":{"magic":"pir"', "paddle.jit"),
    (b'{"learner":', "xgboost"),
    (b'{"version":[', "xgboost"),
    (b"{L\0\0\0\0\0\0\0\x07learner", "xgboost"),
    (b"tree\nversion=", "lightgbm"),
    (b"ftrt", "tensorrt"),
    (b"ptrt", "tensorrt"),
    # What torch.save wrote before 1.6 begins with this pickled number.
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch"),
)
_MARKS_AT_FOUR: Final = {b"ORTM": "onnx", b"TFL3": "tflite"}
"""Identifiers of flatbuffers, behind four bytes of offset."""

_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"]\0\0", b"x", b"ZF")
_BY_SUFFIX: Final = (
    ((".pdparams", ".pdopt"), (b"\x80",), "paddle"),
    ((".pdmodel",), (b"\x0a",), "paddle.jit"),
    ((".pb",), (b"\x0a",), "tensorflow.graph_def"),
    ((".plan", ".engine", ".trt"), (b"",), "tensorrt"),
    ((".joblib", ".pkl", ".pickle"), (b"\x80", *_COMPRESSED), "joblib"),
    # A map of msgpack with up to 15, 2**16 or 2**32 keys.
    ((".msgpack",), (*(bytes([byte]) for byte in range(0x80, 0x90)), b"\xde", b"\xdf"), "flax"),
)
"""Formats that say too little of themselves: suffixes, possible first bytes, framework."""

_ONNX_FIELDS: Final = frozenset(
    (number << 3 | kind)
    for number, kind in ((2, 2), (3, 2), (4, 2), (5, 0), (6, 2), (7, 2), (8, 2), (14, 2))
)
# Tags that may follow ir_version, field 1 of ModelProto in onnx.proto.


def detect(model: SealedModel, path: str | None, choices: str) -> str:
    """The name of the loader for a model.

    Args:
        path: look at this file or folder alone.
        choices: a sentence about the loaders there are, for errors.

    Raises:
        UnknownFramework: none fits, or several do.
    """
    if (path is None or path not in model.files) and (tree := _tree_kind(model, path)):
        return tree
    if (path is not None and path in model.files) or len(model.files) == 1:
        candidates = [path or next(iter(model.files))]
    else:
        folder = f"{path.rstrip('/')}/" if path else ""
        candidates = [
            name for name in model.files if name.startswith(folder) and name.lower().endswith(_SUFFIXES)
        ]
    kinds: dict[str, str] = {}
    for name in candidates:
        if kind := _kind(model, name):
            kinds.setdefault(kind, name)
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds:
        found = ", ".join(f"{name} ({kind})" for kind, name in kinds.items())
        raise UnknownFramework(
            f"{model.name} has files for several frameworks: {found}.",
            hint="Say which file with path=…, or which loader with framework=…; " + choices,
        )
    raise UnknownFramework(f"No loader knows the files of {model.name}.", hint=choices)


def _tree_kind(model: SealedModel, path: str | None) -> str | None:
    """The framework of a directory whose names say it."""
    folder = f"{path.rstrip('/')}/" if path else ""
    if "_class_name" in _json(model, f"{folder}model_index.json"):
        return "diffusers"
    config = _json(model, f"{folder}config.json")
    weights = ("model.safetensors", "pytorch_model.bin")
    if ("architectures" in config or "model_type" in config) and any(
        f"{folder}{name}{index}" in model.files for name in weights for index in ("", ".index.json")
    ):
        return "transformers"
    if any(
        name.startswith(folder) and name.rpartition("/")[2] in _SAVED_MODELS for name in model.files
    ):
        return "tensorflow"
    if {f"{folder}config.json", f"{folder}model.weights.h5"} <= model.files.keys():
        return "keras"
    return None


def _json(model: SealedModel, name: str) -> dict[str, Any]:
    """A small file of JSON, or nothing."""
    info = model.files.get(name)
    if info is None or info.size > _MAX_CONFIG:
        return {}
    try:
        content = json.loads(model.read(name))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _kind(model: SealedModel, name: str) -> str | None:
    head = bytearray(_HEAD)
    del head[model.read_into(name, head) :]
    if head.startswith(b"PK\3\4"):
        return _archive_kind(model, name)
    for start, framework in _STARTS:
        if head.startswith(start):
            return framework
    if mark := _MARKS_AT_FOUR.get(bytes(head[4:8])):
        return mark
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")) and b"<net" in head:
        return "openvino"
    length = int.from_bytes(head[:8], "little")
    limit = min(_MAX_SAFETENSORS_HEADER, model.files[name].size - 8)
    if len(head) > 8 and length <= limit and head[8:9] == b"{":
        return "safetensors"
    if len(head) > 3 and head[0] == 0x08 and 0 < head[1] < 0x80 and head[2] in _ONNX_FIELDS:
        return "onnx"
    for suffixes, firsts, framework in _BY_SUFFIX:
        if head and name.lower().endswith(suffixes) and head.startswith(firsts):
            return framework
    return None


def _archive_kind(model: SealedModel, name: str) -> str | None:
    members = [member.filename for member in archive_members(model, name) or ()]
    # Everything lies in one folder, except in the first format of torch.export.
    inside = {member.partition("/")[2] for member in members} | set(members)
    if any(member.startswith("data/aotinductor/") for member in inside):
        return "aotinductor"
    if "serialized_exported_program.json" in inside or "archive_format" in inside:
        return "torch.export"
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside:
        return "torch"
    if {"config.json", "model.weights.h5"} <= set(members):
        return "keras"
    if "schema.json" in members:
        return "sklearn"
    return None
