"""Which paths a sealed model may hold, and under which names its files lie."""

from __future__ import annotations

import unicodedata
from typing import Final

from strongroom.errors import Malformed
from strongroom.format.limits import MAX_PATH

__all__ = ["MANIFEST", "SEALED_SUFFIX", "check_path"]

MANIFEST: Final = "MANIFEST"
"""The path of the manifest in a sealed directory; no file of a model may have it."""

SEALED_SUFFIX: Final = ".sealed"


def check_path(path: object, field: str = "path") -> str:
    """Return ``path`` if it is a plain relative POSIX path in NFC; it can then not leave its root.

    Raises:
        Malformed: anything else.
    """
    if not isinstance(path, str) or not path:
        raise Malformed(field, "is not a path")
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed(field, "is not UTF-8") from None
    if len(encoded) > MAX_PATH:
        raise Malformed(field, f"is longer than {MAX_PATH} bytes")
    if "\x00" in path or "\\" in path:
        raise Malformed(field, "holds a NUL or a backslash")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Malformed(field, "is not relative, or has an empty, '.' or '..' part")
    if not unicodedata.is_normalized("NFC", path):
        raise Malformed(field, "is not in Unicode normal form C")
    return path
