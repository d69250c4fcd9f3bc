"""Private directories in memory that outlive a call, and go with their owner even when it is killed.

The owner of a directory holds a lock on it (``flock``), which the kernel gives up with the process. Whoever
gets the lock has found one that nobody uses. The number of a process would not tell: containers that share
``/dev/shm`` number theirs alike.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from typing import Final

from strongroom.errors import StorageError, os_errors
from strongroom.model.memory_directory import check_memory

__all__ = ["OwnedDirectory", "sweep"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OwnedDirectory:
    """A directory in memory that only this user can enter.

    Attributes:
        path: of the directory.
    """

    def __init__(self, parent: str, prefix: str, size: int = 0) -> None:
        """Make it.

        Args:
            parent: where.
            prefix: of its name, by which :func:`sweep` finds it.
            size: bytes that will be put there.

        Raises:
            StorageError: ``parent`` is not a file system in memory, or has no room.
        """
        check_memory(parent, size)
        with os_errors(parent):
            while True:
                self.path = tempfile.mkdtemp(prefix=prefix, dir=parent)  # 0700
                # A sweep may be faster than this lock; then the directory is gone.
                with suppress(FileNotFoundError):
                    self._descriptor = os.open(self.path, _DIRECTORY)
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                    if os.fstat(self._descriptor).st_nlink:
                        return
                    os.close(self._descriptor)

    def remove(self) -> None:
        """Remove it with all in it. What is still open or mapped stays with its user until that lets go.

        Raises:
            StorageError: something could not be removed; this can be called again.
        """
        if self._descriptor < 0:
            return
        _remove(self.path)
        os.close(self._descriptor)
        self._descriptor = -1


def _remove(path: str) -> None:
    for _ in range(3):
        # A server may write what it compiles there, between the listing and the end. All but what cannot go does.
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    raise StorageError(f"{path} could not be removed.", hint="Remove it: there is plaintext in it.")


def sweep(parent: str, prefix: str) -> int:
    """Remove directories of this user in ``parent`` whose owners are gone; how many there were.

    Raises:
        StorageError: something could not be removed; all others are.
    """
    found, failed = 0, None
    with os_errors(parent):
        names = [name for name in os.listdir(parent) if name.startswith(prefix)]
    for name in names:
        path = os.path.join(parent, name)
        try:
            descriptor = os.open(path, _DIRECTORY)
        except OSError:
            continue  # of another user, or gone
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                _remove(path)
                found += 1
        except BlockingIOError:
            continue  # its owner lives
        except StorageError as error:
            failed = error
        finally:
            os.close(descriptor)
    if failed:
        raise failed
    return found
