"""Fills the kernel's page cache with the files of a mount before anybody reads them."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from typing import Final

from strongroom.errors import StrongroomError
from strongroom.model.memory_room import memory_left
from strongroom.model.payload import FileContent
from strongroom.mount.cache import new_buffer, wipe
from strongroom.mount.server import LOG, Server
from strongroom.mount.tree import Node, Tree

__all__ = ["Preload"]

_PAGE: Final = mmap.PAGESIZE
_BEHIND: Final = 0.01
"""Seconds after a request in which a reader is about to make the next one, and goes first."""
_LOOK_AGAIN: Final = 64 << 20
"""Bytes after which the room is measured anew: 0.3 ms."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_IN_DELETE_SELF: Final = 0x400
# inotify(7)


class Preload:
    """Decrypts every file once, in the order of the tree, and hands it to the kernel unasked.

    Handing over (``FUSE_NOTIFY_STORE``) takes 0.65 s of CPU for 1 GiB. To have the kernel read ahead, or to read
    the files, takes 0.7 to 0.9 s, and has this process, or one more, hold what it serves itself.

    It ends where there is no room: what the kernel takes back at once is worth nothing. Who reads goes
    first. Files that fail are left to those who read them, after a line in the log.

    The kernel drops what it keeps of a FUSE file together with its name, which goes when memory is short and
    nobody has the file open. A watch (inotify) holds the file, and, unlike a descriptor, does not hinder who
    unmounts.

    Args:
        directory: where the tree is shown.
    """

    def __init__(self, server: Server, tree: Tree, directory: str) -> None:
        self._server = server
        self._tree = tree
        self._directory = directory
        self._stop = threading.Event()
        self._done = 0
        self._room = memory_left()
        self._looked = 0
        self._watches = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="strongroom-preload", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._server.shown = set()
        self._thread.start()

    def stop(self) -> None:
        """Hand over nothing more; what is being read is not waited for."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Wait for the end; whether that came. Until then the thread may use the device."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        if self._watches >= 0:
            os.close(self._watches)
            self._watches = -1
        return True

    def _run(self) -> None:
        start = time.monotonic()
        try:
            files = [node for node in self._tree if not node.is_folder]
            complete = sum(map(self._file, files)) == len(files)
        except Exception as error:  # the mount goes on without
            # Its own text may quote what it worked on.
            LOG.error("preloading ended: this is a bug in strongroom: %s", type(error).__name__)
            return
        finally:
            self._server.shown = None
        if not self._stop.is_set():
            rest = "" if complete else "; the rest is decrypted when it is read"
            said = (self._directory, self._done, self._tree.size, time.monotonic() - start, rest)
            LOG.info("%s: preloaded, %d of %d bytes in %.1f s%s", *said)

    def _file(self, node: Node) -> bool:
        """Whether the kernel has all of a file then, as far as can be known."""
        if self._stop.is_set() or self._room <= self._done:
            return False
        try:
            # The kernel takes what belongs to files that it knows.
            path = os.path.join(self._directory, node.path)
            if _LIBC.inotify_add_watch(self._watches, os.fsencode(path), _IN_DELETE_SELF) < 0:
                os.stat(path)  # There may be no more watches.
            return self._pieces(node, node.content())
        except StrongroomError as error:
            self._server.report(node.number, error)
        except OSError:  # It was unmounted, or the kernel has no memory.
            pass
        return False

    def _pieces(self, node: Node, content: FileContent) -> bool:
        buffer = new_buffer(_PAGE + min(content.at_once, node.size))
        start = kept = 0
        try:
            while start < node.size:
                end = content.span(start)[1]
                if (node.number, start) in (self._server.shown or ()):
                    self._done += end - start
                    start, kept = end, 0
                    continue
                while end < node.size and (more := content.span(end)[1]) - start <= content.at_once:
                    end = more
                if not self._may_go_on(end - start):
                    return False
                content.read_into(buffer[_PAGE : _PAGE + end - start], start)
                # The kernel keeps whole pages, and pieces end within one: its beginning waits for the next
                # piece. What a reader has read before was whole pages.
                first = start - kept if kept else -(-start // _PAGE) * _PAGE
                last = end if end == node.size else end // _PAGE * _PAGE
                if first < last:
                    self._server.store(
                        node.number, first, buffer[_PAGE + first - start : _PAGE + last - start]
                    )
                self._done += end - start
                kept = end - last
                buffer[_PAGE - kept : _PAGE] = buffer[_PAGE + last - start : _PAGE + end - start]
                start = end
            return True
        finally:
            wipe(buffer)
            self._server.release_memory(node.number)

    def _may_go_on(self, size: int) -> bool:
        """Wait for those who read; whether there is room for more, and nobody wants this to end."""
        while time.monotonic() - self._server.last_read < _BEHIND:
            if self._stop.wait(_BEHIND):
                return False
        if self._done - self._looked >= _LOOK_AGAIN:
            self._room, self._looked = memory_left(), self._done
        return self._done + size <= self._room and not self._stop.is_set()
