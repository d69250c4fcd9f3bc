"""A foreign file as Python's file object, for the packages that read their format themselves."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from strongroom.model.storage import Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SourceFile"]


class SourceFile(io.RawIOBase):
    """Read-only, seekable. Closing it leaves the source open.

    Reads are filled up to the end of the file, and never ask for more memory than the file has bytes,
    whatever a length in it says.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        out = memoryview(buffer).cast("B")
        out = out[: max(0, self._source.size - self._position)]
        self._source.read_into(self._position, out)
        self._position += len(out)
        return len(out)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._source.size - self._position)
        out = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(out)
        return bytes(out)

    def readall(self) -> bytes:
        return self.read()
