"""State dicts as Hugging Face's libraries lay them out: one file, or shards and an index of them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders import safetensors as safetensors_loader
from strongroom.loaders import torch as torch_loader
from strongroom.model.reader import SealedModel

__all__ = ["small_files", "state_dict"]

_SMALL: Final = 64 << 20
# Larger files are weights; the largest tokenizers have some 35 MB.

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".gguf")


def small_files(model: SealedModel, folder: str = "") -> list[str]:
    """What is no weights: configurations, vocabularies, merges."""
    inside = folder.rstrip("/") + "/" if folder else ""
    return [
        path
        for path, info in model.files.items()
        if path.startswith(inside) and info.size <= _SMALL and not path.lower().endswith(_WEIGHTS)
    ]


def state_dict(
    model: SealedModel,
    folder: str,
    stems: Sequence[tuple[str, str]],
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> dict[str, Any]:
    """All weights by name, as views of the memory that each file was decrypted into, once.

    Args:
        stems: names of files without what a variant or an index puts into them, with their suffix;
            the first that is there is taken.

    Raises:
        NotFound: there are no such weights.
    """
    middle = f".{variant}" if variant else ""
    if use_safetensors is not None:
        stems = [pair for pair in stems if (pair[1] == "safetensors") is use_safetensors]
    for stem, suffix in stems:
        single = posixpath.join(folder, f"{stem}{middle}.{suffix}")
        index = posixpath.join(folder, f"{stem}.{suffix}.index{middle}.json")
        if single in model.files:
            return _file(model, single)
        if index in model.files:
            return _shards(model, folder, index)
    names = " or ".join(f"{stem}{middle}.{suffix}" for stem, suffix in stems)
    raise NotFound(
        f"{model.name} has no weights{f' in {folder}' if folder else ''}: no {names}, whole or in shards.",
        hint="Give subfolder=… or variant=…, or seal the directory that save_pretrained wrote.",
    )


def _file(model: SealedModel, path: str) -> dict[str, Any]:
    if path.endswith(".safetensors"):
        return safetensors_loader.load_file(model, path=path)
    found: dict[str, Any] = torch_loader.load(model, "cpu", weights_only=True, path=path)
    return found


def _shards(model: SealedModel, folder: str, index: str) -> dict[str, Any]:
    try:
        content = json.loads(model.read(index))
    except (ValueError, RecursionError):
        content = None
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(weight_map, Mapping) or not all(isinstance(n, str) for n in weight_map.values()):
        raise UsageError(
            f"{index} has no weight_map from names to files.", hint="save_pretrained writes one."
        )
    state: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        state |= _file(model, posixpath.join(folder, shard))
    return state
