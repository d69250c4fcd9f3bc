"""scikit-learn: models in the skops format, and joblib's pickles for those who ask for them."""

from __future__ import annotations

import io
from typing import Any, Final

from strongroom.errors import FormatError, UsageError
from strongroom.loaders.source import (
    ModelSource,
    archive_members,
    check_members,
    extra_for,
    opened,
    pick,
)
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.providers.sources import KeySource

__all__ = ["joblib_load", "skops_load"]

_SKOPS: Final = (".skops", ".skp")
_JOBLIB: Final = (".joblib", ".jl", ".pkl", ".pickle", ".gz", ".z", ".bz2", ".xz", ".lzma")
_BEFORE_0_10: Final = b"ZF"
# joblib names the compressed files of its old format by their first bytes.

_AHEAD: Final = 8 << 20
# pickle reads bytes and lines, joblib 256 KiB of an array, skops an archive of many small arrays: too
# little for several threads to decrypt. Larger arrays go past this.


def skops_load(
    file: ModelSource,
    trusted: Any = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``skops.io.load`` from a sealed model: no code of the file is run.

    Every array is read from the sealed file by itself: besides the model there is at most the
    largest of them a second time.

    Args:
        file: the place of a sealed file or directory, or an open model.
        trusted: types that the file may use besides those that skops knows, by name or as types.
        path: the model file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is no skops file.
        UntrustedTypesFoundException: skops', with the names of the types.
    """
    try:
        from skops import io as skops_io
    except ModuleNotFoundError as error:
        raise extra_for(error, "skops", "Loading skops files", "sklearn") from None
    with opened(file, key) as model:
        name = pick(model, path, _SKOPS, "skops")
        members = archive_members(model, name)
        if members is None or all(member.filename != "schema.json" for member in members):
            raise FormatError(
                f"{name} is not a skops file.",
                hint="skops.io.dump writes them; a joblib or pickle file is for joblib_load.",
            )
        check_members(members, model.files[name].size, name)
        return skops_io.load(io.BufferedReader(model.open(name), _AHEAD), trusted)


def joblib_load(
    filename: ModelSource,
    mmap_mode: str | None = None,
    *,
    allow_pickle: bool = False,
    key: KeySource | None = None,
    path: str | None = None,
    **kwargs: Any,
) -> Any:
    """``joblib.load`` from a sealed model, compressed or not.

    A joblib file is a pickle: loading it runs whatever code its author put there. Sealing proves
    that the file is the one that was sealed, not that it is harmless.

    Args:
        filename: the place of a sealed file or directory, or an open model.
        mmap_mode: arrays are mapped from ``/dev/shm``, which must have room for the file. Other
            processes cannot map them again by their name, as joblib's workers would: leave this
            out for models that are sent to such.
        allow_pickle: True if you trust the author of the file as you trust your own code.
        path: the model file, if there are several.

    Raises:
        UsageError: without ``allow_pickle``.
        StrongroomError: the model cannot be opened, or is not authentic.
        Exception: whatever unpickling raises.
    """
    if allow_pickle is not True:
        raise UsageError(
            "A joblib or pickle file runs code of its author when it is loaded.",
            hint="Save the model with skops.io.dump and use skops_load; or, if you trust whoever "
            "made the file as you trust your own code, say allow_pickle=True.",
        )
    try:
        import joblib
    except ModuleNotFoundError as error:
        raise extra_for(error, "joblib", "Loading joblib files", "sklearn") from None
    with opened(filename, key) as model:
        name = pick(model, path, _JOBLIB, "joblib")
        start = bytearray(len(_BEFORE_0_10))
        model.read_into(name, start)
        if start == _BEFORE_0_10:
            raise FormatError(
                f"{name} was written by joblib before 0.10, which today's reads from a disk only.",
                hint="Load and dump it with joblib, and seal it again.",
            )
        if mmap_mode is None:
            # The file reads ahead; it goes no further than the model, which closes with the block.
            file: Any = io.BufferedReader(model.open(name), _AHEAD)
            return joblib.load(file, **kwargs)
        with memory_directory(model.files[name].size) as directory:
            place_files(model, [name], directory)
            return joblib.load(f"{directory}/{name}", mmap_mode, **kwargs)
