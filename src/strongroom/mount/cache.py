"""Plaintext that is kept for a moment: a bounded number of bytes, decrypted once for all who ask, wiped at the end."""

from __future__ import annotations

import copy
import ctypes
import threading
from collections import OrderedDict
from typing import Final

from strongroom.model.memory import address_of, allocate
from strongroom.mount.tree import Node

__all__ = ["CACHE_BYTES", "Block", "BlockCache", "new_buffer", "wipe"]

CACHE_BYTES: Final = 64 << 20
"""What a reader of one file has under way is 8 MiB; this is for some readers at once."""

_UNIT: Final = 64 << 10
"""Buffers are multiples of this: small files would take a mapping each, of which a process has 65,530."""

_LIBC: Final = ctypes.CDLL(None)


def new_buffer(size: int) -> memoryview:
    """Memory for plaintext: to be wiped."""
    buffer = allocate(size)
    # As far as RLIMIT_MEMLOCK goes: what is locked is not swapped.
    _LIBC.mlock(ctypes.c_void_p(address_of(buffer)), ctypes.c_size_t(size))
    return buffer


def wipe(buffer: memoryview) -> None:
    """Leave nothing in it."""
    ctypes.memset(address_of(buffer), 0, len(buffer))


class Block:
    """Some whole segments of one file: the plaintext from ``start`` to ``end``.

    Attributes:
        data: the plaintext; read it between :meth:`BlockCache.acquire` and :meth:`BlockCache.release` alone.
        left: bytes that nobody has read yet.
    """

    __slots__ = ("buffer", "data", "end", "error", "key", "left", "ready", "start", "users")

    def __init__(self, key: tuple[int, int], start: int, end: int, buffer: memoryview) -> None:
        self.key = key
        self.start = start
        self.end = end
        self.buffer = buffer
        self.data = buffer[: end - start]
        self.left = end - start
        self.users = 1
        self.ready = threading.Event()
        self.error: BaseException | None = None


class BlockCache:
    """The blocks that were used last.

    Nothing in it is unused memory: a buffer holds a block, or is overwritten by the next one, or wiped and
    given back to the system. Several threads may ask; the first one who wants a block decrypts it, the others wait
    for that.

    Args:
        limit: bytes of buffers. What is in use at the moment stays beyond it.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._spent: dict[tuple[int, int], Block] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return self._size

    def acquire(self, node: Node, offset: int) -> Block:
        """The block around ``offset``, to be released.

        Raises:
            StrongroomError: it cannot be had, or is not authentic.
        """
        block, mine = self._find(node, offset)
        if mine:
            self._fill(block, node)
        elif not block.ready.is_set():
            block.ready.wait()
        if block.error is not None:
            error = block.error
            self.release(block)
            # A copy for each who waits: its traceback would hold their frames.
            raise copy.copy(error)
        return block

    def prefetch(self, node: Node, offset: int) -> None:
        """Decrypt the block around ``offset``, if nobody has or does; its failures are for those who read it."""
        block, mine = self._find(node, offset)
        if mine:
            self._fill(block, node)
        self.release(block)

    def _find(self, node: Node, offset: int) -> tuple[Block, bool]:
        """The block, and whether the caller is to fill it."""
        start, end = node.content().span(offset)
        key = (node.number, start)
        with self._lock:
            if block := self._blocks.get(key):
                self._blocks.move_to_end(key)
                block.users += 1
                return block, False
            block = Block(key, start, end, self._room(-(-(end - start) // _UNIT) * _UNIT))
            self._blocks[key] = block
            return block, True

    def _fill(self, block: Block, node: Node) -> None:
        try:
            node.content().read_into(block.data, block.start)
        except BaseException as error:
            block.error = error.with_traceback(None)
            with self._lock:
                # Who asks again tries again: the network may be back.
                if self._blocks.get(block.key) is block:
                    self._remove(block)
        finally:
            block.ready.set()

    def _room(self, size: int) -> memoryview:
        """A buffer; that of a block that was read to its end, or if it must be, was used longest ago."""
        while self._spent:
            # What was read last is still in the processor's cache.
            _, block = self._spent.popitem()
            if not block.users and len(block.buffer) == size:
                self._remove(block)
                return block.buffer
        unused = (block for block in list(self._blocks.values()) if not block.users)
        while self._size + size > self._limit and (oldest := next(unused, None)):
            self._remove(oldest)
            if len(oldest.buffer) == size:
                return oldest.buffer
            self._discard(oldest)
        self._size += size
        return new_buffer(size)

    def _remove(self, block: Block) -> None:
        del self._blocks[block.key]
        self._spent.pop(block.key, None)

    def _discard(self, block: Block) -> None:
        wipe(block.buffer)
        self._size -= len(block.buffer)

    def release(self, block: Block, read: int = 0) -> None:
        """Nobody reads ``block.data`` after this; ``read`` bytes of it were."""
        with self._lock:
            block.users -= 1
            block.left -= read
            if block.users:
                return
            if self._blocks.get(block.key) is not block:  # dropped meanwhile
                self._discard(block)
            elif block.left <= 0:
                self._spent[block.key] = block

    def drop(self, number: int | None = None) -> None:
        """Wipe what is kept of the node of that number, or of all; what is in use, when it no longer is."""
        with self._lock:
            for block in list(self._blocks.values()):
                if number is None or block.key[0] == number:
                    self._remove(block)
                    if not block.users:
                        self._discard(block)
