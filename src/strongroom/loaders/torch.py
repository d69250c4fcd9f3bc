"""PyTorch: state dicts, pickled modules, TorchScript, exported programs, compiled packages.

``f`` is the place of a sealed file or directory, or an open :class:`~strongroom.SealedModel`; ``path``
says which file of a directory. All other arguments are those of the functions of the same purpose
in ``torch``, and so is the result.

:func:`seal_state_dict` and :func:`load_into` seal weights from memory and load them into a module. With
keys kept by model id (:mod:`strongroom.providers.by_model`) the caller names none:

>>> seal_state_dict(model.state_dict(), "resnet50.sealed", key="keys/", model_id="resnet50")
>>> load_into(model, "resnet50.sealed")  # STRONGROOM_KEY_FILE=keys/
"""

from __future__ import annotations

import inspect
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.loaders.aotinductor import aoti_load_package
from strongroom.loaders.source import (
    ModelSource,
    archive_members,
    check_members,
    extra_for,
    opened,
    pick,
)
from strongroom.model.collect import checked_path
from strongroom.model.location import local
from strongroom.model.output import open_file_output
from strongroom.model.random_access import RandomAccessFile
from strongroom.model.reader import SealedModel
from strongroom.model.writer import SealedWriter, build_meta
from strongroom.providers import sources
from strongroom.providers.by_model import KeyOfModel, ModelKeySource, key_of_model, model_id_text
from strongroom.providers.sources import KeySource

try:
    import torch
    from torch import serialization
except ModuleNotFoundError as error:
    raise extra_for(error, "torch", "Loading PyTorch models", "torch") from None

__all__ = [
    "aoti_load_package",
    "export_load",
    "jit_load",
    "load",
    "load_into",
    "seal_state_dict",
]

_SUFFIXES: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
_FORCED: Final = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
_ENVIRONMENT: Final = threading.Lock()


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
        members = _checked_members(model, name)
        if mmap:
            with model.path(name) as place:
                return torch.load(
                    place, map_location, weights_only=weights_only, mmap=True, **pickle_load_args
                )
        if _in_place(map_location, pickle_load_args) and _is_plain_archive(members):
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
        _checked_members(model, name)
        # A file object would be read as one bytes and copied twice more.
        with model.path(name) as place:
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
    weights_only: bool = True,
    path: str | None = None,
) -> torch.export.ExportedProgram:
    """``torch.export.load`` from a sealed model; every weight is decrypted into its own tensor.

    Args:
        weights_only: refuse pickles of anything but tensors, as :func:`load` does. torch would run the
            code of their author. While this loads, ``torch.load`` in other threads refuses them too.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        pickle.UnpicklingError: ``weights_only`` refuses what the file holds.
    """
    with opened(f, key) as model, _tensors_alone() if weights_only else nullcontext():
        name = pick(model, path, (".pt2",), "torch.export")
        _checked_members(model, name)
        return torch.export.load(
            model.open(name),  # type: ignore[arg-type]  # says IO[bytes], takes any such object
            extra_files=extra_files,
            expected_opset_version=(
                None if expected_opset_version is None else dict(expected_opset_version)
            ),
        )


def seal_state_dict(
    state_dict: Mapping[str, Any],
    destination: str | os.PathLike[str],
    *,
    key: ModelKeySource | None = None,
    recipients: KeySource | None = None,
    model_id: str | bytes | None = None,
    name: str | None = None,
    version: str | None = None,
    meta: Mapping[str, Any] | None = None,
    segment_size: int = DEFAULT_SEGMENT,
    overwrite: bool = False,
) -> None:
    """Seal a state dict from memory; ``torch.save`` writes it, and no plaintext touches a disk.

    Args:
        state_dict: or whatever else ``torch.save`` takes. Some 20 MB of memory are used beside it.
        destination: a path or a URL.
        key: who can open it; also keys by model id, as for
            :func:`~strongroom.providers.by_model.key_of_model`.
        model_id: said in the header, ``meta["model_id"]``; authenticated, not secret. Bytes are
            written in hexadecimal.

    The other arguments are those of :func:`strongroom.seal`.

    Raises:
        StrongroomError: and then nothing is left behind, and what was there stays.
    """
    said = None if model_id is None else model_id_text(model_id)
    if key is not None or recipients is None:
        key = key_of_model(key, said)
    wrapped_for = sources.recipients(key, recipients)
    destination = local(destination)
    inside = os.path.basename(os.fspath(destination)).removesuffix(SEALED_SUFFIX)
    inside = checked_path(inside, os.fspath(destination))
    described = build_meta(name, version, meta, model_id=said)
    output = open_file_output(destination, overwrite=overwrite, private=False)
    with SealedWriter(output, wrapped_for, inside, described, segment_size) as file:
        torch.save(state_dict, file)  # type: ignore[arg-type]  # as above


def load_into(
    module: torch.nn.Module,
    f: ModelSource,
    *,
    key: ModelKeySource | None = None,
    model_id: str | bytes | None = None,
    strict: bool = True,
    assign: bool = False,
    path: str | None = None,
) -> Any:
    """``module.load_state_dict`` from a sealed state dict.

    With ``assign`` the parameters become views of the memory that was decrypted into, and nothing is
    copied; without, they keep their memory, and there is a second copy until this returns.

    Args:
        key: also keys by model id, as for :func:`~strongroom.providers.by_model.key_of_model`.
        model_id: the only model to accept.
        strict: as in torch.
        assign: as in torch.

    Returns:
        What ``load_state_dict`` returns: the names that were missing and unexpected.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or has another id.
    """
    keys = KeyOfModel(key, expected=None if model_id is None else model_id_text(model_id))
    is_open = isinstance(f, SealedModel)
    if is_open and key is not None:
        raise UsageError("The model is open already and takes no key.", hint="Leave out key.")
    with opened(f, None if is_open else keys) as model:
        keys.check(model.meta)
        state = load(model, "cpu", path=path)
    return module.load_state_dict(state, strict=strict, assign=assign)


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """``weights_only=True`` for whatever torch calls; where it takes no argument, the environment says it."""
    with _ENVIRONMENT:
        before = {name: os.environ.pop(name, None) for name in _FORCED}
        os.environ[_FORCED[0]] = "1"
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


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


def _checked_members(model: SealedModel, name: str) -> list[zipfile.ZipInfo] | None:
    """What is in an archive, or None if the file is not one; torch inflates whatever there is.

    Raises:
        FormatError: see :func:`~strongroom.loaders.source.check_members`.
    """
    members = archive_members(model, name)
    if members is not None:
        check_members(members, model.files[name].size, name)
    return members


def _is_plain_archive(members: list[zipfile.ZipInfo] | None) -> bool:
    """Whether it is an archive as torch.save writes it: nothing compressed, not TorchScript."""
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


class _MemoryReader(RandomAccessFile):
    """A file over memory that nobody copies (BytesIO would)."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(len(memory))
        self._memory = memory

    def read_at(self, position: int, out: memoryview) -> None:
        out[:] = self._memory[position : position + len(out)]
