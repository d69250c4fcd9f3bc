"""A file system in user space, by the kernel's FUSE protocol: what cannot be had of the kernel here.

The protocol is that of include/uapi/linux/fuse.h, as far as a directory of files needs it. The files are
opened past the page cache, so that every read and write of a program arrives here as one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
import traceback
from pathlib import Path

import pytest

_HEADER = struct.Struct("<IIQQIIII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _UNLINK, _RMDIR = 1, 2, 3, 4, 9, 10, 11
_OPEN, _READ, _WRITE, _RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR = 14, 15, 16, 18, 25, 26, 27, 28
_RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET = 29, 36, 38, 42
_DIRECT_IO = 1
_DETACH = 2


class Node:
    """A directory or a file; ``content`` is called for each read of a file from its beginning."""

    def __init__(self, number: int, parent: Node | None, name: str, content=None) -> None:
        self.number, self.parent, self.name, self.content = number, parent, name, content
        self.children: dict[str, Node] = {}

    @property
    def mode(self) -> int:
        return stat.S_IFDIR | 0o755 if self.content is None else stat.S_IFREG | 0o600


class FuseTree:
    """Mounted at a directory while it is used as a context manager.

    ``mkdir``, ``rmdir`` and ``closed`` are what a subclass does there; each may raise OSError.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = Node(1, None, "")
        self.nodes = {1: self.root}
        self.writes: list[tuple[str, bytes]] = []
        self._opened: dict[int, tuple[Node, list[bytes], bytes | None]] = {}

    def mkdir(self, node: Node) -> None:
        """A directory is made; its files are to be added."""

    def rmdir(self, node: Node) -> None:
        """A directory is removed."""

    def closed(self, node: Node, written: bytes) -> None:
        """A file that was written to is closed."""

    def add(self, parent: Node, name: str, content=None) -> Node:
        node = Node(max(self.nodes) + 1, parent, name, content)
        self.nodes[node.number] = parent.children[name] = node
        return node

    def __enter__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"/dev/fuse cannot be opened: {error}")
        options = (
            f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        )
        if self._libc.mount(b"fake", bytes(self.place), b"fuse", 6, options.encode()) != 0:
            os.close(self._device)
            pytest.skip(f"file systems cannot be mounted: {os.strerror(ctypes.get_errno())}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._libc.umount2(bytes(self.place), _DETACH)
        self._thread.join(10)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                return
            _, code, unique, number, *_ = _HEADER.unpack_from(message)
            if code in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            try:
                answer, status = self._answer(code, self.nodes.get(number), message[40:]), 0
            except OSError as error:
                answer, status = b"", -(error.errno or errno.EIO)
            except Exception:
                # A program would wait for ever for the answer of a thread that has ended.
                traceback.print_exc()
                answer, status = b"", -errno.EIO
            reply = struct.pack("<IiQ", 16 + len(answer), status, unique) + answer
            try:
                os.write(self._device, reply)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    return

    def _answer(self, code: int, node: Node | None, body: bytes) -> bytes:
        if code == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 10, 1 << 17, 1, 32, 0, 0)
        if code == _DESTROY:
            return b""
        if code in (_READ, _WRITE, _RELEASE, _FLUSH):
            return self._of_a_file(code, body)
        if node is None:
            raise OSError(errno.ESTALE, "")
        if code == _LOOKUP:
            return self._entry(self._child(node, body.rstrip(b"\x00").decode()))
        if code in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if code == _MKDIR:
            made = self.add(node, body[8:].rstrip(b"\x00").decode())
            try:
                self.mkdir(made)
            except OSError:
                self._drop(made)
                raise
            return self._entry(made)
        if code == _RMDIR:
            child = self._child(node, body.rstrip(b"\x00").decode())
            self.rmdir(child)
            self._drop(child)
            return b""
        if code == _UNLINK:
            # Files of configfs are the kernel's.
            raise OSError(errno.EPERM, "")
        if code in (_OPEN, _OPENDIR):
            return self._open(node)
        if code == _READDIR:
            return b""
        if code == _RELEASEDIR:
            return b""
        raise OSError(errno.ENOSYS, "")

    def _child(self, node: Node, name: str) -> Node:
        if name not in node.children:
            raise OSError(errno.ENOENT, "")
        return node.children[name]

    def _drop(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.name]
        for child in (*node.children.values(), node):
            self.nodes.pop(child.number, None)

    def _open(self, node: Node) -> bytes:
        handle = max(self._opened, default=0) + 1
        self._opened[handle] = (node, [], None)
        return struct.pack("<QIi", handle, _DIRECT_IO, 0)

    def _of_a_file(self, code: int, body: bytes) -> bytes:
        (handle,) = struct.unpack_from("<Q", body)
        node, written, content = self._opened[handle]
        if code == _READ:
            offset, size = struct.unpack_from("<QI", body, 8)
            if content is None:
                content = node.content()
                self._opened[handle] = (node, written, content)
            return content[offset : offset + size]
        if code == _WRITE:
            (size,) = struct.unpack_from("<I", body, 16)
            data = body[40 : 40 + size]
            self.writes.append((node.name, data))
            written.append(data)
            return struct.pack("<II", size, 0)
        if code == _FLUSH and written:
            self._opened[handle] = (node, [], content)
            self.closed(node, b"".join(written))
        if code == _RELEASE:
            del self._opened[handle]
        return b""

    def _entry(self, node: Node) -> bytes:
        return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: Node) -> bytes:
        numbers = (node.mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)
        return struct.pack("<QQQQQQIII", node.number, 0, 0, 0, 0, 0, 0, 0, 0) + struct.pack(
            "<IIIIIII", *numbers
        )
