"""Gramine's encrypted files written: in one pass where the output is a local file, else in two.

An MHT node lies before what it has the tags of. A local file is written out of order; anything else
gets its bytes in order, and so all is encrypted twice, the first time for the tags alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from strongroom.compat.gramine_cipher import GroupEncryptor, NodeKeys, seal_node
from strongroom.compat.gramine_nodes import (
    CHILDREN,
    DATA_NODES,
    ENTRY,
    GROUP,
    HEAD,
    KEY,
    NODE,
    TAG,
    Metadata,
    has_children,
    key_nodes,
    physical,
)
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import SourceChanged
from strongroom.model.output import FileDescriptorOutput, Output
from strongroom.model.payload import Content

__all__ = ["Groups", "Place", "Tree", "encrypt_group", "place_of", "write_at", "write_gramine"]

_SEED: Final = 32
_NONCE: Final = 32

Place = Callable[[int, memoryview], None]
"""Puts bytes at an offset of the output."""


def entries(keys: list[bytes], tags: bytes) -> bytes:
    """Keys and tags as an MHT node has them."""
    return b"".join(
        part for at, key in enumerate(keys) for part in (key, tags[at * TAG : (at + 1) * TAG])
    )


def encrypt_group(
    encryptor: GroupEncryptor, keys: list[bytes], size: int, leaf: bool
) -> tuple[memoryview, bytes]:
    """Encrypt a group.

    Args:
        encryptor: has the plaintext.
        keys: 97.
        size: bytes of plaintext.
        leaf: no MHT nodes lie below its MHT node, so that this can be encrypted at once.

    Returns:
        What to write: the data nodes, after the MHT node if that is a leaf, and the tag of the MHT
        node of a leaf, else the tags of the data nodes.
    """
    tags = encryptor.seal(keys[1:], size)
    count = len(tags) // TAG
    if not leaf:
        return encryptor.nodes[NODE : (1 + count) * NODE], tags
    node, tag = seal_node(keys[0], entries(keys[1 : 1 + count], tags).ljust(NODE, b"\0"))
    encryptor.nodes[:NODE] = node
    return encryptor.nodes[: (1 + count) * NODE], tag


class Tree:
    """The MHT nodes of a file of which the data nodes have been encrypted.

    Memory: 16 bytes a group, and 1.5 KiB for one in 32 of them.
    """

    def __init__(self, size: int, keys: NodeKeys) -> None:
        self.count = key_nodes(size)
        self._keys = keys
        self._tags = bytearray(TAG * self.count)
        self._data: dict[int, bytes] = {}

    def is_leaf(self, number: int) -> bool:
        return not has_children(number, self.count)

    def add(self, number: int, tags: bytes) -> None:
        """Take what :func:`encrypt_group` gave for a group."""
        if self.is_leaf(number):
            self._tags[number * TAG : (number + 1) * TAG] = tags
        else:
            self._data[number] = tags

    def has(self, number: int, tags: bytes) -> bool:
        """Whether a group was added with these tags."""
        if self.is_leaf(number):
            return self._tags[number * TAG : (number + 1) * TAG] == tags
        return self._data[number] == tags

    def finish(self, place: Callable[[int, bytes], None]) -> bytes:
        """Encrypt the MHT nodes that are no leaves, those below first; returns the root's entry.

        Args:
            place: gets the number and the ciphertext of each.
        """
        if not self.count:
            return bytes(ENTRY)
        for number in sorted(self._data, reverse=True):
            keys = self._keys.of_group(number)
            node = bytearray(NODE)
            data = entries(keys[1:], self._data[number])
            node[: len(data)] = data
            at = DATA_NODES * ENTRY
            first = CHILDREN * number + 1
            for below in range(first, min(first + CHILDREN, self.count)):
                node[at : at + KEY] = self._keys.of_group(below)[0]
                node[at + KEY : at + ENTRY] = self._tags[below * TAG : (below + 1) * TAG]
                at += ENTRY
            sealed, tag = seal_node(keys[0], bytes(node))
            self._tags[number * TAG : (number + 1) * TAG] = tag
            place(number, sealed)
        return self._keys.of_group(0)[0] + bytes(self._tags[:TAG])


class Groups:
    """Cuts plaintext that comes in pieces of any size into groups.

    Args:
        size: of all the plaintext.
        buffer: gives the memory for the group of a number.
        full: gets the number and the size of each group that lies complete in its memory.

    Attributes:
        head: the first 3072 bytes, zeros behind the end of a shorter file.
    """

    def __init__(
        self,
        size: int,
        buffer: Callable[[int], memoryview],
        full: Callable[[int, int], None],
    ) -> None:
        self.head = bytearray(HEAD)
        self._size = size
        self._buffer = buffer
        self._full = full
        self._at = 0

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data).cast("B")
        if self._at + len(view) > self._size:
            raise _changed()
        while view:
            if self._at < HEAD:
                part = view[: HEAD - self._at]
                self.head[self._at : self._at + len(part)] = part
            else:
                number, inside = divmod(self._at - HEAD, GROUP)
                part = view[: GROUP - inside]
                end = inside + len(part)
                self._buffer(number)[inside:end] = part
                if end == GROUP or self._at + len(part) == self._size:
                    self._full(number, end)
            self._at += len(part)
            view = view[len(part) :]

    def finish(self) -> None:
        """To be called when all has been written."""
        if self._at != self._size:
            raise _changed()


def _changed() -> SourceChanged:
    return SourceChanged("The content has changed while it was written.", hint="Write it again.")


def write_gramine(
    content: Content, output: Output, wrap_key: SecretBytes, path: bytes, version: int, processes: int
) -> None:
    """Write a file.

    Args:
        path: that it is bound to, normalised.
        version: 1 or 2.
        processes: how many encrypt; 1 is this one alone.
    """
    seed = SecretBytes.random(_SEED)
    keys = NodeKeys(seed)
    metadata = _seal_metadata(content.size, wrap_key, path, version)
    if not isinstance(output, FileDescriptorOutput):
        _in_order(content, output, keys, metadata)
        return
    descriptor = output.descriptor
    tree = Tree(content.size, keys)
    if processes > 1:
        from strongroom.compat.gramine_parallel import encrypt_groups

        head = encrypt_groups(content, descriptor, seed, tree, processes)
    else:
        head = _out_of_order(content, _placer(descriptor), keys, tree)
    root = tree.finish(lambda number, node: write_at(descriptor, physical(number) * NODE, node))
    write_at(descriptor, 0, metadata(root, head))


def _seal_metadata(
    size: int, wrap_key: SecretBytes, path: bytes, version: int
) -> Callable[[bytes, bytes], bytes]:
    def seal(root: bytes, head: bytes) -> bytes:
        return Metadata(path, size, root, head).seal(wrap_key, version, os.urandom(_NONCE))

    return seal


def write_at(descriptor: int, offset: int, data: memoryview | bytes) -> None:
    """All of ``data``, at ``offset`` of a file."""
    data = memoryview(data)
    while data:
        count = os.pwrite(descriptor, data, offset)
        offset += count
        data = data[count:]


def _placer(descriptor: int) -> Place:
    return lambda offset, data: write_at(descriptor, offset, data)


def place_of(number: int, leaf: bool) -> int:
    """Where in the file that begins which :func:`encrypt_group` gives."""
    return (physical(number) + (0 if leaf else 1)) * NODE


def _out_of_order(content: Content, place: Place, keys: NodeKeys, tree: Tree) -> bytes:
    """All groups, each put where it belongs; returns the head."""
    encryptor = GroupEncryptor()

    def full(number: int, size: int) -> None:
        leaf = tree.is_leaf(number)
        nodes, tags = encrypt_group(encryptor, keys.of_group(number), size, leaf)
        tree.add(number, tags)
        place(place_of(number, leaf), nodes)

    groups = Groups(content.size, lambda number: encryptor.plaintext, full)
    content.copy_to(groups.write)
    groups.finish()
    return bytes(groups.head)


def _in_order(
    content: Content, output: Output, keys: NodeKeys, metadata: Callable[[bytes, bytes], bytes]
) -> None:
    tree = Tree(content.size, keys)
    head = _out_of_order(content, lambda offset, data: None, keys, tree)
    inner: dict[int, bytes] = {}
    root = tree.finish(inner.__setitem__)
    output.write(metadata(root, head))
    encryptor = GroupEncryptor()

    def full(number: int, size: int) -> None:
        nodes, tags = encrypt_group(encryptor, keys.of_group(number), size, tree.is_leaf(number))
        # Other plaintext under the same keys must not leave this place.
        if not tree.has(number, tags):
            raise _changed()
        if number in inner:
            output.write(inner.pop(number))
        output.write(nodes)

    groups = Groups(content.size, lambda number: encryptor.plaintext, full)
    content.copy_to(groups.write)
    groups.finish()
