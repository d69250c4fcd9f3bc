"""Seal a file, a directory or a stream; and undo it."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from strongroom.errors import Malformed, SourceChanged, Truncated, UsageError, os_errors
from strongroom.format.header import check_segment_size
from strongroom.format.limits import DEFAULT_SEGMENT
from strongroom.format.manifest import Entry, Manifest
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.keys.base import Recipient
from strongroom.model.collect import Feed, PlainFile, Sealable, check_unchanged, checked_path, collect
from strongroom.model.location import is_url, local, public
from strongroom.model.memory import allocate
from strongroom.model.output import Output, TreeOutput, open_file_output, open_tree_output
from strongroom.model.payload import Progress
from strongroom.model.reader import SealedModel
from strongroom.model.storage import Source
from strongroom.model.writer import PayloadWriter, SealingKeys, write_sealed

__all__ = [
    "SealJob",
    "check_destination",
    "checked_segment_size",
    "seal_files",
    "seal_model",
    "seal_stream",
    "unseal_model",
]

_CHUNK = 8 << 20


def checked_segment_size(segment: int) -> int:
    """The segment size that a caller asks for.

    Raises:
        UsageError: no sealed file can have it.
    """
    try:
        return check_segment_size(segment)
    except Malformed as error:
        raise UsageError(f"The segment size {error.problem}.", hint="Use 1048576.") from None


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


def check_destination(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
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


def seal_model(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], job: SealJob
) -> bytes:
    """Seal a file or directory and return the new bundle (16 bytes).

    Raises:
        StrongroomError: nothing is left at the destination then, and what was there stays.
    """
    check_destination(source, destination)
    return seal_files(collect(source), destination, job)


def seal_files(
    files: Sequence[Sealable] | Sealable, destination: str | os.PathLike[str], job: SealJob
) -> bytes:
    """Seal files, a directory, or one alone, and return the new bundle (16 bytes).

    Raises:
        StrongroomError: nothing is left at the destination then, and what was there stays.
    """
    keys = SealingKeys(job.recipients)
    try:
        if isinstance(files, Sequence):
            _seal_tree(files, destination, keys, job)
        else:
            if job.clear:
                raise UsageError("Files can stay in clear only in a sealed directory.")
            _seal_single(files, destination, keys, job)
    finally:
        keys.keys.wipe()
    return keys.bundle


def _seal_single(
    file: Sealable, destination: str | os.PathLike[str], keys: SealingKeys, job: SealJob
) -> None:
    with file.opened() as feed:
        area = keys.area(file.path, job.segment, job.meta)
        output = open_file_output(destination, overwrite=job.overwrite, private=False)
        _seal_file(feed, area, file.path, keys, output, job)


def _seal_file(
    feed: Feed, area: bytes, path: str, keys: SealingKeys, output: Output, job: SealJob
) -> PayloadWriter:
    try:
        output.write(area)
        writer = PayloadWriter(keys.keys, path, job.segment, output.write)
        feed(writer, job.progress)
        output.commit()
    except BaseException:
        output.abort()
        raise
    return writer


def _seal_tree(
    files: Sequence[Sealable],
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


def _entry(file: Sealable, clear: bool) -> Entry:
    """What the manifest will say, but for size, salt and digest."""
    if clear:
        return Entry(file.path, 0, sha256="0" * 64)
    return Entry(file.path, 0, salt=bytes(32))


def _seal_member(file: Sealable, output: TreeOutput, keys: SealingKeys, job: SealJob) -> Entry:
    if job.is_clear(file.path) and isinstance(file, PlainFile):
        source = file.open()
        try:
            return _copy_clear(source, file.path, output.file(file.path), job.progress)
        finally:
            source.close()
    with file.opened() as feed:
        member = output.file(file.path + SEALED_SUFFIX)
        area = keys.member_area(file.path, job.segment)
        writer = _seal_file(feed, area, file.path, keys, member, job)
        return Entry(file.path, writer.size, salt=writer.salt)


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
        check_unchanged(source)
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
    check_destination(model.name, destination)
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
