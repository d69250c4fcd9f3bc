"""Import and export: files of a foreign format into a sealed model, and back out of one."""

from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from strongroom.compat.base import HEAD_SIZE, Codec, PlainFile
from strongroom.compat.registry import codec
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import InvalidKey, SourceChanged, StrongroomError, UsageError, os_errors
from strongroom.model import collect as files_of
from strongroom.model.collect import Sealable, StreamedFile
from strongroom.model.location import base_name, public
from strongroom.model.output import open_file_output, open_tree_output
from strongroom.model.reader import SealedModel
from strongroom.model.seal import SealJob, check_destination, seal_files

__all__ = [
    "OF_MODEL",
    "Export",
    "ForeignKey",
    "ImportPlan",
    "export_model",
    "plan_import",
    "read_foreign_key",
]

ForeignKey = str | os.PathLike[str] | bytes | bytearray | SecretBytes
"""A key of a foreign system: the path of its key file, ``env:NAME``, or what such a file holds."""

OF_MODEL: Final = "model:"
"""In the place of a foreign key, for an export: the one that is derived from the key of the model."""

_MAX_KEY: Final = 1 << 20


def read_foreign_key(key: ForeignKey | None) -> SecretBytes | None:
    """The content of a foreign key file.

    Raises:
        InvalidKey: it is empty, or too large to be a key.
        NotFound, StorageError: it cannot be read.
    """
    if key is None:
        return None
    if isinstance(key, SecretBytes):
        return SecretBytes(key.buffer)
    if isinstance(key, bytes | bytearray):
        return _secret(bytes(key), "The key")
    text = os.fspath(key)
    if text.startswith("env:") and not os.path.exists(text):
        name = text.removeprefix("env:")
        return _secret(os.environb.get(os.fsencode(name), b""), f"The environment variable {name}")
    with os_errors(text), open(text, "rb", buffering=0) as file:
        content = file.read(_MAX_KEY + 1) or b""
    try:
        return _secret(content, text)
    finally:
        wipe_bytes(content)


def _secret(content: bytes, what: str) -> SecretBytes:
    if not content:
        raise InvalidKey(f"{what} is empty.")
    if len(content) > _MAX_KEY:
        raise InvalidKey(f"{what} is too large to be a key.")
    return SecretBytes(content)


def _matches(path: str, globs: Sequence[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path, g) or fnmatch.fnmatchcase(name, g) for g in globs)


@dataclass(frozen=True)
class ImportPlan:
    """What an import will do.

    Attributes:
        files: to be sealed: one, or those of a directory.
        decrypted: paths in the model of what is decrypted.
        plain: paths of what was in clear, and is sealed as it is.
        origin: for the ``meta`` of the sealed model: where it came from.
        unprotected: what the foreign format did not protect.
    """

    files: Sequence[Sealable] | Sealable
    decrypted: Sequence[str]
    plain: Sequence[str]
    origin: Mapping[str, object]
    unprotected: str
    source: str | os.PathLike[str] = field(repr=False)

    def seal(self, destination: str | os.PathLike[str], job: SealJob) -> bytes:
        """Do it, and return the new bundle (16 bytes).

        Raises:
            StrongroomError: nothing is left at the destination then, and what was there stays.
        """
        check_destination(self.source, destination)
        return seal_files(self.files, destination, job)


def plan_import(
    source: str | os.PathLike[str],
    format: str,
    key: ForeignKey | None = None,
    options: Mapping[str, str] | None = None,
    plain: Sequence[str] = (),
) -> ImportPlan:
    """Look at what is to be imported; headers are read and checked, nothing is written.

    Args:
        source: a file or a directory, a path or a URL.
        format: the name of a codec.
        key: of the foreign system.
        options: of the codec.
        plain: glob patterns of files of a directory that are not encrypted.

    Raises:
        UsageError: a file is neither encrypted nor said to be plain, or nothing is encrypted.
        StrongroomError: a file or the key is not of the format.
    """
    made = codec(format)(read_foreign_key(key), options)
    collected = files_of.collect(source)
    origin = {"format": format, "source": base_name(public(os.fspath(source)))}
    if not isinstance(collected, list):
        found = _decrypted(made, collected)
        names = [file.path for file in found]
        files: Sequence[Sealable] | Sealable = found[0] if len(found) == 1 else _sorted(found)
        return ImportPlan(files, names, [], origin, made.unprotected, source)
    made.root = os.fspath(source).rstrip("/")
    decrypted: list[Sealable] = []
    kept: list[Sealable] = []
    for file in collected:
        if made.skips(file.path):
            continue
        if _matches(file.path, plain) or made.leaves_plain(file.path):
            kept.append(file)
        elif made.recognises(file.path, _head(file)):
            decrypted += _decrypted(made, file)
        else:
            raise UsageError(
                f"{file.path} is not in the format {format}.",
                hint=f"If it is not encrypted, say so: --plain {file.path} (plain=[…]).",
            )
    if not decrypted:
        raise UsageError(f"{os.fspath(source)} has no files in the format {format}.")
    files = _sorted([*decrypted, *kept])
    paths = [file.path for file in decrypted], [file.path for file in kept]
    return ImportPlan(files, *paths, origin, made.unprotected, source)


