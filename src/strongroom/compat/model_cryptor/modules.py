"""Whole ``torch.nn.Module`` objects, unpickled without running what a pickle likes."""

from __future__ import annotations

import importlib
import pickle
import threading
from collections.abc import Sequence
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.loaders import torch as loader
from strongroom.loaders.source import pick
from strongroom.model.reader import SealedModel

import torch  # isort: skip  # behind the loader, which says what to install when it is missing

__all__ = ["load"]

_ALLOWING: Final = threading.Lock()
_SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
_NAMED: Final = 4
"""How many classes and functions an error lists."""


def load(model: SealedModel, map_location: Any, *, path: str | None = None, **options: Any) -> Any:
    """``torch.load(weights_only=True)``, with classes of ``torch.nn.Module`` allowed besides.

    Of a pickle it makes tensors, containers and modules. It imports the classes by name, as unpickling
    does, and calls nothing but them: what an installed class does when it is made from arguments that
    somebody chose is the limit of what this keeps out.

    Raises:
        UsageError: the pickle names a function, or a class of another kind.
        StrongroomError: it is not authentic.
    """
    name = pick(model, path, _SUFFIXES, "PyTorch")
    try:
        return loader.load(model, map_location, path=name, **options)
    except pickle.UnpicklingError:
        wanted = _wanted(model, name)
        if not wanted:
            raise
    classes = [found for name in wanted if (found := _module_class(name))]
    if len(classes) < len(wanted):
        raise _refusal(model, [name for name in wanted if _module_class(name) is None])
    # The list of what torch allows is one for the process.
    with _ALLOWING, torch.serialization.safe_globals([*classes]):
        return loader.load(model, map_location, path=name, **options)


def _wanted(model: SealedModel, name: str) -> list[str]:
    """What a pickle names and torch does not allow; nothing if that is not to be had."""
    file: Any = model.open(name)
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # no zip archive: the format before torch 1.6, or another file
        return []


def _module_class(name: str) -> type | None:
    """The class of modules that a pickle calls ``name``; None if it is something else."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, torch.nn.Module) else None


def _refusal(model: SealedModel, names: Sequence[str]) -> UsageError:
    more = " and others" if len(names) > _NAMED else ""
    named = f": {', '.join(sorted(names)[:_NAMED])}{more}" if names else ""
    return UsageError(
        f"{model.name} is a pickle of more than weights and torch modules{named}.",
        hint="If you trust who encrypted it, and everything named is installed: "
        "decrypt(…, weights_only=False), which runs what the pickle says. Or encrypt model.state_dict().",
    )
