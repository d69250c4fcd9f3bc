"""Several processes for one big Gramine file: each decrypts or encrypts groups in shared memory.

Threads do not help: a node of 4 KiB takes 2.4 µs, under the interpreter's lock (one thread 650 MiB/s, two
670, four 570, on two busy cores). The processes are a help and no more: what one of them cannot do is done
here again, and here it fails as it would have without them.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from strongroom.compat.gramine_cipher import GroupDecryptor, GroupEncryptor, NodeKeys
from strongroom.compat.gramine_nodes import GROUP, NODE, TAG, key_nodes
from strongroom.compat.gramine_reader import GroupReader
from strongroom.compat.gramine_worker import BATCH, DONE, FAILED, READS, SETUP, TASK, WRITES
from strongroom.compat.gramine_writer import Groups, Tree, encrypt_group, place_of, write_at
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.model.payload import Content

__all__ = ["decrypt_groups", "encrypt_groups", "process_count"]

_SLOTS: Final = 2
"""Tasks of each process: one under way and one that waits, or is being taken out."""

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline());"
    "from strongroom.compat.gramine_worker import main; main()"
)


_THRESHOLD: Final = 256 << 20
"""Bytes from which processes are used unasked: the 0.1 s that they take to start is half of what one
core needs for these."""

_CORES: Final = 4
"""Processors from which they are used unasked. On two virtual ones, shared with other work, two processes
took 1.2 to 1.6 times the processor time of one and were no faster (benchmarks/gramine.py)."""

_MOST: Final = 8


def process_count(size: int, wanted: int | None = None) -> int:
    """How many processes to use for ``size`` bytes; 1 is this one, without any other.

    Args:
        wanted: by somebody who knows; by default as many as there are processors, for a big file
            where there are at least four.
    """
    if not sys.executable or getattr(sys, "frozen", False) or not hasattr(os, "memfd_create"):
        return 1
    if wanted is None:
        processors = len(os.sched_getaffinity(0))
        worth = size >= _THRESHOLD and processors >= _CORES
        wanted = min(processors, _MOST) if worth else 1
    return max(1, min(wanted, _tasks(key_nodes(size))))


def _tasks(groups: int) -> int:
    return -(-groups // BATCH)


class _Worker:
    """One process. Whatever goes wrong with it, it is then one that answers nothing."""

    def __init__(self, setup: bytes, descriptors: tuple[int, ...]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        # What else may be secret in the environment is none of its business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
        path = [os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))]
        path += [place for place in sys.path if isinstance(place, str)]
        # No site module: it costs 20 ms, and what it found is in sys.path already.
        arguments = [sys.executable, "-I", "-S", "-c", _PROGRAM]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(  # noqa: S603  this interpreter, a constant program
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=environment,
            )
            self._send(json.dumps(path).encode() + b"\n" + setup)

    def _send(self, data: bytes) -> None:
        if self._process and self._process.stdin:
            try:
                self._process.stdin.write(data)
                self._process.stdin.flush()
            except OSError:
                self.stop()

    def give(self, slot: int, first: int, count: int, size: int) -> None:
        self._send(TASK.pack(slot, count, first, size))

    def answer(self, size: int) -> bytes | None:
        """The ``size`` bytes that the oldest task gave, or None if it was not done."""
        if self._process is None or self._process.stdout is None:
            return None
        status = self._process.stdout.read(len(DONE))
        if status == DONE:
            answer = self._process.stdout.read(size)
            if len(answer) == size:
                return answer
        if status != FAILED:
            self.stop()
        return None

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError):
            process.communicate()


class _Pool:
    """Processes and the memory that is shared with them, cut into slots of one task each.

    Task ``n`` is done by process ``n % processes`` in slot ``n % slots``.
    """

    def __init__(self, processes: int, what: int, file: int, size: int, secret: SecretBytes) -> None:
        self.slots = _SLOTS * processes
        length = self.slots * BATCH * GROUP
        descriptor = os.memfd_create("strongroom", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, length)
            memory = mmap.mmap(descriptor, length)
            if hasattr(mmap, "MADV_DONTDUMP"):
                memory.madvise(mmap.MADV_DONTDUMP)
            self._memory = memoryview(memory)
            raw = bytes(secret.buffer)
            setup = SETUP.pack(what, descriptor, file, size, raw)
            self._workers = [_Worker(setup, (descriptor, file)) for _ in range(processes)]
            wipe_bytes(raw)
            wipe_bytes(setup)
        finally:
            os.close(descriptor)

    def memory(self, task: int, at: int) -> memoryview:
        """Where the plaintext of group ``at`` of a task lies."""
        start = (task % self.slots * BATCH + at) * GROUP
        return self._memory[start : start + GROUP]

    def give(self, task: int, count: int, size: int) -> None:
        self._of(task).give(task % self.slots, task * BATCH, count, size)

    def answer(self, task: int, size: int) -> bytes | None:
        return self._of(task).answer(size)

    def _of(self, task: int) -> _Worker:
        return self._workers[task % len(self._workers)]

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()


@contextmanager
def _pool(processes: int, what: int, file: int, size: int, secret: SecretBytes) -> Iterator[_Pool]:
    pool = _Pool(processes, what, file, size, secret)
    try:
        yield pool
    finally:
        pool.stop()


def decrypt_groups(
    groups: GroupReader, file: int, write: Callable[[memoryview], object], processes: int
) -> None:
    """Hand the plaintext of all groups to ``write``, in order.

    Args:
        groups: the same file.
        file: its descriptor.
    """
    tasks = _tasks(groups.count)
    spare = GroupDecryptor()

    def numbers(task: int) -> range:
        return range(task * BATCH, min((task + 1) * BATCH, groups.count))

    with SecretBytes(groups.root) as root, _pool(processes, READS, file, groups.size, root) as pool:
        for task in range(min(tasks, pool.slots)):
            pool.give(task, len(numbers(task)), 0)
        for task in range(tasks):
            done = pool.answer(task, 0) is not None
            for at, number in enumerate(numbers(task)):
                memory = pool.memory(task, at)
                if not done:
                    spare.use(memory)
                    groups.read(number, spare)
                start, end = groups.span(number)
                write(memory[: end - start])
            if task + pool.slots < tasks:
                pool.give(task + pool.slots, len(numbers(task + pool.slots)), 0)


def encrypt_groups(content: Content, file: int, seed: SecretBytes, tree: Tree, processes: int) -> bytes:
    """Encrypt all groups, write them where they belong, and tell ``tree``; returns the first 3072 bytes.

    Args:
        file: descriptor of the output.
        seed: of the node keys.
    """
    with _pool(processes, WRITES, file, content.size, seed) as pool:
        encryption = _Encryption(content.size, file, NodeKeys(seed), tree, pool)
        groups = Groups(content.size, encryption.buffer, encryption.full)
        content.copy_to(groups.write)
        groups.finish()
        encryption.finish()
    return bytes(groups.head)


class _Encryption:
    """Puts plaintext into the slots of a pool, and takes out what became of it."""

    def __init__(self, size: int, file: int, keys: NodeKeys, tree: Tree, pool: _Pool) -> None:
        self._file = file
        self._keys = keys
        self._tree = tree
        self._pool = pool
        self._size = size
        self._begun = 0
        self._collected = 0
        self._sizes: dict[int, list[int]] = {}
        self._spare: GroupEncryptor | None = None

    def buffer(self, number: int) -> memoryview:
        task, at = divmod(number, BATCH)
        if task == self._begun:
            self._begun += 1
            self._sizes[task] = []
            if task >= self._pool.slots:
                self._collect()
        return self._pool.memory(task, at)

    def full(self, number: int, size: int) -> None:
        task, at = divmod(number, BATCH)
        sizes = self._sizes[task]
        sizes.append(size)
        if at == BATCH - 1 or number == self._tree.count - 1:
            self._pool.give(task, len(sizes), sum(sizes))

    def finish(self) -> None:
        while self._collected < self._begun:
            self._collect()

    def _tags(self, number: int, size: int) -> int:
        """How many bytes of tags a group gives."""
        return TAG if self._tree.is_leaf(number) else TAG * -(-size // NODE)

    def _collect(self) -> None:
        task = self._collected
        self._collected += 1
        numbered = list(enumerate(self._sizes.pop(task), task * BATCH))
        answer = self._pool.answer(task, sum(self._tags(*group) for group in numbered))
        for at, (number, size) in enumerate(numbered):
            if answer is None:
                self._tree.add(number, self._encrypt(number, size, self._pool.memory(task, at)))
            else:
                length = self._tags(number, size)
                self._tree.add(number, answer[:length])
                answer = answer[length:]

    def _encrypt(self, number: int, size: int, plaintext: memoryview) -> bytes:
        self._spare = self._spare or GroupEncryptor()
        self._spare.use(plaintext)
        leaf = self._tree.is_leaf(number)
        nodes, tags = encrypt_group(self._spare, self._keys.of_group(number), size, leaf)
        write_at(self._file, place_of(number, leaf), nodes)
        return tags
