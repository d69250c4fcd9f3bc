"""Keras 3 models: ``.keras`` archives, unzipped ``.keras`` folders, the older HDF5 files, and weights alone.

Keras reads single files through file objects that decrypt. What it takes from directories only (unzipped
models, shards, archives with assets, which it would unpack among the temporary files) lies in a private
directory in memory, ``/dev/shm``, while it is loaded. Links to memory files will not do: HDF5 looks where
a link leads to.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import mmap
import os
import posixpath
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any, Final

from strongroom.errors import NotFound, UsageError, os_errors
from strongroom.loaders.source import (
    DAMAGED_ARCHIVE,
    ModelSource,
    archive_members,
    check_members,
    extra_for,
    opened,
    pick,
    start_of,
)
from strongroom.model.file import SealedFile
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
_WEIGHTS: Final = "model.weights.h5"
_WEIGHTS_SUFFIXES: Final = (".weights.json", ".h5", ".hdf5", ".keras")
_WITHOUT_ASSETS: Final = 3
# Files in an archive: configuration, metadata, weights. Keras looks for assets if there are more.
_ZIP: Final = b"PK\3\4"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
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

    While a ``.keras`` archive is loaded there are two copies of the weights; of an HDF5 file, one and
    the largest weight.

    Args:
        filepath: the place of a sealed file or directory, or an open model.
        custom_objects: as in Keras.
        compile: as in Keras.
        safe_mode: as in Keras.
        path: the file, or the folder of an unzipped model, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic; ``/dev/shm`` has no room for one
            with assets.
        UsageError: the file is no Keras model.
        ValueError: Keras refuses it, for instance a ``Lambda`` in ``safe_mode``.
    """
    options = {"custom_objects": custom_objects, "compile": compile, "safe_mode": safe_mode}
    with opened(filepath, key) as model:
        folder = f"{posixpath.normpath(path)}/" if path else ""
        if path not in model.files and f"{folder}{_CONFIG}" in model.files:
            return _load_folder(model, folder, options)
        name = pick(model, path, (".keras", ".h5", ".hdf5"), "Keras")
        head = _head(model, name)
        if head == _ZIP:
            return _load_archive(model, name, options)
        if head == _HDF5:
            return _load_hdf5(model, name, options)
        raise UsageError(
            f"{name} in {model.name} is no Keras model: neither a .keras archive nor HDF5.",
            hint="A SavedModel is for loaders.tensorflow.saved_model_load.",
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

    While it loads there are two copies of the weights.

    Args:
        model: a Keras model that is built.
        filepath: the place of a sealed file or directory, or an open model.
        skip_mismatch: as in Keras.
        kwargs: as in Keras.
        path: the file, if there are several; of sharded weights the ``.weights.json``.

    Raises:
        StrongroomError: the model cannot be opened, or is not authentic.
        UsageError: the file is none of these.
        ValueError: the weights do not fit the model.
    """
    with opened(filepath, key) as sealed:
        name = pick(sealed, path, _WEIGHTS_SUFFIXES, "Keras weights")
        folder, base = posixpath.split(name)
        start, size = 0, sealed.files[name].size
        if _head(sealed, name) == _ZIP:
            base = _WEIGHTS
            start, size = _stored_weights(sealed, name)
        elif not base.endswith(_WEIGHTS_SUFFIXES):
            raise UsageError(
                f"{name} has none of the names that Keras knows weights by: "
                f"{', '.join(_WEIGHTS_SUFFIXES)}.",
                hint="Seal it again from a file that is named so.",
            )
        if base.endswith(".json"):
            files = [name, *(posixpath.join(folder, shard) for shard in _shards(sealed, name))]
            with memory_directory(sum(sealed.content(file).size for file in files)) as directory:
                place_files(sealed, files, directory, folder)
                place = os.path.join(directory, base)
                model.load_weights(place, skip_mismatch=skip_mismatch, **kwargs)
            return
        with memory_directory() as directory:
            file = _NamedFile(os.path.join(directory, base), size)
            with file.getbuffer() as memory:
                sealed.read_into(name, memory, start)
            try:
                model.load_weights(file, skip_mismatch=skip_mismatch, **kwargs)
                return
            except Exception:
                if file.read_from:
                    raise
            # Keras 3.6 takes some kinds from paths only.
            file.place_in_directory()
            model.load_weights(str(file), skip_mismatch=skip_mismatch, **kwargs)


class _NamedFile(io.BytesIO):
    """A file in memory for code that asks ``str(filepath)`` for the kind of file.

    Its name is a path in a private directory where nothing is: who opens that instead gets an error.
    """

    def __init__(self, place: str, size: int) -> None:
        super().__init__()
        if size:
            super().seek(size - 1)
            self.write(b"\0")
        self._place = place
        self.read_from = False

    def __str__(self) -> str:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.read_from = True
        return super().seek(offset, whence)

    def place_in_directory(self) -> None:
        with os_errors(self._place), open(self._place, "xb") as file, self.getbuffer() as memory:
            file.write(memory)


def _head(model: SealedModel, name: str) -> bytes:
    head = bytearray(len(_HDF5))
    del head[model.read_into(name, head) :]
    return _ZIP if head.startswith(_ZIP) else bytes(head)


def _unpublished(module: str, function: str, options: Mapping[str, Any]) -> Any:
    """A function of Keras that its public ones call, or None if it is not what it was (3.6 to 3.15)."""
    try:
        found = getattr(importlib.import_module(module), function)
        parameters = inspect.signature(found).parameters
    except (ImportError, AttributeError):
        return None
    return found if options.keys() <= parameters.keys() else None


def _load_placed(model: SealedModel, name: str, base: str, options: Mapping[str, Any]) -> Any:
    with memory_directory(model.files[name].size) as directory:
        place_files(model, [name], directory, posixpath.dirname(name))
        place = os.path.join(directory, base)
        os.rename(os.path.join(directory, posixpath.basename(name)), place)
        return keras.saving.load_model(place, **options)


def _load_hdf5(model: SealedModel, name: str, options: Mapping[str, Any]) -> Any:
    load = _unpublished("keras.src.legacy.saving.legacy_h5_format", "load_model_from_hdf5", options)
    with h5py.File(model.open(name), "r") as file:
        if "model_config" not in file.attrs:
            raise UsageError(
                f"{name} in {model.name} holds weights, and no model.",
                hint="Build the model, and load them with load_weights.",
            )
        if load is not None:
            return load(file, **options)
        if options["safe_mode"] and _has_lambda(json.loads(file.attrs["model_config"])):
            raise UsageError(
                f"{name} in {model.name} has a Lambda, whose code Keras {keras.__version__} would run: "
                "for HDF5 it knows no safe_mode.",
                hint="Update Keras; or if you trust the model, give safe_mode=False.",
            )
    return _load_placed(model, name, "model.h5", options)


def _has_lambda(config: Any) -> bool:
    if isinstance(config, dict):
        return config.get("class_name") == "Lambda" or any(map(_has_lambda, config.values()))
    return isinstance(config, list) and any(map(_has_lambda, config))


def _load_folder(model: SealedModel, folder: str, options: Mapping[str, Any]) -> Any:
    inside = [name for name in model.files if name.startswith(folder)]
    if f"{folder}{_WEIGHTS}" not in inside:
        raise NotFound(f"{model.name} has {folder}{_CONFIG} and no {_WEIGHTS} beside it.")
    with memory_directory(sum(model.files[name].size for name in inside)) as directory:
        place_files(model, inside, directory, folder)
        return keras.saving.load_model(directory, **options)


def _members(model: SealedModel, name: str) -> dict[str, zipfile.ZipInfo]:
    """What is in a ``.keras`` archive."""
    found = archive_members(model, name) or []
    members = {member.filename: member for member in found}
    if not {_CONFIG, _WEIGHTS} <= members.keys():
        raise _damaged(model, name)
    check_members(found, model.files[name].size, name)
    return members


def _damaged(model: SealedModel, name: str) -> UsageError:
    return UsageError(f"{name} in {model.name} is no archive of Keras, or a damaged one.")


def _load_archive(model: SealedModel, name: str, options: Mapping[str, Any]) -> Any:
    members = _members(model, name)
    if len(members) > _WITHOUT_ASSETS:
        return _load_unzipped(model, name, members, options)
    load = _unpublished("keras.src.saving.saving_lib", "_load_model_from_fileobj", options)
    if load is None:
        return _load_placed(model, name, "model.keras", options)
    with memory_directory() as directory:
        # Where Keras believes that memory is short, it unpacks the weights beside the file's name.
        file = SealedFile(model.content(name), os.path.join(directory, "model.keras"))
        return load(file, **options)


def _load_unzipped(
    model: SealedModel,
    name: str,
    members: Mapping[str, zipfile.ZipInfo],
    options: Mapping[str, Any],
) -> Any:
    """Unzip an archive in memory, so that Keras does not do it on a disk."""
    with memory_directory(sum(member.file_size for member in members.values())) as directory:
        try:
            with os_errors(directory), zipfile.ZipFile(model.open(name)) as archive:
                for member in members.values():
                    if member.filename == _WEIGHTS and member.file_size:
                        with open(os.path.join(directory, member.filename), "xb+") as file:
                            _unzip(model, name, archive, member, file)
                    else:
                        archive.extract(member, directory)
        except DAMAGED_ARCHIVE:
            raise _damaged(model, name) from None
        return keras.saving.load_model(directory, **options)


def _unzip(
    model: SealedModel, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: io.IOBase
) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as compressed:
            shutil.copyfileobj(compressed, file, _PIECE)
        return
    start = start_of(model, name, member)
    file.truncate(member.file_size)
    with mmap.mmap(file.fileno(), member.file_size) as memory:
        # What is authentic needs no check sum.
        model.read_into(name, memory, start)


def _stored_weights(model: SealedModel, name: str) -> tuple[int, int]:
    """Where in an archive the weights lie, and how many bytes they are."""
    member = _members(model, name)[_WEIGHTS]
    if member.compress_type != zipfile.ZIP_STORED:
        raise UsageError(
            f"{name} in {model.name} has no uncompressed {_WEIGHTS}, which is what weights are taken from.",
            hint="Load the whole model with load_model.",
        )
    return start_of(model, name, member), member.file_size


def _shards(model: SealedModel, index: str) -> list[str]:
    """The names of the files that an index of shards names; they lie beside it."""
    try:
        weight_map = json.loads(model.read(index))["weight_map"]
        found = {
            posixpath.basename(shard)
            for shards in weight_map.values()
            for shard in ([shards] if isinstance(shards, str) else shards)
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{index} in {model.name} is no index of Keras weights.") from None
    return sorted(found)
