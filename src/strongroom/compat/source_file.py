"""A foreign file as Python's file object, for the packages that read their format themselves."""

from __future__ import annotations

from strongroom.model.random_access import RandomAccessFile
from strongroom.model.storage import Source

__all__ = ["SourceFile"]


class SourceFile(RandomAccessFile):
    """Closing it leaves the source open."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.size)
        self._source = source

    def read_at(self, position: int, out: memoryview) -> None:
        self._source.read_into(position, out)
