"""PyTorch: state dicts, pickled modules, TorchScript, exported programs.

``f`` is the place of a sealed file or directory, or an open :class:`~strongroom.SealedModel`; ``path``
says which file of a directory. All other arguments are those of the functions of the same purpose
in ``torch``, and so is the result.
"""

from __future__ import annotations

import inspect
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from strongroom.loaders.source import ModelSource, archive_members, extra_for, opened, pick
from strongroom.model.memory import memory_file
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import torch
    from torch import serialization
except ModuleNotFoundError as error:
    raise extra_for(error, "torch", "Loading PyTorch models", "torch") from None

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["export_load", "jit_load", "load"]

_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
_FORCED: Final = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def load(
    f: ModelSource,
    map_location: Any = None,
    *,
    key: KeySource | None = None,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    path: str | None = None,
    **pickle_load_args: Any,
) -> Any:
    """``torch.load`` from a sealed model.

    Tensors on the CPU are views of one block of memory that the file was decrypted into, as they are
    views of the mapped file with ``torch.load(…, mmap=True)``: the block lives as long as one of them.

    Args:
        weights_only: None is True, as in torch.
        mmap: True goes through a memory file and torch's own mapping of it.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        pickle.UnpicklingError: ``weights_only`` refuses what the file holds, as in torch.
    """
    weights_only = weights_only is None or bool(weights_only)
    with opened(f, key) as model:
        name = pick(model, path, _SUFFIXES, "PyTorch")
        if mmap:
            with memory_file("model.pt", model.files[name].size) as (memory, place):
                model.read_into(name, memory)
                return torch.load(
                    place, map_location, weights_only=weights_only, mmap=True, **pickle_load_args
                )
        if _in_place(map_location, pickle_load_args) and _is_plain_archive(model, name):
            try:
                return _load_in_place(model.load(name), map_location, weights_only)
            except pickle.UnpicklingError:
                if not weights_only:
                    raise
                # torch.load says more about what it refused; let it say so itself.
        file: Any = model.open(name)
        return torch.load(file, map_location, weights_only=weights_only, mmap=False, **pickle_load_args)


def jit_load(
    f: ModelSource,
    map_location: Any = None,
    _extra_files: dict[str, Any] | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> torch.jit.ScriptModule:
    """``torch.jit.load`` from a sealed model.

    torch copies the weights out of the archive: while it loads there are two copies, afterwards one.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
    """
    with opened(f, key) as model:
        name = pick(model, path, (".pt", ".pth", ".ts", ".jit", ".torchscript"), "TorchScript")
        # A file object would be read as one bytes and copied twice more.
        with memory_file("model.pt", model.files[name].size) as (memory, place):
            model.read_into(name, memory)
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]  # torch has no types here
                place, map_location, _extra_files
            )
            return module


def export_load(
    f: ModelSource,
    *,
    key: KeySource | None = None,
    extra_files: dict[str, Any] | None = None,
    expected_opset_version: Mapping[str, int] | None = None,
    path: str | None = None,
) -> torch.export.ExportedProgram:
    """``torch.export.load`` from a sealed model; every weight is decrypted into its own tensor.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
    """
    with opened(f, key) as model:
        name = pick(model, path, (".pt2",), "torch.export")
        return torch.export.load(
            model.open(name),  # type: ignore[arg-type]  # says IO[bytes], takes any such object
            extra_files=extra_files,
            expected_opset_version=(
                None if expected_opset_version is None else dict(expected_opset_version)
            ),
        )


def _in_place(map_location: Any, pickle_load_args: Mapping[str, Any]) -> bool:
    """Whether the zero-copy way gives what torch.load would.

    It needs three functions that torch keeps to itself (seen in 2.13): where they are missing or
    have other parameters, torch.load reads each tensor from the sealed file, with the same result.
    """
    if pickle_load_args or any(name in os.environ for name in _FORCED):
        return False
    if str(map_location) == "meta":  # no weight is read at all
        return False
    inner = getattr(serialization, "_load", None)
    return (
        inner is not None
        and hasattr(torch, "_weights_only_unpickler")
        and hasattr(torch._C, "PyTorchFileReader")
        and {"zip_file", "map_location", "pickle_module", "overall_storage"}
        <= inspect.signature(inner).parameters.keys()
    )


def _is_plain_archive(model: SealedModel, name: str) -> bool:
    """Whether it is an archive as torch.save writes it: nothing compressed, not TorchScript."""
    members = archive_members(model, name)
    return members is not None and all(
        member.compress_type == zipfile.ZIP_STORED and not member.filename.endswith("/constants.pkl")
        for member in members
    )


def _load_in_place(memory: memoryview, map_location: Any, weights_only: bool) -> Any:
    unpickler: Any = torch._weights_only_unpickler if weights_only else pickle
    file: Any = _MemoryReader(memory)
    return serialization._load(  # type: ignore[no-untyped-call]  # nor here
        torch._C.PyTorchFileReader(file),
        map_location,
        unpickler,
        overall_storage=torch.frombuffer(memory, dtype=torch.uint8).untyped_storage(),
        encoding="utf-8",
    )


class _MemoryReader(io.RawIOBase):
    """A file over memory that nobody copies (BytesIO would)."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._memory)}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        out = memoryview(buffer).cast("B")
        part = self._memory[self._position : self._position + len(out)]
        out[: len(part)] = part
        self._position += len(part)
        return len(part)
