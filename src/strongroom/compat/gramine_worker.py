"""A process that decrypts or encrypts groups of one Gramine file for :mod:`.gramine_parallel`.

It is a fresh interpreter, not a fork: the program may have threads. What it works on is in memory shared
with the program that started it; what it needs of keys comes through a pipe. Reading, that is the key
and tag of the root of this one file, so that every process reads the same file whatever happens to it;
writing, the seed of the node keys. Neither is the wrap key.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import IO, Final

from strongroom.compat.gramine_cipher import GroupDecryptor, GroupEncryptor, NodeKeys
from strongroom.compat.gramine_nodes import ENTRY, GROUP, has_children, key_nodes
from strongroom.compat.gramine_reader import GroupReader
from strongroom.compat.gramine_writer import encrypt_group, place_of, write_at
from strongroom.crypto.secret import SecretBytes, keep_out_of_core_dumps
from strongroom.errors import Truncated

__all__ = ["BATCH", "DONE", "FAILED", "READS", "SETUP", "TASK", "WRITES", "main"]

BATCH: Final = 4
"""Groups in one task: 1.5 MiB, a millisecond. A task costs 0.05 ms."""

SETUP: Final = struct.Struct(f"<BiiQ{ENTRY}s")
"""What to do, descriptors of the shared memory and of the file, size of the plaintext, the secret."""

TASK: Final = struct.Struct("<IIQQ")
"""Slot of the shared memory, how many groups, the first of them, their bytes of plaintext."""

READS: Final = 0
WRITES: Final = 1
DONE: Final = b"\0"
FAILED: Final = b"\1"

Task = Callable[[memoryview, int, int, int], bytes]


class _File:
    """What a reader reads nodes from, over an inherited descriptor."""

    name: Final = "the file"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_into(self, offset: int, out: memoryview) -> None:
        while out:
            count = os.preadv(self._descriptor, [out], offset)
            if count == 0:
                raise Truncated("The file ends before its contents do.")
            out = out[count:]
            offset += count


def _reading(file: int, size: int, root: SecretBytes) -> Task:
    groups = GroupReader(_File(file), bytes(root.buffer), size)
    decryptor = GroupDecryptor()

    def read(memory: memoryview, first: int, count: int, size: int) -> bytes:
        for at in range(count):
            decryptor.use(memory[at * GROUP : (at + 1) * GROUP])
            groups.read(first + at, decryptor)
        return b""

    return read


def _writing(file: int, size: int, seed: SecretBytes) -> Task:
    keys = NodeKeys(seed)
    encryptor = GroupEncryptor()
    nodes = key_nodes(size)

    def write(memory: memoryview, first: int, count: int, size: int) -> bytes:
        tags = []
        for at in range(count):
            number = first + at
            leaf = not has_children(number, nodes)
            encryptor.use(memory[at * GROUP : (at + 1) * GROUP])
            part = min(GROUP, size - at * GROUP)
            sealed, tag = encrypt_group(encryptor, keys.of_group(number), part, leaf)
            write_at(file, place_of(number, leaf), sealed)
            tags.append(tag)
        return b"".join(tags)

    return write


def serve(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Do the tasks that come until there are no more. One that fails is left to who gave it."""
    what, shared, file, size, given = SETUP.unpack(tasks.read(SETUP.size))
    memory = memoryview(mmap.mmap(shared, 0))
    work = (_reading if what == READS else _writing)(file, size, SecretBytes.take(given))
    while task := tasks.read(TASK.size):
        slot, count, first, length = TASK.unpack(task)
        start = slot * BATCH * GROUP
        try:
            answer = DONE + work(memory[start : start + BATCH * GROUP], first, count, length)
        except Exception:
            answer = FAILED
        answers.write(answer)
        answers.flush()


def main() -> None:
    """Serve standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program; the input ends then
    keep_out_of_core_dumps()
    serve(sys.stdin.buffer, sys.stdout.buffer)
