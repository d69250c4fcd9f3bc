"""Which versions of a model are there: a sealed model alone, or folders with numbers for names."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from strongroom.errors import NotFound, UsageError, os_errors
from strongroom.format.paths import MANIFEST as _NAME
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.model.location import is_url, local

__all__ = ["Place", "find_versions"]

MANIFEST: Final = _NAME + SEALED_SUFFIX
_MOST: Final = 10_000
"""Entries of a directory of versions that are looked at."""

_LARGEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version is.

    Attributes:
        location: for :func:`strongroom.open`.
        stamp: changes when what is there is replaced; a URL has none.
    """

    location: str
    stamp: tuple[tuple[str, int, int, int], ...] = ()


def find_versions(path: str) -> Mapping[int, Place]:
    """The versions at ``path``, by number; a sealed model alone is version 1.

    A folder of a version is a sealed directory, or holds one sealed file.

    Raises:
        NotFound: nothing is there.
        UsageError: it is a directory that is neither.
        StorageError: it cannot be read.
    """
    if is_url(path):
        return {1: Place(path)}
    path = os.fspath(local(path))
    with os_errors(path):
        if not stat.S_ISDIR(os.stat(path).st_mode) or os.path.exists(os.path.join(path, MANIFEST)):
            return {1: _place(path)}
        names = sorted(os.listdir(path))
    found = {}
    # What is copied under another name and renamed is whole when it is seen.
    numbers = [name for name in names if name.isascii() and name.isdecimal() and len(name) < 20]
    for name in numbers[:_MOST]:
        folder = os.path.join(path, name)
        if int(name) <= _LARGEST and (inner := _sealed_in(folder)) is not None:
            found[int(name)] = _place(inner)
    if not found and names:
        raise UsageError(
            f"{path} is no sealed model, and has no folder of a version.",
            hint="Folders of versions have numbers for names: 1, 2, …",
        )
    if not found:
        raise NotFound(f"{path} is empty.")
    return found


def _sealed_in(folder: str) -> str | None:
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except (NotADirectoryError, FileNotFoundError):
        return None  # not a folder, or gone meanwhile
    except OSError:
        return folder  # whoever opens it says why it cannot be read
    if MANIFEST in names:
        return folder
    # Nothing yet, or several files: strongroom.open says what is wrong with the folder.
    return os.path.join(folder, names[0]) if len(names) == 1 else folder


def _place(path: str) -> Place:
    """For a sealed directory the manifest speaks: its header is new whenever anything is."""
    manifest = os.path.join(path, MANIFEST)
    seen = []
    for one in (path, manifest):
        try:
            found = os.stat(one)
        except OSError:
            continue
        seen.append((one, found.st_ino, found.st_size, found.st_mtime_ns))
    return Place(path, tuple(seen))
