"""A directory of endorsements that processes share as a cache: bounded, and believed by nobody.

Files have the names of :mod:`.naming` and come into place whole, by a new name; the time at which one was
fetched is that of the file. Whatever lies there is authenticated by the verifier like an answer from the
network; who can write to it can keep endorsements away, and no more.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from strongroom.attest.endorsements import Wanted
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.attest.sources.naming import path_of
from strongroom.errors import os_errors

__all__ = ["SharedDirectory", "Stored"]

MAX_FILES: Final = 2048
"""A platform has one to three endorsements of its own; a fleet shares the others."""

MAX_BYTES: Final = 64 << 20

_NEW: Final = ".new-"
_ABANDONED: Final = 600.0
"""Seconds after which a file that did not come into place is one of a process that was killed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the cache.

    Attributes:
        data: the endorsement, as somebody wrote it.
        written: when.
    """

    data: bytes = field(repr=False)
    written: datetime


class SharedDirectory:
    """The cache in ``directory``, which is made where it is not there, readable by this user alone.

    Raises:
        UsageError, StorageError: it cannot be made, or is no directory.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        with os_errors(self._directory):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)

    def read(self, wanted: Wanted) -> Stored | None:
        """What is there under its name; None where that is nothing that could be an endorsement."""
        # Of whatever else lies there, nothing may make a worker wait or read without an end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(os.path.join(self._directory, path_of(wanted)), flags)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_ENDORSEMENTS + 1)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        if not data or len(data) > MAX_ENDORSEMENTS:
            return None
        return Stored(data, datetime.fromtimestamp(status.st_mtime, UTC))

    def write(self, wanted: Wanted, data: bytes) -> None:
        """Put it there in place of what is there; the oldest files make room.

        Raises:
            StorageError, UsageError: the disk does not take it.
        """
        path = os.path.join(self._directory, path_of(wanted))
        with os_errors(path):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=_NEW)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.replace(new, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new)
                raise
            self._make_room()

    def _make_room(self) -> None:
        """Within the bounds, counting what others write meanwhile the next time."""
        found = sorted(self._files())
        size, abandoned = sum(one[1] for one in found), time.time() - _ABANDONED
        count = len(found)
        for written, bytes_, path in found:
            is_new = os.path.basename(path).startswith(_NEW)
            if is_new and written >= abandoned:
                continue
            if is_new or count > MAX_FILES or size > MAX_BYTES:
                # Another process may have been first.
                with suppress(OSError):
                    os.unlink(path)
                count, size = count - 1, size - bytes_

    def _files(self) -> list[tuple[float, int, str]]:
        """Time, size and path of each file."""
        found = []
        for directory in self._entries(self._directory):
            if directory.is_dir(follow_symlinks=False):
                for one in self._entries(directory.path):
                    # One that is replaced or removed meanwhile is somebody else's to count.
                    with suppress(OSError):
                        status = one.stat(follow_symlinks=False)
                        if not stat.S_ISDIR(status.st_mode):
                            found.append((status.st_mtime, status.st_size, one.path))
        return found

    @staticmethod
    def _entries(path: str) -> list[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            return list(entries)
