"""What every loader begins with: an open sealed model, and the file of it that is meant."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from strongroom.errors import MissingExtra, NotFound, UsageError
from strongroom.model.reader import SealedModel, open_model
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

__all__ = ["ModelSource", "archive_members", "extra_for", "opened", "pick"]

ModelSource = str | os.PathLike[str] | SealedModel
"""The place of a sealed file or directory (a path or a URL), or a model that is open already."""


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
        if file.read(4) != b"PK\3\4":
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return None


def extra_for(error: ModuleNotFoundError, module: str, what: str, extra: str) -> ImportError:
    """The error to raise when an import failed: the extra is missing, or else what it was."""
    return MissingExtra(what, extra) if error.name == module else error
