"""The codecs by name. Those of other packages are entry points of the group ``strongroom.codecs``."""

from __future__ import annotations

import importlib
from typing import Final

from strongroom.compat.base import Codec
from strongroom.errors import UsageError

__all__ = ["CODECS", "codec"]

CODECS: Final = {
    "model-cryptor": ("fernet", "FernetCodec"),
    "laiye": ("laiye", "LaiyeCodec"),
    "gramine": ("gramine", "GramineCodec"),
    "sgx-pytorch": ("sgx_pytorch", "SgxPytorchCodec"),
    "kserve-jwe": ("kserve_jwe", "KserveJweCodec"),
    "paddle-cipher": ("paddle_cipher", "PaddleCipherCodec"),
    "openvino-addon": ("openvino_addon", "OpenvinoAddonCodec"),
    "onnx-byte": ("onnx_byte", "OnnxByteCodec"),
    "tensorizer": ("tensorizer", "TensorizerCodec"),
    "cryptotensors": ("cryptotensors", "CryptotensorsCodec"),
}
"""Name → module of :mod:`strongroom.compat` and class in it."""

_GROUP: Final = "strongroom.codecs"


def codec(name: str) -> type[Codec]:
    """The codec called ``name``.

    Raises:
        UsageError: there is none.
        MissingExtra: it needs a package that is not installed.
    """
    if name in CODECS:
        module, kind = CODECS[name]
        found: type[Codec] = getattr(importlib.import_module(f"strongroom.compat.{module}"), kind)
        return found
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=_GROUP, name=name):
        plugin: type[Codec] = entry_point.load()
        return plugin
    raise UsageError(f"There is no format {name!r}.", hint="There are: " + ", ".join(CODECS) + ".")
