"""Answers what the kernel asks of a mounted tree, from several threads."""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from strongroom.errors import StrongroomError, printable
from strongroom.mount import protocol
from strongroom.mount.cache import Block, BlockCache
from strongroom.mount.protocol import Attributes, Opcode, Request
from strongroom.mount.tree import Node, Tree
from strongroom.mount.workers import GONE, Workers

__all__ = ["LOG", "Server"]

LOG: Final = logging.getLogger("strongroom.mount")

_LOG_AGAIN: Final = 60.0
"""Seconds after which the same failure of a file is worth another line."""


class _Failure(Exception):
    """An answer that is an error number."""

    def __init__(self, number: int) -> None:
        self.number = number


class Server:
    """Serves one connection to the kernel until it ends.

    Args:
        device: descriptor of ``/dev/fuse``; who made it closes it and :attr:`ended`, after :meth:`join`.
        page_cache: whether the kernel may keep what it has read.
        everybody: whether other users than this one may read.
        cache: of plaintext.

    Attributes:
        ended: a descriptor that can be read when the connection has ended.
        read_ahead: whether to decrypt what will be asked for next: direct I/O of 1 GiB takes 0.70 s so, and
            0.85 s without. Where the kernel itself asks for 8 MiB ahead, it is no faster.
        last_read: when somebody began to read, or had an answer, by ``time.monotonic``.
        shown: blocks that were read to their end, each by its node and where it begins; as long as
            somebody wants to know.
    """

    def __init__(
        self, tree: Tree, device: int, *, page_cache: bool, everybody: bool, cache: BlockCache
    ) -> None:
        # The kernel's cache is filled by the readers' processors too; without it two readers of 1 GiB each
        # take 1.4 s with a thread for each processor, and 2.2 s with half as many.
        enough = len(os.sched_getaffinity(0)) // (2 if page_cache else 1)
        self._workers = Workers(device, protocol.BUFFER, self._take, enough)
        self.ended = self._workers.ended
        self.read_ahead = True
        self.last_read = 0.0
        self.shown: set[tuple[int, int]] | None = None
        self._tree = tree
        self._device = device
        self._page_cache = page_cache
        self._everybody = everybody
        self._cache = cache
        self._closing = threading.Event()
        self._time = int(time.time())
        self._lock = threading.Lock()
        self._opened: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._next: dict[int, int] = {}
        self._said: dict[int, tuple[str, float]] = {}
        self._actions: dict[int, Callable[[Request], list[bytes | memoryview]]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.RELEASE: self._nothing,
            Opcode.RELEASEDIR: self._nothing,
            Opcode.DESTROY: self._nothing,
            Opcode.STATFS: self._statfs,
        }

    def begin(self, max_readahead: int) -> None:
        """Answer the kernel's first request, and start serving.

        Raises:
            OSError: the connection is gone.
        """
        request = protocol.parse_request(memoryview(os.read(self._device, protocol.BUFFER)))
        if request.opcode != Opcode.INIT:
            raise OSError(errno.EPROTO, "the kernel does not begin with INIT")
        answer = protocol.init_answer(protocol.parse_init(request.body), max_readahead)
        self._answer(request, [answer])
        self._workers.start()

    @property
    def connected(self) -> bool:
        """Whether what is shown is there: mounted, or in use."""
        poll = select.poll()
        poll.register(self._device, 0)
        return not poll.poll(0)

    def join(self, seconds: float) -> bool:
        """Wait until the connection has ended and nothing is under way; whether that is so."""
        return self._workers.join(seconds)

    def stop_reading(self) -> None:
        """From now on reading fails, and the kernel forgets what it has read."""
        self._closing.set()
        for number in list(self._seen):
            self._invalidate(number)

    def _take(self, raw: bytes) -> None:
        try:
            self._handle(protocol.parse_request(memoryview(raw)))
        except Exception as error:  # a thread that ended would leave others waiting
            LOG.error("a request failed: this is a bug in strongroom: %s", type(error).__name__)

    def _handle(self, request: Request) -> None:
        if request.opcode in protocol.NO_ANSWER:
            return
        if request.opcode == Opcode.READ:
            self._read(request)
            return
        try:
            action = self._actions.get(request.opcode)
            if action is None:
                raise _Failure(errno.ENOSYS)
            answer = action(request)
        except _Failure as failure:
            self._fail(request, failure.number)
        except Exception as error:
            self.report(request.node, error)
            self._fail(request, errno.EIO)
        else:
            self._answer(request, answer)
        if request.opcode == Opcode.RELEASE:
            self._release(request.node)

    def _answer(self, request: Request, parts: list[bytes | memoryview]) -> None:
        size = sum(map(len, parts))
        self._write([protocol.header(request.unique, size), *parts])

    def _fail(self, request: Request, number: int) -> None:
        self._write([protocol.header(request.unique, 0, number)])

    def _write(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            # Who asked was killed, or the file system is gone: the next read says so.
            if error.errno not in {errno.ENOENT, *GONE, errno.ENOTCONN}:
                raise

    def _node(self, request: Request) -> Node:
        try:
            return self._tree.numbered(request.node)
        except FileNotFoundError:
            raise _Failure(errno.ESTALE) from None

    def _folder(self, request: Request) -> tuple[Node, dict[str, Node]]:
        node = self._node(request)
        if node.children is None:
            raise _Failure(errno.ENOTDIR)
        return node, node.children

    def _attributes(self, node: Node) -> Attributes:
        if node.children is None:
            mode, links = stat.S_IFREG | (0o444 if self._everybody else 0o400), 1
        else:
            mode = stat.S_IFDIR | (0o555 if self._everybody else 0o500)
            links = 2 + sum(one.is_folder for one in node.children.values())
        return Attributes(node.number, node.size, mode, links, os.getuid(), os.getgid(), self._time)

    def _lookup(self, request: Request) -> list[bytes | memoryview]:
        _, children = self._folder(request)
        name = bytes(request.body).partition(b"\0")[0]
        found = children.get(os.fsdecode(name))
        return [
            protocol.missing_answer()
            if found is None
            else protocol.entry_answer(self._attributes(found))
        ]

    def _getattr(self, request: Request) -> list[bytes | memoryview]:
        return [protocol.attributes_answer(self._attributes(self._node(request)))]

    def _open(self, request: Request) -> list[bytes | memoryview]:
        node = self._node(request)
        if node.is_folder:
            raise _Failure(errno.EISDIR)
        node.content()
        with self._lock:
            self._opened[node.number] += 1
            self._seen.add(node.number)
        return [protocol.open_answer(protocol.KEEP_CACHE if self._page_cache else protocol.DIRECT_IO)]

    def _release(self, number: int) -> None:
        with self._lock:
            self._opened[number] -= 1
            if self._opened[number] > 0:
                return
            del self._opened[number]
            self._next.pop(number, None)
        self._cache.drop(number)
        self.release_memory(number)
        if not self._page_cache:
            # A private mapping has filled it all the same.
            self._invalidate(number)

    def release_memory(self, number: int) -> None:
        """Give up the buffers of a file, unless somebody has it open."""
        with self._lock:
            if self._opened[number]:
                return
        self._tree.numbered(number).content().release_memory()

    def store(self, number: int, offset: int, data: memoryview) -> None:
        """Have the kernel keep a part of a file that nobody has asked for.

        Raises:
            OSError: it does not know the file, or the connection has ended.
        """
        if self._closing.is_set():
            raise OSError(errno.ECONNABORTED, "what is shown is being taken away")
        self._seen.add(number)
        os.writev(self._device, [protocol.store_header(number, offset, len(data)), data])
        if self._closing.is_set():
            self._invalidate(number)  # That may have been done too early.

    def _invalidate(self, number: int) -> None:
        try:
            os.write(self._device, protocol.invalidation(number))
        except OSError as error:
            # ENOENT: the kernel does not know the file any more.
            if error.errno not in {errno.ENOENT, errno.ENOTCONN, *GONE}:
                raise

    def _opendir(self, request: Request) -> list[bytes | memoryview]:
        self._folder(request)
        return [protocol.open_answer(0, folder=True)]

    def _readdir(self, request: Request) -> list[bytes | memoryview]:
        node, children = self._folder(request)
        offset, size = protocol.parse_read(request.body)
        entries = [(".", node), ("..", node), *children.items()]
        answer = bytearray()
        for position, (name, one) in enumerate(entries[offset:], offset + 1):
            entry = protocol.directory_entry(
                one.number, position, os.fsencode(name), folder=one.is_folder
            )
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return [bytes(answer)]

    def _statfs(self, request: Request) -> list[bytes | memoryview]:
        return [protocol.statfs_answer(self._tree.size, len(self._tree))]

    def _nothing(self, request: Request) -> list[bytes | memoryview]:
        return []

    def _read(self, request: Request) -> None:
        """Answer with pieces of blocks, which the kernel copies from where they were decrypted to."""
        self.last_read = time.monotonic()
        blocks: list[Block] = []
        try:
            node = self._node(request)
            offset, size = protocol.parse_read(request.body)
            end = min(offset + size, node.size)
            if self._closing.is_set():
                raise _Failure(errno.EIO)
            parts: list[bytes | memoryview] = []
            at = offset
            while at < end:
                block = self._cache.acquire(node, at)
                blocks.append(block)
                parts.append(block.data[at - block.start : end - block.start])
                at = block.end
            self._answer(request, parts)
        except _Failure as failure:
            self._fail(request, failure.number)
            return
        except Exception as error:
            self.report(request.node, error)
            self._fail(request, errno.EIO)
            return
        finally:
            for block in blocks:
                self._cache.release(block, min(end, block.end) - max(offset, block.start))
                if block.left <= 0 and (shown := self.shown) is not None:
                    shown.add(block.key)
            self.last_read = time.monotonic()
        if self.read_ahead and blocks and blocks[-1].start >= offset:
            self._prefetch(node, blocks[-1])

    def _prefetch(self, node: Node, begun: Block) -> None:
        """Who comes from the block before is copying what was answered, and will want the next one."""
        in_order = self._next.get(node.number) == begun.start
        self._next[node.number] = begun.end
        if in_order and begun.end < node.size:
            self._cache.prefetch(node, begun.end)
        with self._lock:
            if self._opened[node.number]:
                return
        # It was closed since it was answered.
        self._cache.drop(node.number)

    def report(self, number: int, error: Exception) -> None:
        """One line of what is wrong with a file; another one when it is something else, or a minute later."""
        path = printable(self._tree.numbered(number).path)
        if isinstance(error, StrongroomError):
            text = error.message
        else:
            # Its own text may quote what it worked on.
            text = f"this is a bug in strongroom: {type(error).__name__}"
        now = time.monotonic()
        with self._lock:
            said, when = self._said.get(number, ("", 0.0))
            if said == text and now - when < _LOG_AGAIN:
                return
            self._said[number] = text, now
        LOG.error("%s: not readable: %s", path, text)
