"""Where sealed and unsealed data goes: complete under its final name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
import weakref
from typing import IO, Protocol, runtime_checkable

from strongroom.errors import AlreadyExists, UsageError, os_errors
from strongroom.model.location import is_url, local

__all__ = [
    "FileDescriptorOutput",
    "FileOutput",
    "Output",
    "TreeOutput",
    "open_file_output",
    "open_tree_output",
]

_WRITEBACK = 8 << 20
_HINT = "Give another destination, or --force (overwrite=True) to replace it."


class Output(Protocol):
    """One file being written."""

    def write(self, data: memoryview | bytes) -> None: ...

    def commit(self) -> None:
        """Make it durable and give it its name."""
        ...

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after a commit."""
        ...


@runtime_checkable
class FileDescriptorOutput(Output, Protocol):
    """An output that is a local file: for formats that are not written from front to back.

    ``os.pwrite`` to ``descriptor``, from other threads and processes too; or ``write``, not both.
    """

    descriptor: int


class TreeOutput(Protocol):
    """A directory being written."""

    def file(self, path: str) -> Output: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


def _write_all(descriptor: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    if end // _WRITEBACK != (end - len(data)) // _WRITEBACK:
        _start_writeback(descriptor, end)


def _start_writeback(descriptor: int, end: int) -> None:
    """Let the disk work on what has been written while the next of it is encrypted.

    Otherwise the final fsync waits for all of it (1.8 GB: sealed in 1.5 s, with this in 1.1 s).
    A hint: where the system does not know it, the fsync alone does the work.
    """
    import ctypes

    sync_file_range_write = 2
    start = max(0, end - 2 * _WRITEBACK)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).sync_file_range(
            descriptor, ctypes.c_int64(start), ctypes.c_int64(end - start), sync_file_range_write
        )


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: str) -> str:
    folder, name = os.path.split(path)
    short = os.fsdecode(os.fsencode(name)[:200])  # a name has at most 255 bytes
    return os.path.join(folder, f".{short}.{secrets.token_hex(4)}.partial")


