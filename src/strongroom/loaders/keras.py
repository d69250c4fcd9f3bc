"""Keras 3 models: ``.keras`` archives, unzipped ``.keras`` folders, the older HDF5 files, and weights alone.

Keras itself takes whole models from paths only, and would write parts of an archive with assets to the
directory for temporary files. So it is given a private directory in memory (``/dev/shm``): the configuration
and the assets lie in it, and under the names of the weights it has links to memory files.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import struct
import zipfile
from contextlib import ExitStack
from typing import Any, Final

from strongroom.errors import NotFound, UsageError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.model.memory import memory_file
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.model.reader import SealedModel
from strongroom.providers.sources import KeySource

try:
    import h5py
    import keras
except ModuleNotFoundError as error:
    missing = "h5py" if error.name == "h5py" else "keras"
    raise extra_for(error, missing, "Loading Keras models", "keras") from None

__all__ = ["load_model", "load_weights"]

_CONFIG: Final = "config.json"
_WEIGHTS: Final = ("model.weights.h5", "model.weights.npz")
_WEIGHTS_SUFFIXES: Final = (".weights.json", ".h5", ".hdf5", ".keras")
_ZIP: Final = b"PK\3\4"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_MAX_EXPANSION: Final = 100
_EXPANSION_FLOOR: Final = 256 << 20
# Keras stores members as they are, and refuses archives that expand further than this.
_LOCAL_HEADER: Final = 30
# Bytes in front of a member's name, whose length and that of the extra field are the last four.
_PIECE: Final = 4 << 20


def load_model(
    filepath: ModelSource,
    custom_objects: dict[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``keras.saving.load_model`` from a sealed model, with the backend that Keras has here.

    While it loads there are two copies of the weights, afterwards one.

    Args:
        filepath: the place of a sealed file or directory, or an open model.
        custom_objects, compile, safe_mode: as in Keras.
        path: the file, or the folder of an unzipped model, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is no Keras model.
        ValueError: Keras refuses it, for instance a ``Lambda`` in ``safe_mode``.
    """
    with opened(filepath, key) as model, ExitStack() as stack:
        place = _place(stack, model, path)
        return keras.saving.load_model(
            place, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
        )


def load_weights(
    model: Any,
    filepath: ModelSource,
    skip_mismatch: bool = False,
    *,
    key: KeySource | None = None,
    path: str | None = None,
    **kwargs: Any,
) -> None:
    """``model.load_weights`` from a sealed ``.weights.h5``, its shards, ``.keras`` or older ``.h5`` file.

    While it loads there are two copies of the weights, afterwards one.

    Args:
        model: a Keras model that is built.
        filepath: the place of a sealed file or directory, or an open model.
        skip_mismatch, kwargs: as in Keras.
        path: the file, if there are several; of sharded weights the ``.weights.json``.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is none of these.
        ValueError: the weights do not fit the model.
    """
    with opened(filepath, key) as sealed, ExitStack() as stack:
        name = pick(sealed, path, _WEIGHTS_SUFFIXES, "Keras weights")
        place = _place_weights(stack, sealed, name)
        model.load_weights(place, skip_mismatch=skip_mismatch, **kwargs)


def _place(stack: ExitStack, model: SealedModel, path: str | None) -> str:
    """A path in memory that Keras loads the model from, as long as ``stack`` is open."""
    directory = stack.enter_context(memory_directory())
    folder = f"{posixpath.normpath(path)}/" if path else ""
    if path not in model.files and f"{folder}{_CONFIG}" in model.files:
        return _place_folder(stack, model, folder, directory)
    name = pick(model, path, (".keras", ".h5", ".hdf5"), "Keras")
    head = _head(model, name)
    if head == _ZIP:
        return _place_archive(stack, model, name, directory)
    if head != _HDF5:
        raise UsageError(
            f"{name} in {model.name} is no Keras model: neither a .keras archive nor HDF5.",
            hint="A SavedModel is for loaders.tensorflow.saved_model_load.",
        )
    with h5py.File(model.open(name), "r") as file:
        if "model_config" not in file.attrs:
            raise UsageError(
                f"{name} in {model.name} holds weights, and no model.",
                hint="Build the model, and load them with load_weights.",
            )
    return _link(stack, model, name, os.path.join(directory, "model.h5"))


