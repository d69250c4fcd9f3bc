"""What every loader begins with: an open sealed model, and the file of it that is meant."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from strongroom.errors import FormatError, LimitExceeded, MissingExtra, NotFound, UsageError
from strongroom.model.reader import SealedModel, open_model
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

__all__ = [
    "DAMAGED_ARCHIVE",
    "ModelSource",
    "archive_members",
    "check_members",
    "extra_for",
    "members_of",
    "opened",
    "pick",
    "start_of",
]

ModelSource = str | os.PathLike[str] | SealedModel
"""The place of a sealed file or directory (a path or a URL), or a model that is open already."""

DAMAGED_ARCHIVE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
)
"""What :mod:`zipfile` raises for archives that are damaged, or are none."""

_MAX_EXPANSION: Final = 100
_EXPANSION_FLOOR: Final = 256 << 20
# As in Keras, for each of its files. Here they count together, so that a thousand of them, or a thousand
# names for the same bytes, are not a thousand times as much.
_LOCAL_HEADER: Final = 30
# Bytes in front of a member's name; the last four are the lengths of the name and the extra field.


@contextmanager
def opened(source: ModelSource, key: KeySource | None) -> Iterator[SealedModel]:
    """An open model; closed afterwards if it was opened here.

    Raises:
        UsageError: a key for a model that is open already.
    """
    if isinstance(source, SealedModel):
        if key is not None:
            raise UsageError("The model is open already and takes no key.", hint="Leave out key.")
        yield source
        return
    with open_model(source, lambda: sources.identities(key)) as model:
        yield model


def pick(model: SealedModel, path: str | None, suffixes: Sequence[str], what: str) -> str:
    """The file that ``path`` says; else the only one, or the only one with such a suffix.

    Raises:
        UsageError, NotFound: it has to be said which, or there is none.
    """
    if path is not None:
        if path not in model.files:
            model.content(path)  # raises, with the names that there are
        return path
    if len(model.files) == 1:
        return next(iter(model.files))
    found = [name for name in model.files if name.lower().endswith(tuple(suffixes))]
    if not found:
        raise NotFound(
            f"{model.name} has no {what} file ({', '.join(suffixes)}).",
            hint="Say which file it is: path=…",
        )
    if len(found) > 1:
        raise UsageError(
            f"{model.name} has {len(found)} {what} files.",
            hint=f"Say which: path={found[0]!r}, or one of " + ", ".join(map(repr, found[1:6])),
        )
    return found[0]


def archive_members(model: SealedModel, name: str) -> list[zipfile.ZipInfo] | None:
    """What a zip archive holds, or None if the file is not one."""
    with model.open(name) as file:
        return members_of(file)


def members_of(file: Any) -> list[zipfile.ZipInfo] | None:
    """As :func:`archive_members`, of a file object."""
    if file.read(4) != b"PK\3\4":
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except DAMAGED_ARCHIVE:
        return None


def check_members(members: Iterable[zipfile.ZipInfo], size: int, name: str) -> None:
    """Refuse an archive that is meant to fill the memory, or that Python cannot read.

    Args:
        size: of the archive, in bytes.
        name: the archive, for messages.

    Raises:
        LimitExceeded: it expands a hundredfold, and further than 256 MiB.
        FormatError: it has files that are encrypted, or compressed in another way than by deflate.
    """
    total = 0
    for member in members:
        total += member.file_size
        known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if member.flag_bits & 1 or not known:
            raise FormatError(
                f"{name} has files that are encrypted, or compressed in a way that is not known here.",
                hint="Make the archive again, without that.",
            )
    if total > max(_EXPANSION_FLOOR, _MAX_EXPANSION * size):
        raise LimitExceeded(
            f"{name} expands too far, to {total} bytes; it is not loaded.",
            hint="If it is a model, save it again without compression.",
        )


def start_of(model: SealedModel, name: str, member: zipfile.ZipInfo) -> int:
    """Where in an archive the bytes of a member begin that is not compressed.

    Raises:
        FormatError: the archive is damaged, or ends before the member does.
    """
    header = bytearray(_LOCAL_HEADER)
    model.read_into(name, header, member.header_offset)
    lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = member.header_offset + _LOCAL_HEADER + sum(lengths)
    if not header.startswith(b"PK\3\4") or start + member.file_size > model.files[name].size:
        raise FormatError(f"{name} is a damaged archive: {member.filename!r} is not all there.")
    return start


def extra_for(error: ModuleNotFoundError, module: str, what: str, extra: str) -> ImportError:
    """The error to raise when an import failed: the extra is missing, or else what it was."""
    return MissingExtra(what, extra) if error.name == module else error
