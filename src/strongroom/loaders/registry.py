"""Which loader a model is for, and calling it."""

from __future__ import annotations

import importlib
import json
from typing import Any, Final

from strongroom.errors import UnknownFramework
from strongroom.loaders.source import ModelSource, archive_members, opened
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

__all__ = ["FRAMEWORKS", "detect", "load"]

FRAMEWORKS: Final = {
    "torch": ("torch", "load"),
    "torchscript": ("torch", "jit_load"),
    "torch.export": ("torch", "export_load"),
    "safetensors": ("safetensors", "load_file"),
    "onnx": ("onnx", "session"),
    "transformers": ("transformers", "from_pretrained"),
}
"""Name → module of :mod:`strongroom.loaders` and function in it."""

_SUFFIXES: Final = (
    *(".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".pt2", ".ts", ".jit", ".torchscript"),
    *(".safetensors", ".onnx", ".ort"),
)
_TORCH_LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What torch.save wrote before 1.6 begins with this pickled number.

_MAX_SAFETENSORS_HEADER: Final = 100_000_000
_MAX_CONFIG: Final = 16 << 20

_ONNX_FIELDS: Final = frozenset(
    (number << 3 | kind)
    for number, kind in ((2, 2), (3, 2), (4, 2), (5, 0), (6, 2), (7, 2), (8, 2), (14, 2))
)
# Tags that may follow ir_version, field 1 of ModelProto in onnx.proto.


def load(
    source: ModelSource,
    *,
    key: KeySource | None = None,
    framework: str | None = None,
    **options: Any,
) -> Any:
    """Load with the loader of ``framework``, or with the one that :func:`detect` finds.

    Raises:
        UnknownFramework: there is no such loader, none fits, or several do.
        StrongroomError: see :mod:`strongroom.errors`.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise UnknownFramework(f"There is no loader {framework!r}.", hint=_choices())
    with opened(source, key) as model:
        module, function = FRAMEWORKS[framework or detect(model, options.get("path"))]
        loader = getattr(importlib.import_module(f"strongroom.loaders.{module}"), function)
        return loader(model, **options)


def detect(model: SealedModel, path: str | None = None) -> str:
    """The name of the loader for a model, by the names and the first bytes of its files.

    Args:
        path: look at this file alone.

    Raises:
        UnknownFramework: none fits, or several do.
    """
    if path is None and _is_transformers(model):
        return "transformers"
    if path is not None or len(model.files) == 1:
        candidates = [path or next(iter(model.files))]
    else:
        candidates = [name for name in model.files if name.lower().endswith(_SUFFIXES)]
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
            hint="Say which file with path=…, or which loader with framework=…; " + _choices(),
        )
    raise UnknownFramework(f"No loader knows the files of {model.name}.", hint=_choices())


def _choices() -> str:
    return "the loaders are " + ", ".join(FRAMEWORKS) + "."


def _is_transformers(model: SealedModel) -> bool:
    info = model.files.get("config.json")
    if info is None or info.size > _MAX_CONFIG:
        return False
    if not any(
        name in model.files
        for weights in ("model.safetensors", "pytorch_model.bin")
        for name in (weights, weights + ".index.json")
    ):
        return False
    try:
        config = json.loads(model.read("config.json"))
    except ValueError:
        return False
    return isinstance(config, dict) and ("architectures" in config or "model_type" in config)


def _kind(model: SealedModel, name: str) -> str | None:
    size = model.files[name].size
    start = bytearray(64)
    del start[model.read_into(name, start) :]
    if start.startswith(b"PK\3\4"):
        return _archive_kind(model, name)
    if start.startswith(_TORCH_LEGACY):
        return "torch"
    if start[4:8] == b"ORTM":
        return "onnx"
    length = int.from_bytes(start[:8], "little")
    if len(start) > 8 and length <= min(_MAX_SAFETENSORS_HEADER, size - 8) and start[8:9] == b"{":
        return "safetensors"
    if len(start) > 3 and start[0] == 0x08 and 0 < start[1] < 0x80 and start[2] in _ONNX_FIELDS:
        return "onnx"
    return None


def _archive_kind(model: SealedModel, name: str) -> str | None:
    members = [member.filename for member in archive_members(model, name) or ()]
    # Everything lies in one folder, except in the first format of torch.export.
    inside = {member.partition("/")[2] for member in members} | set(members)
    if "serialized_exported_program.json" in inside or "archive_format" in inside:
        return "torch.export"
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside:
        return "torch"
    return None
