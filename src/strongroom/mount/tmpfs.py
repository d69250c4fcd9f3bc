"""Models as files in memory, where FUSE is not allowed; and the directory that a run has for itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from strongroom.errors import os_errors
from strongroom.model.memory_directory import FILES_AT_ONCE, check_memory, place_file
from strongroom.model.memory_room import check_room
from strongroom.model.owned_directory import OwnedDirectory, sweep
from strongroom.model.parallel import for_each
from strongroom.mount.private import detach, mount_memory
from strongroom.mount.tree import Tree

__all__ = ["clear", "placed", "remove", "run_directory"]

_PARENT: Final = "/dev/shm"  # noqa: S108 - checked to be memory before use
_PREFIX: Final = "strongroom-run-"


@contextmanager
def run_directory() -> Iterator[str]:
    """A new directory in memory that only this user can enter, removed with all in it.

    What runs have left that were killed with all their processes goes first.

    Raises:
        StorageError: there is no file system in memory, or what was left cannot be removed.
    """
    sweep(_PARENT, _PREFIX)
    owned = OwnedDirectory(_PARENT, _PREFIX)
    try:
        yield owned.path
    finally:
        remove(owned.path)
        owned.remove()


def remove(path: str) -> None:
    """Remove the directory of a run whose processes have ended."""
    detach(path)
    for folder, _, files in os.walk(path):
        for place in (os.path.join(folder, name) for name in files):
            if os.path.islink(place):  # of the command, to a file elsewhere
                continue
            # Gives the memory back even where somebody has the file open.
            with suppress(OSError):
                os.chmod(place, 0o600)
                os.truncate(place, 0)
    shutil.rmtree(path, ignore_errors=True)


def clear(directory: str) -> None:
    """Remove what is in a directory. Files that are open or mapped stay with their users.

    Nothing is overwritten: a server would read zeros where its weights were.

    Raises:
        StorageError: not all could be removed.
    """
    with os_errors(directory):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def placed(tree: Tree, directory: str, *, private: bool, native_code: bool = False) -> None:
    """Write all files of ``tree`` below ``directory``; each byte has been authenticated then.

    Args:
        private: mount a file system in memory there that is never swapped, for this mount namespace
            alone. Otherwise ``directory`` lies in memory.
        native_code: let machine code be run and mapped from it.

    Raises:
        IntegrityError, FormatError: a model is not authentic.
        StorageError: there is not enough memory.
    """
    if private:
        with os_errors(directory):
            mount_memory(directory, native_code=native_code)
        # Ramfs has no limit of its own: it would take memory until there is none.
        check_room(tree.size, swapped=False)
    else:
        check_memory(directory, tree.size)
    files = []
    for node in tree:
        if not node.is_folder:
            files.append(node)
        elif node.path:
            path = os.path.join(directory, node.path)
            with os_errors(path):
                os.mkdir(path)
                os.chmod(path, 0o755)  # noqa: S103 - the directory of the run decides who gets here

    def place(number: int) -> None:
        node = files[number]
        place_file(node.content(), os.path.join(directory, node.path), 0o444)

    for_each(len(files), place, FILES_AT_ONCE)
