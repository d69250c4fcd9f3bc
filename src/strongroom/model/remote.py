"""Remote places through fsspec: read by parallel range requests, never staged on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from strongroom.errors import (
    AlreadyExists,
    MissingExtra,
    NotFound,
    NotSealed,
    StorageError,
    StrongroomError,
    Truncated,
    Unavailable,
    UsageError,
)
from strongroom.format.header import MAGIC
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.model.http import HttpSource, HttpTree
from strongroom.model.location import is_http, public, scheme
from strongroom.model.output import Output
from strongroom.model.ranges import RangeSource, file_system
from strongroom.model.storage import Source, Tree

__all__ = [
    "RemoteOutput",
    "RemoteTreeOutput",
    "is_plain_directory",
    "locate_remote",
    "open_remote",
    "open_remote_tree",
]

_ATOMIC: Final = frozenset({"s3", "s3a", "gs", "gcs"})
"""Where a file cannot be seen before it is complete."""

_EXCLUSIVE: Final = _ATOMIC | {"memory"}
"""Where creating a file that somebody else has just created fails, and does not replace it."""

_PART: Final = 16 << 20
"""Bytes of one part of an upload; two are in memory. The default of s3fs, 50 MiB, takes 190 MiB."""

_PARTS_OF_FIRST_SIZE: Final = 1000
# S3 takes at most 10,000 parts. Those that come later grow by a thousandth each: 5 TiB are 6,800 parts.

_THERE: Final = "Give another destination, or --force (overwrite=True) to replace it."


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """What fsspec's back ends raise, in terms of this project's tree.

    Their texts, and the errors behind them, may hold signed URLs and headers: none is passed on.
    """
    try:
        yield
    except StrongroomError:
        raise
    except FileNotFoundError:
        raise NotFound(f"{name}: nothing is there.") from None
    except FileExistsError:
        raise AlreadyExists(f"{name} exists already.", hint=_THERE) from None
    except PermissionError:
        raise UsageError(f"{name}: access is denied.", hint="Check the credentials.") from None
    except ImportError:
        raise MissingExtra(f"{scheme(name)}://", "remote") from None
    except NotImplementedError:
        raise UsageError(f"{scheme(name)}:// cannot do this.") from None
    except Exception as error:
        raise StorageError(
            f"{name}: the request failed ({type(error).__name__}).",
            hint="Check the network, the address and the credentials, and try again.",
        ) from None


class RemoteSource(RangeSource):
    """One file of an fsspec file system; passing failures are retried by the file system."""

    def __init__(self, fs: Any, path: str, name: str, size: int | None = None) -> None:
        super().__init__(name)
        self._fs = fs
        self._path = path
        self.size = self._stat() if size is None else size

    def _stat(self) -> int:
        with _errors(self.name):
            info = self._fs.info(self._path)
        if info.get("type") == "directory":
            raise UsageError(f"{self.name} is a directory, not a file.")
        if info.get("size") is None:
            raise UsageError(f"{self.name}: the place does not say how large the file is.")
        return int(info["size"])

    def _fetch(self, offset: int, out: memoryview) -> None:
        with _errors(self.name):
            data = self._fs.cat_file(self._path, start=offset, end=offset + len(out))
        if len(data) < len(out):
            raise Truncated(f"{self.name} ends at {offset + len(data)}, before its contents do.")
        if len(data) > len(out):
            raise StorageError(f"{self.name}: the place sent more than was asked for.")
        out[:] = data


class RemoteTree:
    """A remote directory, by the prefix of its objects."""

    def __init__(self, fs: Any, root: str, name: str) -> None:
        self.name = name.rstrip("/")
        self._fs = fs
        self._root = root.rstrip("/")
        self._sizes: dict[str, int] = {}

    def sizes(self) -> dict[str, int]:
        with _errors(self.name):
            found = self._fs.find(self._root, detail=True)
        prefix = self._root + "/"
        self._sizes = {
            path.removeprefix(prefix): int(info["size"])
            for path, info in found.items()
            if path.startswith(prefix) and info.get("type") != "directory"
        }
        return self._sizes

    def source(self, path: str) -> Source:
        # A size from the listing saves a request for each file.
        size = self._sizes.get(path)
        return RemoteSource(self._fs, f"{self._root}/{path}", f"{self.name}/{path}", size)

    def close(self) -> None:
        pass


def open_remote(url: str) -> Source:
    """Open one remote file."""
    if is_http(url):
        return HttpSource(url)
    return RemoteSource(*file_system(url), public(url))


def open_remote_tree(url: str) -> Tree:
    """Open a remote directory."""
    if is_http(url):
        return HttpTree(url)
    return RemoteTree(*file_system(url), public(url))


def locate_remote(url: str) -> tuple[Source, Tree | None]:
    """The sealed file that holds the recipients, and the directory around it if it is a manifest.

    Raises:
        NotFound: nothing is there.
        NotSealed: a directory without ``MANIFEST.sealed``.
    """
    if is_http(url):
        return _locate_http(url)
    fs, path = file_system(url)
    name = public(url)
    with _errors(name):
        directory = fs.info(path).get("type") == "directory"
    if not directory:
        return RemoteSource(fs, path, name), None
    tree = RemoteTree(fs, path, name)
    try:
        return tree.source(MANIFEST + SEALED_SUFFIX), tree
    except NotFound:
        raise NotSealed(f"{name} is not a sealed model: it has no {MANIFEST}{SEALED_SUFFIX}.") from None


def _begins_sealed(source: Source) -> bool:
    start = memoryview(bytearray(min(len(MAGIC), source.size)))
    source.read_into(0, start)
    return bytes(start) == MAGIC


def _locate_http(url: str) -> tuple[Source, Tree | None]:
    """A web server does not tell files from directories, and may answer anything for either."""
    problem: StrongroomError = NotSealed(
        f"{public(url)} is not a sealed model: it has no {MANIFEST}{SEALED_SUFFIX}."
    )
    if not url.partition("?")[0].endswith("/"):
        try:
            source = HttpSource(url)
            if _begins_sealed(source):
                return source, None
            problem = NotSealed(f"{public(url)} is not a sealed file.")
        except Unavailable:
            raise
        except StrongroomError as error:
            problem = error
    tree = HttpTree(url)
    try:
        manifest = tree.source(MANIFEST + SEALED_SUFFIX)
        if _begins_sealed(manifest):
            return manifest, tree
    except Unavailable:
        raise
    except StrongroomError:
        pass
    raise problem from None


def is_plain_directory(url: str) -> bool:
    """Whether a directory is at ``url``."""
    if is_http(url):
        return url.partition("?")[0].endswith("/")
    fs, path = file_system(url)
    with _errors(public(url)):
        return bool(fs.isdir(path))


def _writable(url: str) -> tuple[Any, str]:
    if is_http(url):
        raise UsageError(
            f"{public(url)}: nothing can be written by HTTP.",
            hint="Write to a local path, or to an object store (s3://, gs://).",
        )
    return file_system(url)


def _is_conflict(error: Exception) -> bool:
    """Whether a commit failed because somebody else was first (HTTP 412)."""
    return isinstance(error, FileExistsError) or "recondition" in f"{error} {error.__cause__}"


class RemoteOutput:
    """One remote file; object stores make it visible when it is complete."""

    def __init__(self, fs: Any, path: str, name: str, *, overwrite: bool) -> None:
        self._name = name
        self._fs = fs
        self._path = path
        self._open = False
        # Cloudflare R2 takes parts of one size only; s3fs is told so, and of what size.
        self._grows = scheme(name) in _ATOMIC and not getattr(fs, "fixed_upload_size", False)
        with _errors(name):
            self._new = not fs.exists(path)
            if not self._new and not overwrite:
                raise AlreadyExists(f"{name} exists already.", hint=_THERE)
            mode = "xb" if not overwrite and scheme(name) in _EXCLUSIVE else "wb"
            size = {"block_size": _PART} if self._grows else {}
            self._file = fs.open(path, mode, autocommit=False, **size)
            self._open = True
        # Whether what is there under the name, if anything is, comes from here.
        self._ours = self._new and scheme(name) not in _ATOMIC

    @classmethod
    def begin(cls, url: str, *, overwrite: bool) -> RemoteOutput:
        return cls(*_writable(url), public(url), overwrite=overwrite)

    def write(self, data: memoryview | bytes) -> None:
        with _errors(self._name):
            self._file.write(data)
            if self._grows:
                self._file.blocksize = max(_PART, self._file.tell() // _PARTS_OF_FIRST_SIZE)

    def commit(self) -> None:
        with _errors(self._name):
            self._file.close()
            # A commit whose answer is lost may have been carried out.
            self._ours = self._new
            try:
                self._file.commit()
            except Exception as error:
                if _is_conflict(error):
                    self._ours = False
                    raise FileExistsError from None
                raise
        self._forget()

    def abort(self) -> None:
        if not self._open:
            return
        with contextlib.suppress(Exception):
            self._file.discard()
        # Closing it, as its destructor does, would upload what is buffered.
        with contextlib.suppress(Exception):
            self._file.closed = True
        self._forget()
        self.remove()

    def remove(self) -> None:
        """Take away what this has put there, complete or not."""
        if self._ours:
            with contextlib.suppress(Exception):
                self._fs.rm_file(self._path)

    def _forget(self) -> None:
        """Files that do not commit themselves are kept by fsspec for a transaction; there is none."""
        self._open = False
        with contextlib.suppress(ValueError):
            self._fs.transaction.files.remove(self._file)


class RemoteTreeOutput:
    """A remote directory. The manifest comes last: without it nothing there is a sealed model."""

    def __init__(self, url: str, *, overwrite: bool) -> None:
        self._name = public(url).rstrip("/")
        self._fs, root = _writable(url)
        self._root = root.rstrip("/")
        self._files: list[RemoteOutput] = []
        with _errors(self._name):
            there = self._fs.exists(self._root)
        if there and overwrite:
            raise UsageError(
                f"{self._name} exists already, and a remote directory cannot be replaced in one step.",
                hint="Write to a new URL, and remove the old one when nobody reads it any more.",
            )
        if there:
            raise AlreadyExists(f"{self._name} exists already.", hint="Give another destination.")

    def file(self, path: str) -> Output:
        output = RemoteOutput(self._fs, f"{self._root}/{path}", f"{self._name}/{path}", overwrite=False)
        self._files.append(output)
        return output

    def commit(self) -> None:
        self._files.clear()

    def abort(self) -> None:
        for output in reversed(self._files):  # the manifest first
            output.abort()
            output.remove()
        self._files.clear()
