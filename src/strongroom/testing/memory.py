"""Sealed files and directories that lie in memory: places for a reader without a file system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strongroom.errors import NotFound, Truncated

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BytesSource", "BytesTree"]


class BytesSource:
    """A :class:`strongroom.model.storage.Source` over a buffer."""

    threads = 1

    def __init__(self, data: Buffer, name: str = "memory") -> None:
        self.name = name
        self.request = 1 << 20
        self._data = memoryview(data).cast("B")
        self.size = len(self._data)

    def read_into(self, offset: int, out: memoryview) -> None:
        part = self._data[offset : offset + len(out)]
        if len(part) < len(out):
            raise Truncated(f"{self.name} ends at {self.size}, before its contents do.")
        out[:] = part

    def close(self) -> None:
        pass


class BytesTree:
    """A :class:`strongroom.model.storage.Tree` over a mapping of paths to buffers."""

    def __init__(self, files: Mapping[str, Buffer], name: str = "memory") -> None:
        self.name = name
        self._files = files

    def sizes(self) -> dict[str, int]:
        return {path: len(memoryview(data)) for path, data in self._files.items()}

    def source(self, path: str) -> BytesSource:
        if path not in self._files:
            raise NotFound(f"{self.name}/{path}: no such file.")
        return BytesSource(self._files[path], f"{self.name}/{path}")

    def close(self) -> None:
        pass