def _place_weights(stack: ExitStack, model: SealedModel, name: str) -> str:
    """A path in memory that Keras loads weights from; its name says their kind."""
    directory = stack.enter_context(memory_directory())
    if _head(model, name) == _ZIP:
        return os.path.join(_place_archive(stack, model, name, directory), _WEIGHTS[0])
    folder, base = posixpath.split(name)
    if not base.endswith(_WEIGHTS_SUFFIXES):
        raise UsageError(
            f"{name} has none of the names that Keras knows weights by: {', '.join(_WEIGHTS_SUFFIXES)}.",
            hint="Seal it again from a file that is named so.",
        )
    if not base.endswith(".json"):
        return _link(stack, model, name, os.path.join(directory, base))
    place_files(model, [name], directory, folder)
    for shard in _shards(model, name):
        _link(stack, model, posixpath.join(folder, shard), os.path.join(directory, shard))
    return os.path.join(directory, base)


def _head(model: SealedModel, name: str) -> bytes:
    head = bytearray(len(_HDF5))
    del head[model.read_into(name, head) :]
    return _ZIP if head.startswith(_ZIP) else bytes(head)


def _link(stack: ExitStack, model: SealedModel, name: str, place: str) -> str:
    """A file of the model in a memory file, and a link to that in ``place``."""
    size = model.content(name).size
    memory, target = stack.enter_context(memory_file("weights", size))
    model.read_into(name, memory)
    os.symlink(target, place)
    return place


def _shards(model: SealedModel, index: str) -> list[str]:
    """The names of the files that an index of shards names; they lie beside it."""
    try:
        weight_map = json.loads(model.read(index))["weight_map"]
        found = {
            shard
            for shards in weight_map.values()
            for shard in ([shards] if isinstance(shards, str) else shards)
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"{index} in {model.name} is no index of Keras weights.") from None
    return sorted(map(posixpath.basename, found))


def _place_folder(stack: ExitStack, model: SealedModel, folder: str, directory: str) -> str:
    """An unzipped model."""
    inside = [name for name in model.files if name.startswith(folder)]
    weights = [name for name in inside if name[len(folder) :] in _WEIGHTS]
    if not weights:
        raise NotFound(f"{model.name} has {folder}{_CONFIG} and no {_WEIGHTS[0]} beside it.")
    place_files(model, [name for name in inside if name not in weights], directory, folder)
    for name in weights:
        _link(stack, model, name, os.path.join(directory, posixpath.basename(name)))
    return directory


def _place_archive(stack: ExitStack, model: SealedModel, name: str, directory: str) -> str:
    """A ``.keras`` archive, unzipped."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(model.open(name)))
    except zipfile.BadZipFile:
        raise UsageError(f"{name} in {model.name} is no archive, or a damaged one.") from None
    members = {member.filename: member for member in archive.infolist()}
    weights = next((members[found] for found in _WEIGHTS if found in members), None)
    if weights is None or _CONFIG not in members:
        raise UsageError(f"{name} in {model.name} is an archive, but not one of Keras.")
    for member in members.values():
        if member.file_size > max(_EXPANSION_FLOOR, _MAX_EXPANSION * member.compress_size):
            raise UsageError(f"{member.filename} in {name} expands too far; it is not loaded.")
        if member is not weights:
            archive.extract(member, directory)
    memory, target = stack.enter_context(memory_file("weights", weights.file_size))
    if weights.compress_type == zipfile.ZIP_STORED:
        # Straight to where it is needed; what has been authenticated needs no check sum.
        header = bytearray(_LOCAL_HEADER)
        model.read_into(name, header, weights.header_offset)
        start = weights.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<2H", header, 26))
        model.read_into(name, memory, start)
    else:
        with archive.open(weights) as compressed, open(target, "wb") as file:
            shutil.copyfileobj(compressed, file, _PIECE)
    os.symlink(target, os.path.join(directory, weights.filename))
    return directory
