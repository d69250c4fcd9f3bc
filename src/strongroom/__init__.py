"""strongroom: deep-learning models, sealed at rest and loaded straight into memory.

>>> strongroom.seal("resnet50/", "resnet50.sealed", key="key.txt")
>>> with strongroom.open("resnet50.sealed", key="key.txt") as model:
...     config = model.read("config.json")

Importing this package imports no framework; everything here is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from strongroom import errors, loaders
    from strongroom.api import (
        create,
        export_model,
        import_model,
        inspect,
        load,
        open,
        rewrap,
        seal,
        unseal,
        verify,
    )
    from strongroom.crypto.secret import SecretBytes
    from strongroom.errors import StrongroomError
    from strongroom.keys import (
        HpkeIdentity,
        HpkeRecipient,
        Identity,
        Passphrase,
        Recipient,
        SymmetricKey,
    )
    from strongroom.model.reader import FileInfo, SealedModel

__all__ = [
    "FileInfo",
    "HpkeIdentity",
    "HpkeRecipient",
    "Identity",
    "Passphrase",
    "Recipient",
    "SealedModel",
    "SecretBytes",
    "StrongroomError",
    "SymmetricKey",
    "create",
    "errors",
    "export_model",
    "import_model",
    "inspect",
    "load",
    "loaders",
    "open",
    "rewrap",
    "seal",
    "unseal",
    "verify",
]

_HOME = {
    **dict.fromkeys(
        ("create", "export_model", "import_model", "inspect", "load", "open", "rewrap", "seal"),
        "strongroom.api",
    ),
    **dict.fromkeys(("unseal", "verify"), "strongroom.api"),
    **dict.fromkeys(
        ("HpkeIdentity", "HpkeRecipient", "Identity", "Passphrase", "Recipient", "SymmetricKey"),
        "strongroom.keys",
    ),
    **dict.fromkeys(("FileInfo", "SealedModel"), "strongroom.model.reader"),
    "SecretBytes": "strongroom.crypto.secret",
    "StrongroomError": "strongroom.errors",
}
_MODULES = ("errors", "loaders")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"strongroom.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'strongroom' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
