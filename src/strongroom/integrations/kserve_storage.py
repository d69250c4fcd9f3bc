"""KServe's storage initialiser for sealed models: brings what is sealed, and brings it sealed.

The program of a ClusterStorageContainer: ``python -m strongroom.integrations.kserve_storage URI DIRECTORY``.
It needs no key, and refuses plain models: what is on the volume of a pod is ciphertext.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from strongroom.errors import StrongroomError, UsageError, os_errors
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX, check_path
from strongroom.model.inspection import inspect_model
from strongroom.model.location import base_name, is_url, local
from strongroom.model.parallel import for_each
from strongroom.model.reader import locate
from strongroom.model.storage import Source, Tree

__all__ = ["fetch", "main"]

PREFIX: Final = "sealed+"
"""Before the scheme, so that KServe's own initialiser does not take it: ``sealed+s3://models/resnet50``."""

_MANIFEST: Final = MANIFEST + SEALED_SUFFIX
_VERSION: Final = "1"
_MODE: Final = 0o644
_PIECE: Final = 4 << 20


def fetch(uri: str, directory: str) -> None:
    """Copy a sealed model into a directory, without opening it.

    The files of a sealed directory lie where they lay, the manifest last; a sealed file keeps its name, in a
    folder of version 1. What is there under these names is replaced: an init container may be started again.

    Args:
        uri: ``sealed+s3://…``, ``sealed+gs://…``, ``sealed+https://…``; or what :func:`strongroom.open` takes.
        directory: made where it is not there.

    Raises:
        NotSealed: it is a plain model.
        StrongroomError: it cannot be read, or written.
    """
    location = uri.removeprefix(PREFIX)
    if not is_url(location):
        location = os.fspath(local(location))
    inspect_model(location)
    source, tree = locate(location)
    try:
        if tree is None:
            _copy(source, os.path.join(directory, _VERSION, _name(location)))
        else:
            _copy_tree(tree, directory)
    finally:
        source.close()
        if tree is not None:
            tree.close()


def _name(location: str) -> str:
    name = base_name(location) if is_url(location) else os.path.basename(os.path.normpath(location))
    return check_path(name)


def _copy_tree(tree: Tree, directory: str) -> None:
    sizes = tree.sizes()
    if sizes is None:
        raise UsageError(
            f"{tree.name} cannot be listed: over HTTP, only a sealed file is brought.",
            hint="Seal the model into one file, or have an object store keep it.",
        )
    # Without it, what is there is no model, and nobody opens half of one.
    for path in sorted(sizes, key=lambda one: one == _MANIFEST):
        source = tree.source(path)
        try:
            _copy(source, os.path.join(directory, check_path(path)))
        finally:
            source.close()


def _copy(source: Source, target: str) -> None:
    """Under its name when it is whole."""
    folder, name = os.path.split(target)
    coming = os.path.join(folder, f".{name}.coming")
    with os_errors(target):
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(coming, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
        try:
            _write(source, descriptor)
            os.fsync(descriptor)
            os.rename(coming, target)
        except BaseException:
            os.unlink(coming)
            raise
        finally:
            os.close(descriptor)


def _write(source: Source, descriptor: int) -> None:
    def piece(number: int) -> None:
        offset = number * _PIECE
        view = memoryview(bytearray(min(_PIECE, source.size - offset)))
        source.read_into(offset, view)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    for_each(-(-source.size // _PIECE), piece, source.threads)


def main() -> int:
    """As KServe calls it; the exit code."""
    if len(sys.argv) != 3:
        print("usage: python -m strongroom.integrations.kserve_storage URI DIRECTORY", file=sys.stderr)
        return UsageError.exit_code
    try:
        fetch(*sys.argv[1:])
    except StrongroomError as error:
        hint = f" {error.hint}" if error.hint else ""
        print(f"strongroom: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
