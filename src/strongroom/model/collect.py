"""The files of a model that is to be sealed: where they are, what they will be called."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from strongroom.errors import Malformed, SourceChanged, UsageError, os_errors
from strongroom.format.header import MAGIC
from strongroom.format.paths import MANIFEST, check_path
from strongroom.model.location import base_name, is_url, local, public
from strongroom.model.payload import Progress
from strongroom.model.storage import LocalSource, Source, open_source, open_tree
from strongroom.model.writer import PayloadWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Feed",
    "PlainFile",
    "Sealable",
    "StreamedFile",
    "check_unchanged",
    "checked_path",
    "collect",
]


Feed = Callable[[PayloadWriter, Progress | None], None]
"""Gives all of a payload to a writer, and its end."""


class Sealable(Protocol):
    """A file to be sealed: its path in the model, and how to have its bytes."""

    @property
    def path(self) -> str: ...

    def opened(self) -> AbstractContextManager[Feed]:
        """What cannot be sealed is refused here, before anything is written."""
        ...


@dataclass(frozen=True)
class StreamedFile:
    """A file whose bytes come in pieces, from front to back; ``copy_to`` hands them to its argument."""

    path: str
    copy_to: Callable[[Callable[[Buffer], object]], None]

    @contextmanager
    def opened(self) -> Iterator[Feed]:
        def feed(writer: PayloadWriter, progress: Progress | None) -> None:
            def write(data: Buffer) -> None:
                count = writer.write(data)
                if progress:
                    progress(count)

            self.copy_to(write)
            writer.finish()

        yield feed


@dataclass(frozen=True)
class PlainFile:
    """A file to be sealed: its path in the model, its size, and how to open it."""

    path: str
    size: int
    open: Callable[[], Source]

    @contextmanager
    def opened(self) -> Iterator[Feed]:
        source = self.open()
        try:
            _refuse_sealed(source)

            def feed(writer: PayloadWriter, progress: Progress | None) -> None:
                writer.copy_from(source, progress)
                check_unchanged(source)

            yield feed
        finally:
            source.close()


def checked_path(path: str, where: str) -> str:
    """The path that a file gets in the model, in NFC.

    Raises:
        UsageError: no file of a model can be called so.
    """
    try:
        checked = check_path(unicodedata.normalize("NFC", path))
    except Malformed as error:
        raise UsageError(
            f"{where}: the name cannot be sealed: it {error.problem}.",
            hint="Rename the file.",
        ) from None
    if checked == MANIFEST:
        raise UsageError(
            f"{where}: the name {MANIFEST} is reserved for the manifest of a sealed model.",
            hint="Rename the file.",
        )
    return checked


def _refuse_sealed(source: Source) -> None:
    head = memoryview(bytearray(min(len(MAGIC), source.size)))
    source.read_into(0, head)
    if bytes(head) == MAGIC:
        raise UsageError(
            f"{source.name} is sealed already.",
            hint="Use rewrap to change who can open it, or unseal it first.",
        )


def check_unchanged(source: Source) -> None:
    """Refuse a local file that somebody has written to since it was opened."""
    if isinstance(source, LocalSource) and source.changed():
        raise SourceChanged(
            f"{source.name} changed while it was sealed.",
            hint="Seal it again when nothing writes to it.",
        )


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> list[PlainFile]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in above:
        raise UsageError(f"{folder}: the symbolic link leads back to a directory above it.")
    inside = above | {(status.st_dev, status.st_ino)}
    found: list[PlainFile] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{prefix}{entry.name}"
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                raise UsageError(f"{entry.path}: the symbolic link leads nowhere.") from None
            if stat.S_ISDIR(status.st_mode):
                found += _walk(entry.path, path + "/", inside)
            elif stat.S_ISREG(status.st_mode):
                opener = _opener(entry.path)
                found.append(PlainFile(checked_path(path, entry.path), status.st_size, opener))
            else:
                raise UsageError(
                    f"{entry.path} is neither a file nor a directory and cannot be sealed."
                )
    return found


def _opener(path: str) -> Callable[[], Source]:
    return lambda: LocalSource(path)


def collect(location: str | os.PathLike[str]) -> list[PlainFile] | PlainFile:
    """The files to seal: a list for a directory, one for a file.

    Symbolic links are followed, as the cache of Hugging Face needs; those that lead nowhere or
    back up, devices, sockets and pipes are refused.

    Raises:
        UsageError: something there cannot be sealed.
    """
    location = local(location)
    if is_url(location):
        return _collect_remote(str(location))
    with os_errors(location):
        if not os.path.isdir(location):
            name = checked_path(os.path.basename(os.fspath(location)), os.fspath(location))
            source = LocalSource(location)
            source.close()
            return PlainFile(name, source.size, lambda: LocalSource(location))
        files = _walk(os.fspath(location), "", frozenset())
    return _checked(files, os.fspath(location))


def _collect_remote(url: str) -> list[PlainFile] | PlainFile:
    from strongroom.model.remote import is_plain_directory

    name = public(url).rstrip("/")
    if not is_plain_directory(url):
        source = open_source(url)
        return PlainFile(checked_path(base_name(url), name), source.size, lambda: source)
    tree = open_tree(url)
    sizes = tree.sizes()
    if sizes is None:
        raise UsageError(f"{name}: this place cannot be listed.", hint="Seal its files one by one.")

    def opener(path: str) -> Callable[[], Source]:
        return lambda: tree.source(path)

    files = [PlainFile(checked_path(p, f"{name}/{p}"), size, opener(p)) for p, size in sizes.items()]
    return _checked(files, name)


def _checked(files: list[PlainFile], where: str) -> list[PlainFile]:
    if not files:
        raise UsageError(f"{where} has no files to seal.")
    paths = sorted(file.path for file in files)
    for one, other in itertools.pairwise(paths):
        if one == other:
            raise UsageError(f"{where} has two files whose names are the same in Unicode: {one!r}.")
    return sorted(files, key=lambda file: file.path)
