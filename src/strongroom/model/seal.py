"""Seal a file, a directory or a stream; and undo it."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import itertools
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from strongroom.errors import Malformed, SourceChanged, Truncated, UsageError, os_errors
from strongroom.format.header import MAGIC, check_segment_size
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.manifest import Entry, Manifest
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX, check_path
from strongroom.keys.base import Recipient
from strongroom.model.location import base_name, is_url, local, public
from strongroom.model.memory import allocate
from strongroom.model.output import Output, TreeOutput, open_file_output, open_tree_output
from strongroom.model.payload import Progress
from strongroom.model.reader import SealedModel
from strongroom.model.storage import LocalSource, Source, open_source, open_tree
from strongroom.model.writer import PayloadWriter, SealingKeys, write_sealed

__all__ = [
    "PlainFile",
    "SealJob",
    "checked_path",
    "checked_segment_size",
    "collect",
    "seal_model",
    "seal_stream",
    "unseal_model",
]

_CHUNK = 8 << 20


@dataclass(frozen=True)
class PlainFile:
    """A file to be sealed: its path in the model, its size, and how to open it."""

    path: str
    size: int
    open: Callable[[], Source]


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


def checked_segment_size(segment: int) -> int:
    """The segment size that a caller asks for.

    Raises:
        UsageError: no sealed file can have it.
    """
    try:
        return check_segment_size(segment)
    except Malformed as error:
        raise UsageError(f"The segment size {error.problem}.", hint="Use 1048576.") from None


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


@dataclass
class SealJob:
    """How to seal: for whom, what stays in clear, what the header says.

    Args:
        recipients: who can open the model.
        meta: what the header says, see :func:`strongroom.model.writer.build_meta`.
        clear: glob patterns of paths that stay in clear (authenticated all the same).
        segment: ciphertext segment size in bytes.
        overwrite: replace what is at the destination.
        progress: called with bytes done.
    """

    recipients: Sequence[Recipient]
    meta: Mapping[str, Any]
    clear: Sequence[str] = ()
    segment: int = DEFAULT_SEGMENT
    overwrite: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        checked_segment_size(self.segment)

    def is_clear(self, path: str) -> bool:
        name = path.rsplit("/", 1)[-1]
        return any(
            fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(name, glob) for glob in self.clear
        )


def _refuse_sealed(source: Source) -> None:
    head = memoryview(bytearray(min(len(MAGIC), source.size)))
    source.read_into(0, head)
    if bytes(head) == MAGIC:
        raise UsageError(
            f"{source.name} is sealed already.",
            hint="Use rewrap to change who can open it, or unseal it first.",
        )


def _check_destination(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Refuse a destination that is the source, lies inside it, or is a directory around it."""
    if destination == "-" or is_url(source) != is_url(destination):
        return
    if is_url(source):
        outer, inner = (public(str(one)).rstrip("/") for one in (source, destination))
    else:
        outer, inner = (os.path.realpath(local(one)) for one in (source, destination))
    if inner == outer or inner.startswith(outer + "/"):
        raise UsageError(f"The destination {inner} is the source itself or lies in it.")
    if outer.startswith(inner.rstrip("/") + "/"):
        # Replacing it would remove the source.
        raise UsageError(f"The source lies in the destination {inner}.")


def _check_unchanged(source: Source) -> None:
    if isinstance(source, LocalSource) and source.changed():
        raise SourceChanged(
            f"{source.name} changed while it was sealed.",
            hint="Seal it again when nothing writes to it.",
        )


def seal_model(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], job: SealJob
) -> bytes:
    """Seal a file or directory and return the new bundle (16 bytes).

    Raises:
        StrongroomError: nothing is left at the destination then, and what was there stays.
    """
    _check_destination(source, destination)
    files = collect(source)
    keys = SealingKeys(job.recipients)
    try:
        if isinstance(files, PlainFile):
            if job.clear:
                raise UsageError("Files can stay in clear only in a sealed directory.")
            _seal_single(files, destination, keys, job)
        else:
            _seal_tree(files, destination, keys, job)
    finally:
        keys.keys.wipe()
    return keys.bundle


def _seal_single(
    file: PlainFile, destination: str | os.PathLike[str], keys: SealingKeys, job: SealJob
) -> None:
    source = file.open()
    try:
        _refuse_sealed(source)
        area = keys.area(file.path, job.segment, job.meta)
        output = open_file_output(destination, overwrite=job.overwrite, private=False)
        _seal_file(source, area, file.path, keys, output, job)
    finally:
        source.close()


def _seal_file(
    source: Source, area: bytes, path: str, keys: SealingKeys, output: Output, job: SealJob
) -> PayloadWriter:
    try:
        output.write(area)
        writer = PayloadWriter(keys.keys, path, job.segment, output.write)
        writer.copy_from(source, job.progress)
        _check_unchanged(source)
        output.commit()
    except BaseException:
        output.abort()
        raise
    return writer


