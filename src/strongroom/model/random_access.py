"""A read-only Python file over anything that can be read from a position."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from strongroom.model.memory import allocate_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RandomAccessFile"]


class RandomAccessFile(io.RawIOBase):
    """Seekable; what to read from is for a subclass.

    Reads are filled up to the end of the file, and never ask for more memory than the file has bytes,
    whatever a length in it says.

    Args:
        size: bytes of the file.
    """

    def __init_subclass__(cls) -> None:
        # torch 2.13 goes on reading in C++ after a read has raised, and with an exception pending CPython
        # finds methods in the class itself only: the error would become an AttributeError.
        for name in ("read", "readinto", "seek", "tell"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def read_at(self, position: int, out: memoryview) -> None:
        """Fill ``out`` from ``position`` on; the file reaches that far."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def _left(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return max(0, self._size - self._position)

    def readable(self) -> bool:
        self._left()
        return True

    def seekable(self) -> bool:
        self._left()
        return True

    def tell(self) -> int:
        self._left()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._left()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if whence not in bases:
            raise ValueError(f"invalid whence {whence}")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        out = memoryview(buffer).cast("B")[: self._left()]
        self.read_at(self._position, out)
        self._position += len(out)
        return len(out)

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._left()
        wanted = left if size is None or size < 0 else min(size, left)
        with allocate_bytes(wanted) as (memory, data):
            self.read_at(self._position, memory)
        self._position += wanted
        return data

    def readall(self) -> bytes:
        return self.read()

    def __reduce__(self) -> Any:
        raise TypeError("a file of a model cannot be pickled")
