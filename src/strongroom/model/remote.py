"""Remote places through fsspec: read by parallel range requests, never staged on this machine."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from strongroom.errors import (
    AlreadyExists,
    MissingExtra,
    NotFound,
    StorageError,
    StrongroomError,
    Truncated,
    UsageError,
)
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.model.output import Output
from strongroom.model.storage import Source

__all__ = [
    "RemoteOutput",
    "RemoteSource",
    "RemoteTree",
    "RemoteTreeOutput",
    "is_directory",
    "is_plain_directory",
]

_UNLISTABLE: Final = frozenset({"http", "https"})


@contextlib.contextmanager
def _errors(url: str) -> Any:
    """What fsspec's back ends raise, in terms of this project's tree."""
    try:
        yield
    except StrongroomError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{url}: nothing is there.") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{url} exists already.") from error
    except PermissionError as error:
        raise UsageError(f"{url}: access is denied.", hint="Check the credentials.") from error
    except ImportError as error:
        raise MissingExtra(f"{url.split(':', 1)[0]}://", "remote") from error
    except Exception as error:
        # Client libraries raise whatever they like here; their texts may hold signed URLs.
        raise StorageError(
            f"{url}: the request failed ({type(error).__name__}).",
            hint="Check the network and the address, and try again.",
        ) from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise MissingExtra(f"Reading {url.split(':', 1)[0]}:// URLs", "remote") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise UsageError(f"{url}: {error}.") from None
    except ImportError:
        raise MissingExtra(f"{url.split(':', 1)[0]}://", "remote") from None
    return fs, path


class RemoteSource:
    """One remote object. Requests of 8 MiB, eight at once: latency and not bandwidth of one
    connection is what an object store makes a reader wait for.
    """

    request: Final = 8 << 20
    threads: Final = 8

    def __init__(self, fs: Any, path: str, name: str) -> None:
        self.name = name
        self._fs = fs
        self._path = path
        with _errors(name):
            info = fs.info(path)
            if info.get("type") == "directory":
                raise UsageError(f"{name} is a directory, not a file.")
            if info.get("size") is None:
                raise UsageError(
                    f"{name}: the server does not say how large the file is.",
                    hint="It must answer range requests; fetch the file with another program.",
                )
        self.size = int(info["size"])

    @classmethod
    def open(cls, url: str) -> RemoteSource:
        return cls(*_file_system(url), url)

    def read_into(self, offset: int, out: memoryview) -> None:
        if not out:
            return
        with _errors(self.name):
            data = self._fs.cat_file(self._path, start=offset, end=offset + len(out))
        if len(data) < len(out):
            raise Truncated(f"{self.name} ends at {offset + len(data)}, before its contents do.")
        if len(data) > len(out):
            raise StorageError(
                f"{self.name}: the server does not answer range requests.",
                hint="Fetch the file with another program.",
            )
        out[:] = data

    def close(self) -> None:
        pass


class RemoteTree:
    """A remote directory, by the prefix of its objects."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._fs, root = _file_system(url)
        self._root = root.rstrip("/")

    def _listable(self) -> bool:
        protocol = self._fs.protocol
        return not _UNLISTABLE & set([protocol] if isinstance(protocol, str) else protocol)

    def sizes(self) -> dict[str, int] | None:
        if not self._listable():
            return None
        with _errors(self.name):
            found = self._fs.find(self._root, detail=True)
        prefix = self._fs._strip_protocol(self._root).rstrip("/") + "/"
        return {
            path.removeprefix(prefix): int(info["size"])
            for path, info in found.items()
            if path.startswith(prefix)
        }

    def source(self, path: str) -> Source:
        return RemoteSource(self._fs, f"{self._root}/{path}", f"{self.name.rstrip('/')}/{path}")

    def close(self) -> None:
        pass


def is_directory(url: str) -> bool:
    """Whether a sealed directory, and not a sealed file, is at ``url``."""
    fs, path = _file_system(url)
    with _errors(url):
        return url.endswith("/") or bool(fs.exists(f"{path.rstrip('/')}/{MANIFEST}{SEALED_SUFFIX}"))


def is_plain_directory(url: str) -> bool:
    """Whether a directory is at ``url``."""
    fs, path = _file_system(url)
    with _errors(url):
        return bool(fs.isdir(path))


class RemoteOutput:
    """One remote object; stores make it visible when it is complete."""

    def __init__(self, url: str, *, overwrite: bool) -> None:
        self._url = url
        self._fs, self._path = _file_system(url)
        with _errors(url):
            if not overwrite and self._fs.exists(self._path):
                raise AlreadyExists(
                    f"{url} exists already.", hint="Give another destination, or --force."
                )
            self._file = self._fs.open(self._path, "wb", autocommit=False)

    def write(self, data: memoryview | bytes) -> None:
        with _errors(self._url):
            self._file.write(data)

    def commit(self) -> None:
        with _errors(self._url):
            self._file.close()
            self._file.commit()

    def abort(self) -> None:
        if not self._file.closed:
            with contextlib.suppress(Exception):
                self._file.discard()
            # Closing would upload what is buffered.
            self._file.closed = True


class RemoteTreeOutput:
    """A remote directory. The manifest comes last: without it nothing there is a sealed model."""

    def __init__(self, url: str, *, overwrite: bool) -> None:
        self._url = url.rstrip("/")
        self._fs, self._root = _file_system(self._url)
        self._overwrite = overwrite
        self._written: list[str] = []
        with _errors(url):
            if not overwrite and self._fs.exists(self._root):
                raise AlreadyExists(
                    f"{url} exists already.", hint="Give another destination, or --force."
                )

    def file(self, path: str) -> Output:
        self._written.append(f"{self._root}/{path}")
        return RemoteOutput(f"{self._url}/{path}", overwrite=self._overwrite)

    def commit(self) -> None:
        self._written.clear()

    def abort(self) -> None:
        for path in self._written:
            with contextlib.suppress(Exception):
                self._fs.rm_file(path)
        self._written.clear()
