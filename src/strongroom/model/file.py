"""A file of a sealed model as Python's file object."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from strongroom.model.memory import allocate_bytes
from strongroom.model.payload import Content

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SealedFile"]


class SealedFile(io.RawIOBase):
    """Read-only, seekable; every read decrypts straight into the memory of the caller.

    ``name`` is the path in the model. Closing it leaves the model open.
    """

    def __init__(self, content: Content, name: str) -> None:
        self._content = content
        self._position = 0
        self.name = name

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._content.size

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"invalid whence {whence}")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        count = self._content.read_into(memoryview(buffer).cast("B"), self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_open()
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        with allocate_bytes(wanted) as (memory, data):
            self._content.read_into(memory, self._position)
        self._position += wanted
        return data

    def readall(self) -> bytes:
        return self.read()

    def __reduce__(self) -> Any:
        raise TypeError("a file of a sealed model cannot be pickled")
