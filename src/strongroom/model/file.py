"""A file of a sealed model as Python's file object."""

from __future__ import annotations

from strongroom.model.payload import Content
from strongroom.model.random_access import RandomAccessFile

__all__ = ["SealedFile"]


class SealedFile(RandomAccessFile):
    """Every read decrypts straight into the memory of the caller.

    ``name`` is the path in the model. Closing it leaves the model open.
    """

    def __init__(self, content: Content, name: str) -> None:
        super().__init__(content.size)
        self._content = content
        self.name = name

    def read_at(self, position: int, out: memoryview) -> None:
        self._content.read_into(out, position)
