"""Gramine's encrypted files read: from front to back in one pass, or anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from strongroom.compat.gramine_cipher import GroupDecryptor, open_node
from strongroom.compat.gramine_nodes import (
    CHILDREN,
    DATA_NODES,
    ENTRY,
    GROUP,
    HEAD,
    NODE,
    Metadata,
    data_count,
    has_children,
    key_nodes,
    node_count,
    pending_write,
    physical,
)
from strongroom.compat.gramine_recovery import RecoveredSource
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError
from strongroom.model.parallel import in_order
from strongroom.model.payload import Progress
from strongroom.model.storage import LocalSource, Source

__all__ = ["GramineFile", "GroupReader", "Nodes"]

_BELOW: Final = DATA_NODES * ENTRY
"""Where the entries of the MHT nodes below begin in an MHT node."""

_GROUP_NODES: Final = 1 + DATA_NODES
_KEPT: Final = 8
"""Decryptors that wait for the next call, of 0.8 MiB each."""


class Nodes(Protocol):
    """What nodes are read from."""

    @property
    def name(self) -> str: ...

    def read_into(self, offset: int, out: memoryview) -> None: ...


class GroupReader:
    """The groups of a file whose root is known; every node is authenticated from there.

    Of the MHT nodes that were seen the entries of those below are kept: 1 KiB for 12 MiB of file.
    That is what makes one pass enough, and any place to be found with hardly a further read.
    Safe to use from several threads.
    """

    def __init__(self, nodes: Nodes, root: bytes, size: int) -> None:
        self.count = key_nodes(size)
        self.size = size
        self.root = root
        self._nodes = nodes
        self._below: dict[int, bytes] = {}
        self._last: tuple[int, bytes] = -1, b""

    def tampered(self, what: str) -> ForeignTampered:
        return ForeignTampered(
            f"{self._nodes.name}: {what} does not authenticate.",
            hint="The file was changed, or was not written to its end; fetch it again.",
        )

    def _entry(self, number: int) -> bytes:
        """Key and tag of an MHT node, from the one above."""
        if number == 0:
            return self.root
        above, slot = divmod(number - 1, CHILDREN)
        if above not in self._below:
            self.keys(above)
        return self._below[above][slot * ENTRY : (slot + 1) * ENTRY]

    def open_keys(self, number: int, node: memoryview | bytes) -> bytes:
        """Decrypt an MHT node."""
        keys = open_node(self._entry(number), node)
        if keys is None:
            raise self.tampered(f"MHT node {number}")
        if has_children(number, self.count):
            self._below[number] = keys[_BELOW:]
        self._last = number, keys
        return keys

    def keys(self, number: int) -> bytes:
        """The plaintext of an MHT node."""
        last, keys = self._last
        if last == number:
            return keys
        node = memoryview(bytearray(NODE))
        self._nodes.read_into(physical(number) * NODE, node)
        return self.open_keys(number, node)

    def span(self, number: int) -> tuple[int, int]:
        """The plaintext of a group: from where to where in the file."""
        start = HEAD + number * GROUP
        return start, min(start + GROUP, self.size)

    def ciphertext_size(self, number: int) -> int:
        """Bytes of the MHT node and the data nodes of a group."""
        nodes = data_count(self.size) - number * DATA_NODES
        return (1 + min(nodes, DATA_NODES)) * NODE

    def read(self, number: int, decryptor: GroupDecryptor) -> None:
        """Read a whole group and decrypt it to ``decryptor.plaintext``."""
        nodes = decryptor.nodes[: self.ciphertext_size(number)]
        self._nodes.read_into(physical(number) * NODE, nodes)
        self.decrypt(number, decryptor)

    def decrypt(self, number: int, decryptor: GroupDecryptor) -> None:
        """Decrypt a group that is in ``decryptor.nodes``."""
        keys = self.open_keys(number, decryptor.nodes[:NODE])
        self._open(number, keys, decryptor, 0, self.ciphertext_size(number) // NODE - 2)

    def read_part(self, number: int, decryptor: GroupDecryptor, first: int, last: int) -> None:
        """Read and decrypt the data nodes ``first`` … ``last`` of a group."""
        keys = self.keys(number)
        part = decryptor.nodes[(1 + first) * NODE : (2 + last) * NODE]
        self._nodes.read_into((physical(number) + 1 + first) * NODE, part)
        self._open(number, keys, decryptor, first, last)

    def _open(self, number: int, keys: bytes, decryptor: GroupDecryptor, first: int, last: int) -> None:
        if not decryptor.open(keys, first, last):
            start = number * DATA_NODES
            raise self.tampered(f"one of the data nodes {start + first} to {start + last}")


class GramineFile:
    """An encrypted file of Gramine, open for reading; a :class:`strongroom.model.payload.Content`.

    Nothing is handed out before it has been authenticated. Safe to use from several threads.

    Args:
        source: the file; closed by :meth:`close`.
        wrap_key: 16 bytes.
        path: that the file must be bound to, normalised, or None for any.
        recovery: gives the recovery log when the file says that it needs it; None if there is none.

    Attributes:
        size: bytes of plaintext.
        path: that the file is bound to.
        version: 1 or 2.

    Raises:
        FormatError: it is no such file, or needs a recovery log that is not there.
        ForeignTampered: it does not authenticate, is cut short, or is bound to another path.
    """

    def __init__(
        self,
        source: Source,
        wrap_key: SecretBytes,
        path: bytes | None = None,
        recovery: Callable[[], Source | None] | None = None,
    ) -> None:
        node = _first_node(source)
        if pending_write(node):
            log = recovery() if recovery else None
            if log is None:
                raise FormatError(
                    f"{source.name} was being written to when that was interrupted.",
                    hint="Its recovery log has to lie beside it, in a local directory.",
                )
            source = RecoveredSource(source, log)
            node = _first_node(source)
            if pending_write(node):
                raise FormatError(f"{log.name} does not bring {source.name} to an end.")
        metadata, self.version = Metadata.open(node, wrap_key, source.name)
        self.path, self.size = metadata.path, metadata.size
        if path is not None and path != self.path:
            raise ForeignTampered(
                f"{source.name} is bound to the path {_shown(self.path)}, not to {_shown(path)}.",
                hint="It was moved there, or path= is not what Gramine's manifest says.",
            )
        # Longer is legal: Gramine's tool does not cut the file that it overwrites.
        if node_count(self.size) > source.size // NODE:
            raise ForeignTampered(
                f"{source.name} is cut short: of {node_count(self.size)} nodes it has "
                f"{source.size // NODE}.",
                hint="Fetch it again.",
            )
        self.head = metadata.head[: min(self.size, HEAD)]
        self.source = source
        self.groups = GroupReader(source, metadata.root, self.size)
        self._lock = threading.Lock()
        self._free: list[GroupDecryptor] = []

    @contextmanager
    def _decryptor(self) -> Iterator[GroupDecryptor]:
        with self._lock:
            decryptor = self._free.pop() if self._free else None
        decryptor = decryptor or GroupDecryptor()
        try:
            yield decryptor
        finally:
            with self._lock:
                if len(self._free) < _KEPT:
                    self._free.append(decryptor)

    def read_into(self, out: memoryview, offset: int = 0, progress: Progress | None = None) -> int:
        """Fill ``out`` from ``offset`` and return how many bytes that were (fewer at the end)."""
        end = min(offset + len(out), self.size)
        at = offset
        while at < end:
            if at < HEAD:
                part = self.head[at : min(end, HEAD)]
                out[at - offset : at - offset + len(part)] = part
                count = len(part)
            else:
                count = self._part(at, end, out[at - offset :])
            at += count
            if progress:
                progress(count)
        return max(0, at - offset)

    def _part(self, start: int, end: int, out: memoryview) -> int:
        """Copy what of ``start`` … ``end`` lies in the group at ``start``; how many bytes that was."""
        number, inside = divmod(start - HEAD, GROUP)
        stop = min(inside + end - start, GROUP)
        with self._decryptor() as decryptor:
            self.groups.read_part(number, decryptor, inside // NODE, (stop - 1) // NODE)
            out[: stop - inside] = decryptor.plaintext[inside:stop]
        return stop - inside

    def copy_to(self, write: Callable[[memoryview], object], progress: Progress | None = None) -> None:
        """Hand all of it to ``write``, in order. A piece is valid until ``write`` returns."""

        def hand_out(piece: memoryview) -> None:
            write(piece)
            if progress:
                progress(len(piece))

        if self.size:
            hand_out(memoryview(self.head))
        if isinstance(self.source, LocalSource):
            self._copy_local(hand_out)
        else:
            self._copy_ahead(hand_out)

    def _copy_local(self, write: Callable[[memoryview], None]) -> None:
        with self._decryptor() as decryptor:
            for number in range(self.groups.count):
                self.groups.read(number, decryptor)
                self._hand_out(number, decryptor, write)

    def _hand_out(
        self, number: int, decryptor: GroupDecryptor, write: Callable[[memoryview], None]
    ) -> None:
        start, end = self.groups.span(number)
        write(decryptor.plaintext[: end - start])

    def _copy_ahead(self, write: Callable[[memoryview], None]) -> None:
        """Requests of several groups, some of them under way at once."""
        groups, source = self.groups, self.source
        each = max(1, source.request // (_GROUP_NODES * NODE))
        end = node_count(self.size) * NODE
        number = 0

        def produce(request: int, out: memoryview) -> int:
            start = physical(request * each) * NODE
            part = out[: min(len(out), end - start)]
            source.read_into(start, part)
            return len(part)

        with self._decryptor() as decryptor:

            def consume(part: memoryview) -> None:
                nonlocal number
                while part:
                    size = groups.ciphertext_size(number)
                    decryptor.nodes[:size] = part[:size]
                    groups.decrypt(number, decryptor)
                    self._hand_out(number, decryptor, write)
                    part = part[size:]
                    number += 1

            count = -(-groups.count // each)
            in_order(count, min(each * _GROUP_NODES * NODE, end), produce, consume, source.threads)

    def check(self, progress: Progress | None = None) -> None:
        """Authenticate all of it."""
        self.copy_to(lambda piece: None, progress)

    def close(self) -> None:
        with self._lock:
            self._free.clear()
        self.source.close()


def _first_node(source: Source) -> bytes:
    if source.size == 0 or source.size % NODE:
        raise FormatError(
            f"{source.name} is not an encrypted file of Gramine, or is cut short: it has "
            f"{source.size} bytes.",
            hint=f"Such a file has a multiple of {NODE} bytes.",
        )
    node = memoryview(bytearray(NODE))
    source.read_into(0, node)
    return bytes(node)


def _shown(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))