def _seal_tree(
    files: list[PlainFile],
    destination: str | os.PathLike[str],
    keys: SealingKeys,
    job: SealJob,
) -> None:
    if any(file.path == MANIFEST + SEALED_SUFFIX for file in files):
        raise UsageError(
            "The directory is a sealed model already: it has a MANIFEST.sealed.",
            hint="Use rewrap to change who can open it, or unseal it first.",
        )
    if destination == "-":
        raise UsageError("A directory cannot be sealed to standard output.")
    try:  # before anything is written
        Manifest.of([_entry(file, job.is_clear(file.path)) for file in files])
    except Malformed as error:
        raise UsageError(f"The directory cannot be sealed: it {error.problem}.") from None
    area = keys.area(MANIFEST, job.segment, job.meta)
    output = open_tree_output(destination, overwrite=job.overwrite, private=False)
    try:
        entries = [_seal_member(file, output, keys, job) for file in files]
        member = output.file(MANIFEST + SEALED_SUFFIX)
        data = Manifest.of(entries).encode()
        write_sealed(keys, area, MANIFEST, job.segment, member, data)
        output.commit()
    except BaseException:
        output.abort()
        raise


def _entry(file: PlainFile, clear: bool) -> Entry:
    """What the manifest will say, but for salt and digest."""
    if clear:
        return Entry(file.path, file.size, sha256="0" * 64)
    return Entry(file.path, file.size, salt=bytes(32))


def _seal_member(file: PlainFile, output: TreeOutput, keys: SealingKeys, job: SealJob) -> Entry:
    source = file.open()
    try:
        if job.is_clear(file.path):
            return _copy_clear(source, file.path, output.file(file.path), job.progress)
        member = output.file(file.path + SEALED_SUFFIX)
        area = keys.member_area(file.path, job.segment)
        writer = _seal_file(source, area, file.path, keys, member, job)
        return Entry(file.path, writer.size, salt=writer.salt)
    finally:
        source.close()


def _copy_clear(source: Source, path: str, output: Output, progress: Progress | None) -> Entry:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK, source.size)))
    try:
        for start in range(0, source.size, _CHUNK):
            chunk = buffer[: min(_CHUNK, source.size - start)]
            try:
                source.read_into(start, chunk)
            except Truncated:
                raise SourceChanged(f"{source.name} became shorter while it was copied.") from None
            digest.update(chunk)
            output.write(chunk)
            if progress:
                progress(len(chunk))
        _check_unchanged(source)
        output.commit()
    except BaseException:
        output.abort()
        raise
    return Entry(path, source.size, sha256=digest.hexdigest())


def seal_stream(
    stream: IO[bytes], path: str, destination: str | os.PathLike[str], job: SealJob
) -> bytes:
    """Seal what a pipe gives, as a file ``path``, and return the new bundle."""
    keys = SealingKeys(job.recipients)
    try:
        area = keys.area(checked_path(path, path), job.segment, job.meta)
        output = open_file_output(destination, overwrite=job.overwrite, private=False)
        try:
            output.write(area)
            writer = PayloadWriter(keys.keys, path, job.segment, output.write)
            buffer = allocate(_CHUNK)
            while count := _fill(stream, buffer):
                writer.write(buffer[:count])
                if job.progress:
                    job.progress(count)
            writer.finish()
            output.commit()
        except BaseException:
            output.abort()
            raise
    finally:
        keys.keys.wipe()
    return keys.bundle


def _fill(stream: IO[bytes], buffer: memoryview) -> int:
    with os_errors("standard input"):
        return int(stream.readinto(buffer))  # type: ignore[attr-defined]  # every binary stream has it


def unseal_model(
    model: SealedModel,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the plaintext of an open model; readable by the user alone.

    Raises:
        StrongroomError: nothing is left at the destination then, and what was there stays.
    """
    _check_destination(model.name, destination)
    if model.is_directory:
        if destination == "-":
            raise UsageError("A directory cannot be unsealed to standard output.")
        tree = open_tree_output(destination, overwrite=overwrite, private=True)
        try:
            for path in model.files:
                _write_plain(model, path, tree.file(path), progress)
            tree.commit()
        except BaseException:
            tree.abort()
            raise
    else:
        output = open_file_output(destination, overwrite=overwrite, private=True)
        _write_plain(model, next(iter(model.files)), output, progress)


def _write_plain(model: SealedModel, path: str, output: Output, progress: Progress | None) -> None:
    try:
        model.content(path).copy_to(output.write, progress)
        output.commit()
    except BaseException:
        output.abort()
        raise