def _sorted(files: Sequence[Sealable]) -> list[Sealable]:
    found = sorted(files, key=lambda file: file.path)
    for one, other in itertools.pairwise(found):
        if one.path == other.path:
            raise UsageError(f"Two files would be called {one.path} in the model.")
    return found


def _head(file: files_of.PlainFile) -> bytes:
    source = file.open()
    try:
        head = memoryview(bytearray(min(HEAD_SIZE, source.size)))
        source.read_into(0, head)
        return bytes(head)
    finally:
        source.close()


def _decrypted(made: Codec, file: files_of.PlainFile) -> list[StreamedFile]:
    """The plaintexts of a foreign file. It is opened anew for each: a directory may have thousands."""

    def opened(use: Callable[[Sequence[PlainFile]], None]) -> None:
        source = file.open()
        try:
            use(made.decrypt(source, file.path))
        except StrongroomError as error:
            error.within(file.path)
            raise
        finally:
            source.close()

    paths: list[str] = []
    opened(lambda plaintexts: paths.extend(one.path for one in plaintexts))

    def copy(number: int, write: Callable[[memoryview | bytes], object]) -> None:
        def use(plaintexts: Sequence[PlainFile]) -> None:
            if [one.path for one in plaintexts] != paths:
                raise SourceChanged(
                    f"{file.path} changed while it was imported.",
                    hint="Import it again when nothing writes to it.",
                )
            plaintexts[number].copy_to(write)

        opened(use)

    def streamed(number: int, path: str) -> StreamedFile:
        checked = files_of.checked_path(path, file.path)
        return StreamedFile(checked, lambda write: copy(number, write))

    return [streamed(number, path) for number, path in enumerate(paths)]


@dataclass(frozen=True)
class Export:
    """What an export has done.

    Attributes:
        files: paths in the directory, or the destination of one file.
        configuration: what the foreign system must be told to read it, or nothing.
    """

    files: list[str]
    configuration: str


def export_model(
    model: SealedModel,
    destination: str | os.PathLike[str],
    format: str,
    key: ForeignKey | None = None,
    options: Mapping[str, str] | None = None,
    *,
    plain: Sequence[str] = (),
    insecure_legacy: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write an open model in a foreign format.

    Args:
        key: of the foreign system; :data:`OF_MODEL` derives it from that of the model.
        plain: glob patterns of files that are written in clear, since the foreign system wants
            them so.
        insecure_legacy: write a format that is too weak for what it is used for.

    Raises:
        UsageError: the format cannot be written, or is too weak, or a file would lie in clear.
        StrongroomError: nothing is left at the destination then, and what was there stays.
    """
    kind = codec(format)
    if not kind.writes:
        raise UsageError(f"{format} files can be imported, not written.")
    if kind.legacy and not insecure_legacy:
        raise UsageError(
            f"{format} is too weak to be written without saying so: {kind.unprotected}",
            hint="If nothing else will do: --insecure-legacy (insecure_legacy=True).",
        )
    made = kind(kind.key_of(model) if key == OF_MODEL else read_foreign_key(key), options)
    check_destination(model.name, destination)
    target = os.fspath(destination)
    if not model.is_directory:
        output = open_file_output(destination, overwrite=overwrite, private=False)
        path = next(iter(model.files))
        try:
            made.encrypt(model.content(path), target, output)
            output.commit()
        except BaseException:
            output.abort()
            raise
        return Export([target], made.configuration(target, [], []))
    made.root = target.rstrip("/")
    clear = {path for path in model.files if _matches(path, plain)}
    for path in model.files:
        if path not in clear and made.leaves_plain(path):
            raise UsageError(
                f"{format} keeps {path} in clear.",
                hint=f"To write it in clear: --plain {path} (plain=[…]).",
            )
    tree = open_tree_output(destination, overwrite=overwrite, private=bool(clear))
    written: list[str] = []
    try:
        for path in model.files:
            name = path if path in clear else made.foreign_path(path)
            output = tree.file(name)
            try:
                if path in clear:
                    model.content(path).copy_to(output.write)
                else:
                    made.encrypt(model.content(path), f"{made.root}/{name}", output)
                output.commit()
            except BaseException:
                output.abort()
                raise
            written.append(name)
        tree.commit()
    except BaseException:
        tree.abort()
        raise
    encrypted = [path for path in model.files if path not in clear]
    return Export(written, made.configuration(made.root, encrypted, sorted(clear)))
