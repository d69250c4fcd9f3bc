"""Memory that a model is decrypted into."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from strongroom.crypto.secret import advise
from strongroom.errors import os_errors

__all__ = ["BufferPool", "address_of", "allocate", "allocate_bytes", "memory_file", "writer"]

_HUGE: Final = 2 << 20
_POOLED: Final = 8 << 20
_NOEXEC_SEAL: Final = 0x0008
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# memfd_create(2), fcntl(2); MFD_NOEXEC_SEAL is not in Python's os before 3.14.


def address_of(buffer: memoryview | mmap.mmap) -> int:
    """Where a writable buffer lies."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def allocate(size: int) -> memoryview:
    """``size`` zero bytes in a private mapping of their own, left out of core dumps.

    From 2 MiB on they lie on huge pages where the system has them: faulting 4 KiB pages in costs
    more than the decryption itself (benchmarks/parts.py).
    """
    if size == 0:
        return memoryview(bytearray())
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if size < _HUGE:
        start, memory = 0, mmap.mmap(-1, size, flags=flags)
    else:
        memory = mmap.mmap(-1, size + _HUGE, flags=flags)
        start = -address_of(memory) % _HUGE
        advise(memory, "MADV_HUGEPAGE")
    advise(memory, "MADV_DONTDUMP")
    return memoryview(memory)[start : start + size]


class BufferPool:
    """Buffers of one size, used again: the page faults of fresh memory cost more than AES does.

    Takes and gives from several threads. At most 8 MiB wait here for the next use.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._keep = max(1, _POOLED // max(1, size))
        self._free: list[memoryview] = []

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """A buffer for the time of the block; what it holds at the beginning is undefined."""
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give(buffer)

    def take(self) -> memoryview:
        """A buffer to keep, until :meth:`give`."""
        try:
            return self._free.pop()
        except IndexError:
            return allocate(self._size)

    def give(self, buffer: memoryview) -> None:
        """Hand back what nobody uses any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)

    def clear(self) -> None:
        """Give up what waits for the next use."""
        self._free.clear()


@cache
def _new_bytes() -> Callable[[None, int], bytes]:
    """``PyBytes_FromStringAndSize``, which only allocates if there is nothing to copy from."""
    import ctypes  # 5 ms

    function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
    return function(("PyBytes_FromStringAndSize", ctypes.pythonapi))


@contextmanager
def allocate_bytes(size: int) -> Iterator[tuple[memoryview, bytes]]:
    """A new ``bytes`` of undefined content, and a view to fill it with before anybody looks at it.

    For callees that take nothing but ``bytes``. Not by way of ``BytesIO``, which zeroes it first (400 MB
    decrypted in 0.28 s, so in 0.12 s). The view keeps the ``bytes`` alive, and is released by the block.
    """
    if size == 0:
        yield memoryview(bytearray()), b""
        return
    import ctypes

    data = _new_bytes()(None, size)
    start = id(data) + bytes.__basicsize__ - 1  # behind the header, less the final NUL
    if size >= 2 * _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-start // _HUGE) * _HUGE
        length = (start + size - first) // _HUGE * _HUGE
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    content: Any = (ctypes.c_char * size).from_address(start)
    content.owner = data
    with memoryview(content).cast("B") as view:
        try:
            yield view, data
        except BaseException as error:
            # No plaintext is left to the frames of a traceback.
            traceback.clear_frames(error.__traceback__)
            raise


@contextmanager
def memory_file(
    name: str, fill: Callable[[Callable[[int, memoryview], None]], object]
) -> Iterator[str]:
    """A path to what ``fill`` writes, in memory and never on a disk.

    Nobody can change it any more. The path lives as long as the ``with`` block, for child processes of
    the same user too; what has been opened or mapped from it stays.

    Written by several threads, and not filled through a mapping, which takes a page fault for each 4 KiB
    (400 MB: 0.36 s; written 0.16 s, and ``sendfile`` of a plain file takes 0.17 s).

    Args:
        fill: called with a function that takes an offset and bytes, to be called from any thread.
    """
    descriptor = _new_memory_file(name)
    if descriptor is None:
        with _file_in_memory(fill) as place:
            yield place
        return
    try:
        fill(writer(descriptor))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _new_memory_file(name: str) -> int | None:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # A name has at most 249 bytes.
    short = os.fsdecode(os.fsencode(name)[:200])
    try:
        # Linux 6.3 logs a warning about memory files that do not say whether they may be executed.
        return os.memfd_create(short, flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return None
        return os.memfd_create(short, flags)


@contextmanager
def _file_in_memory(fill: Callable[[Callable[[int, memoryview], None]], object]) -> Iterator[str]:
    """As :func:`memory_file`, where the system has no such files: in an enclave of Gramine."""
    from strongroom.model.memory_directory import memory_directory

    with memory_directory() as directory:
        place = f"{directory}/file"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os_errors(place):
            descriptor = os.open(place, flags, 0o600)
        try:
            fill(writer(descriptor))
        finally:
            os.close(descriptor)
        yield place


def writer(descriptor: int) -> Callable[[int, memoryview], None]:
    """Writes bytes to where they belong in a file; from several threads."""

    def write_at(offset: int, data: memoryview) -> None:
        with os_errors("memory"):
            while data:
                count = os.pwrite(descriptor, data, offset)
                data, offset = data[count:], offset + count

    return write_at
