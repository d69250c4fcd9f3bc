"""Where sealed models lie: something to read ranges from, and a tree of such things. Local files here."""

from __future__ import annotations

import os
import stat
from typing import Final, Protocol

from strongroom.errors import NotFound, Truncated, UsageError, os_errors

__all__ = ["LocalSource", "LocalTree", "Source", "Tree", "is_url", "open_source", "open_tree"]


class Source(Protocol):
    """Random access to the bytes of one file; safe to use from several threads.

    Attributes:
        name: for messages.
        size: bytes.
        request: how many bytes are best asked for at once.
        threads: how many requests are best under way at once, or None for the default.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def request(self) -> int: ...
    @property
    def threads(self) -> int | None: ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``offset``.

        Raises:
            Truncated: the file ends before.
            StorageError: the system could not read.
        """
        ...

    def close(self) -> None: ...


class Tree(Protocol):
    """A directory of files, named by relative POSIX paths."""

    @property
    def name(self) -> str: ...

    def sizes(self) -> dict[str, int] | None:
        """All files with their sizes, or None where a place cannot be listed (plain HTTP)."""
        ...

    def source(self, path: str) -> Source:
        """Open one.

        Raises:
            NotFound: it is not there.
        """
        ...

    def close(self) -> None: ...


class LocalSource:
    """A regular file. ``pread``, not ``mmap``: a file cut while it is open gives an error, not SIGBUS,
    and reading into a warm buffer of one segment is faster than faulting the mapping in.
    """

    request: Final = 1 << 20
    threads: Final = None

    def __init__(self, path: str | os.PathLike[str], directory: int | None = None) -> None:
        self.name = os.fspath(path)
        self._descriptor = -1
        with os_errors(self.name):
            # O_NONBLOCK: opening a FIFO would wait for a writer before fstat could refuse it.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags, dir_fd=directory)
            status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise UsageError(f"{self.name} is not a regular file.")
        self.size = status.st_size

    def read_into(self, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._descriptor, [out[done:]], offset + done)
            except OSError:
                with os_errors(self.name):
                    raise
            if count == 0:
                raise Truncated(f"{self.name} ends at {offset + done}, before its contents do.")
            done += count

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class LocalTree:
    """A directory, held open: one that is moved or replaced meanwhile does not mix with this one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._descriptor = -1
        with os_errors(self.name):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._descriptor = os.open(path, flags)

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        with os_errors(self.name):
            for root, _, names, directory in os.fwalk(
                ".", dir_fd=self._descriptor, follow_symlinks=True
            ):
                for name in names:
                    try:
                        size = os.stat(name, dir_fd=directory).st_size
                    except FileNotFoundError:
                        continue
                    found[os.path.normpath(os.path.join(root, name))] = size
        return found

    def source(self, path: str) -> LocalSource:
        try:
            return LocalSource(path, directory=self._descriptor)
        except NotFound:
            raise NotFound(f"{os.path.join(self.name, path)}: no such file.") from None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location is for fsspec and not a local path."""
    return isinstance(location, str) and "://" in location


def open_source(location: str | os.PathLike[str]) -> Source:
    """Open one file, local or remote."""
    if is_url(location):
        from strongroom.model.remote import RemoteSource

        return RemoteSource.open(str(location))
    return LocalSource(location)


def open_tree(location: str | os.PathLike[str]) -> Tree:
    """Open a directory, local or remote."""
    if is_url(location):
        from strongroom.model.remote import RemoteTree

        return RemoteTree(str(location))
    return LocalTree(location)