def _refuse_special(path: str) -> None:
    """A device, a pipe or a socket is never replaced by a file, whoever asks for it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(
            f"{path} is a device, a pipe or a socket.",
            hint="Give the name of a file, or on the command line - for standard output.",
        )


class FileOutput:
    """A local file without a name (``O_TMPFILE``) until it is complete: a killed process leaves nothing.

    Where the file system has no such files, a hidden ``.NAME.….partial`` beside the final name.
    """

    def __init__(self, path: str, *, overwrite: bool, mode: int) -> None:
        self._path = path
        folder, self._name = os.path.split(path)
        self._overwrite = overwrite
        self._temporary: str | None = None
        self._folder = self.descriptor = -1
        _refuse_special(path)
        if not overwrite and os.path.lexists(path):
            raise AlreadyExists(f"{path} exists already.", hint=_HINT)
        if os.path.isdir(path):
            raise UsageError(f"{path} is a directory.", hint="Give the name of a file.")
        try:
            with os_errors(path):
                self._open(folder or ".", mode)
        except BaseException:
            self.abort()
            raise

    def _open(self, folder: str, mode: int) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
            self.descriptor = os.open(".", flags, mode, dir_fd=self._folder)
        except OSError:  # FUSE, NFS, overlay of old kernels
            temporary = _temporary_name(self._name)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self.descriptor = os.open(temporary, flags, mode, dir_fd=self._folder)
            self._temporary = temporary

    def write(self, data: memoryview | bytes) -> None:
        with os_errors(self._path):
            _write_all(self.descriptor, data)

    def commit(self) -> None:
        with os_errors(self._path):
            os.fsync(self.descriptor)
            self._name_it()
            os.fsync(self._folder)
        self.abort()

    def _source(self) -> str:
        return self._temporary or f"/proc/self/fd/{self.descriptor}"

    def _link(self, source: str, name: str) -> None:
        # Python passes AT_SYMLINK_FOLLOW, which /proc/self/fd needs, only along with a dir_fd.
        os.link(source, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _name_it(self) -> None:
        if self._overwrite:
            if self._temporary is None:
                source, self._temporary = self._source(), _temporary_name(self._name)
                self._link(source, self._temporary)
            os.replace(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temporary = None
        else:
            try:
                self._link(self._source(), self._name)
            except FileExistsError:
                raise AlreadyExists(f"{self._path} exists already.", hint=_HINT) from None
            except OSError:
                # FAT, exFAT and some FUSE file systems have no hard links.
                if self._temporary is None or os.path.lexists(self._path):
                    raise
                os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._temporary = None

    def abort(self) -> None:
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._temporary = None
        for descriptor in (self.descriptor, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._folder = -1


class _Member:
    """A file inside a directory that has no final name yet."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        with os_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self.descriptor = os.open(path, flags, mode)

    def write(self, data: memoryview | bytes) -> None:
        with os_errors(self._path):
            _write_all(self.descriptor, data)

    def commit(self) -> None:
        with os_errors(self._path):
            os.fsync(self.descriptor)
        self.abort()

    def abort(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _exchange(first: str, second: str) -> bool:
    """Swap two names at once (``renameat2``); False where the system cannot."""
    import ctypes

    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return bool(
        renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0
    )


def _discard(path: str, process: int) -> None:
    """Remove what has no final name; in ``process`` alone, not in one forked from it."""
    if os.getpid() != process:
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


class LocalTreeOutput:
    """A local directory, written under a hidden name beside the final one and renamed when complete."""

    def __init__(self, path: str, *, overwrite: bool, private: bool) -> None:
        self._path = os.path.normpath(path)
        self._overwrite = overwrite
        self._mode = 0o600 if private else 0o666
        _refuse_special(path)
        if not overwrite and os.path.lexists(path):
            raise AlreadyExists(f"{path} exists already.", hint=_HINT)
        self._temporary = _temporary_name(self._path)
        # Before the directory is there: a signal that raises between the two leaves nothing behind.
        self._leftover = weakref.finalize(self, _discard, self._temporary, os.getpid())
        with os_errors(path):
            os.mkdir(self._temporary, 0o700 if private else 0o777)

    def file(self, path: str) -> Output:
        return _Member(os.path.join(self._temporary, path), self._mode)

    def commit(self) -> None:
        with os_errors(self._path):
            for folder, _, _ in os.walk(self._temporary):
                _sync_directory(folder)
            if not (self._overwrite and os.path.lexists(self._path)):
                os.rename(self._temporary, self._path)
            elif not _exchange(self._temporary, self._path):
                old = _temporary_name(self._path)
                os.rename(self._path, old)
                try:
                    os.rename(self._temporary, self._path)
                except OSError:
                    os.rename(old, self._path)
                    raise
                self._temporary = old
            _sync_directory(os.path.dirname(self._path) or ".")
        self.abort()  # what is under the temporary name now is the replaced one, or nothing

    def abort(self) -> None:
        _discard(self._temporary, os.getpid())
        self._leftover.detach()


class _StandardOutput:
    """Standard output: nothing to commit; what is written is gone."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: memoryview | bytes) -> None:
        with os_errors("standard output"):
            self._stream.write(data)

    def commit(self) -> None:
        with os_errors("standard output"):
            self._stream.flush()

    def abort(self) -> None:
        pass


def open_file_output(location: str | os.PathLike[str], *, overwrite: bool, private: bool) -> Output:
    """Begin one file: a path, a URL, or ``-`` for standard output.

    Args:
        location: where it shall be.
        overwrite: replace what is there.
        private: plaintext; nobody but the user may read it.
    """
    if is_url(location):
        from strongroom.model.remote import RemoteOutput

        return RemoteOutput.begin(str(location), overwrite=overwrite)
    if location == "-":
        return _StandardOutput(sys.stdout.buffer)
    return FileOutput(os.fspath(local(location)), overwrite=overwrite, mode=0o600 if private else 0o666)


def open_tree_output(location: str | os.PathLike[str], *, overwrite: bool, private: bool) -> TreeOutput:
    """Begin a directory: a path or a URL. Arguments as for :func:`open_file_output`."""
    if is_url(location):
        from strongroom.model.remote import RemoteTreeOutput

        return RemoteTreeOutput(str(location), overwrite=overwrite)
    return LocalTreeOutput(os.fspath(local(location)), overwrite=overwrite, private=private)
