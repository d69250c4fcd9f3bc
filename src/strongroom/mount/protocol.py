"""Messages of the kernel's FUSE interface, as bytes: what a read-only file system needs of them.

``linux/fuse.h`` of interface 7.38; every kernel from 4.20 on speaks what is used of it. No I/O here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = [
    "BUFFER",
    "DIRECT_IO",
    "HEADER",
    "KEEP_CACHE",
    "MAX_READ",
    "Attributes",
    "Init",
    "Opcode",
    "Request",
    "attributes_answer",
    "directory_entry",
    "entry_answer",
    "header",
    "init_answer",
    "invalidation",
    "missing_answer",
    "open_answer",
    "parse_init",
    "parse_read",
    "parse_request",
    "statfs_answer",
    "store_header",
]

BUFFER: Final = 8192
"""The least that a request must be read into; none that a read-only file system gets is longer."""

MAX_READ: Final = 2 << 20
"""Bytes to be asked for at once. The kernel gives half of that, unless ``fs.fuse.max_pages_limit`` is raised to 512."""

KEEP_CACHE: Final = 1 << 1
DIRECT_IO: Final = 1 << 0
_CACHE_DIR: Final = 1 << 3

_VERSION: Final = (7, 38)
_FOREVER: Final = 1 << 30
"""Seconds for which the kernel may believe names and attributes: nothing changes in the tree."""

_ASYNC_READ: Final = 1 << 0
_PARALLEL_DIROPS: Final = 1 << 18
_MAX_PAGES: Final = 1 << 22
_WANTED: Final = _ASYNC_READ | _PARALLEL_DIROPS | _MAX_PAGES
_PAGES: Final = MAX_READ // 4096
_BLOCK: Final = 1 << 20
"""Bytes that ``stat`` says to read at once; Python's ``open`` makes a buffer of that size."""
_SMALLEST_WRITE: Final = 4096
_BACKGROUND: Final = 256
"""Requests of read-ahead under way; the kernel's own limit, 12, is for one slow file to use up."""

_IN: Final = struct.Struct("=IIQQIIIHH")
_OUT: Final = struct.Struct("=IiQ")
_ATTR: Final = struct.Struct("=6Q10I")
_ENTRY: Final = struct.Struct("=4Q2I")
_ATTR_OUT: Final = struct.Struct("=Q2I")
_OPEN: Final = struct.Struct("=QII")
_READ: Final = struct.Struct("=QQI")
_INIT_IN: Final = struct.Struct("=4I")
_INIT_OUT: Final = struct.Struct("=4I2H2I2HI7I")
_STATFS: Final = struct.Struct("=5Q4I24x")
_DIRENT: Final = struct.Struct("=QQII")
_INVALIDATE: Final = struct.Struct("=Qqq")
_INVALIDATE_INODE: Final = 2
_STORE_OUT: Final = struct.Struct("=QQII")
_STORE: Final = 4

HEADER: Final = _OUT.size


class Opcode(IntEnum):
    """What the kernel asks for; everything else is answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    DESTROY = 38
    BATCH_FORGET = 42


NO_ANSWER: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its opcode, the number its answer has, the node it is about, and its arguments."""

    opcode: int
    unique: int
    node: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class Init:
    """What the kernel says first: its version and what it can do."""

    version: tuple[int, int]
    max_readahead: int
    flags: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """What ``stat`` shows of one node; times in seconds."""

    number: int
    size: int
    mode: int
    links: int
    uid: int
    gid: int
    time: int

    def _pack(self) -> bytes:
        blocks = -(-self.size // 512)
        times = (self.time, self.time, self.time, 0, 0, 0)
        owner = (self.mode, self.links, self.uid, self.gid)
        return _ATTR.pack(self.number, self.size, blocks, *times, *owner, 0, _BLOCK, 0)


def parse_request(raw: memoryview) -> Request:
    """The request in what one read from the kernel gave.

    Raises:
        ValueError: it is none.
    """
    if len(raw) < _IN.size:
        raise ValueError("a request is shorter than its header")
    size, opcode, unique, node, *_ = _IN.unpack_from(raw)
    if size != len(raw):
        raise ValueError("a request has another length than it says")
    return Request(opcode, unique, node, raw[_IN.size :])


def parse_init(body: memoryview) -> Init:
    """The arguments of INIT."""
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(body)
    return Init((major, minor), max_readahead, flags)


def parse_read(body: memoryview) -> tuple[int, int]:
    """Offset and size of a READ or READDIR."""
    _, offset, size = _READ.unpack_from(body)
    return offset, size


def header(unique: int, size: int = 0, error: int = 0) -> bytes:
    """What precedes ``size`` bytes of an answer; ``error`` is an errno."""
    return _OUT.pack(HEADER + size, -error, unique)


def init_answer(init: Init, max_readahead: int) -> bytes:
    """The answer to INIT.

    Args:
        max_readahead: bytes that the kernel may read ahead; it takes the least of this and its own.
    """
    background = (_BACKGROUND, _BACKGROUND * 3 // 4)
    flags = init.flags & _WANTED
    more = (_SMALLEST_WRITE, 1, _PAGES, 0, 0)
    return _INIT_OUT.pack(*_VERSION, max_readahead, flags, *background, *more, *(7 * [0]))


def entry_answer(attributes: Attributes) -> bytes:
    """The answer to LOOKUP: the node of that name."""
    number = attributes.number
    return _ENTRY.pack(number, 0, _FOREVER, _FOREVER, 0, 0) + attributes._pack()


def missing_answer() -> bytes:
    """The answer to LOOKUP of a name that is not there, and will not be."""
    return _ENTRY.pack(0, 0, _FOREVER, _FOREVER, 0, 0) + bytes(_ATTR.size)


def attributes_answer(attributes: Attributes) -> bytes:
    """The answer to GETATTR."""
    return _ATTR_OUT.pack(_FOREVER, 0, 0) + attributes._pack()


def open_answer(flags: int, *, folder: bool = False) -> bytes:
    """The answer to OPEN and OPENDIR."""
    return _OPEN.pack(0, KEEP_CACHE | _CACHE_DIR if folder else flags, 0)


def statfs_answer(size: int, files: int) -> bytes:
    """The answer to STATFS: a full file system of ``size`` bytes."""
    return _STATFS.pack(-(-size // 4096), 0, 0, files, 0, 4096, 255, 4096, 0)


def directory_entry(number: int, position: int, name: bytes, *, folder: bool) -> bytes:
    """One entry of a READDIR's answer; ``position`` is where to go on after it."""
    kind = 4 if folder else 8  # DT_DIR, DT_REG
    record = _DIRENT.pack(number, position, len(name), kind) + name
    return record + bytes(-len(record) % 8)


def invalidation(number: int) -> bytes:
    """A word to the kernel: forget what you have read of the node."""
    return _OUT.pack(HEADER + _INVALIDATE.size, _INVALIDATE_INODE, 0) + _INVALIDATE.pack(number, 0, 0)


def store_header(number: int, offset: int, size: int) -> bytes:
    """What precedes ``size`` bytes of the node that the kernel shall keep as if it had read them.

    A page of which it is given a part alone is read all the same.
    """
    whole = HEADER + _STORE_OUT.size + size
    return _OUT.pack(whole, _STORE, 0) + _STORE_OUT.pack(number, offset, size, 0)
