"""A file of a sealed model: what is known of it, and Python's file object."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.model.payload import Content
from strongroom.model.random_access import RandomAccessFile

__all__ = ["FileInfo", "SealedFile"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a model: its path, the bytes of its plaintext, whether it is sealed or clear."""

    path: str
    size: int
    sealed: bool


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
