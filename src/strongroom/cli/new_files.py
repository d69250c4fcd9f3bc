"""Files that a command makes together: all of them or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from strongroom.errors import AlreadyExists
from strongroom.model.output import FileOutput

__all__ = ["write_files"]


def write_files(contents: Mapping[str, tuple[bytes, int]], *, force: bool, hint: str) -> None:
    """Write files (path → content, mode), each complete under its name or not there at all.

    Args:
        contents: what goes where.
        force: replace what is there.
        hint: what to do if something is.

    Raises:
        AlreadyExists: one is there already.
    """
    named: list[str] = []
    outputs: list[FileOutput] = []
    try:
        for path, (content, mode) in contents.items():
            output = FileOutput(path, overwrite=force, mode=mode)
            outputs.append(output)
            output.write(content)
        for path, output in zip(contents, outputs, strict=True):
            output.commit()
            named.append(path)
    except BaseException as error:
        for output in outputs:
            output.abort()
        if not force:
            for path in named:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        if isinstance(error, AlreadyExists):
            error.hint = hint
        raise
