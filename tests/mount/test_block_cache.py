"""What a mount keeps of plaintext for a moment: decrypted once for all who ask, bounded, and wiped."""

import threading

import pytest

from strongroom.errors import StorageError
from strongroom.mount.cache import BlockCache

PIECE = 64 << 10
TIMEOUT = 120


class Numbered:
    """A file of pieces, each full of one byte, as node and content in one; ``fail`` is raised by who reads."""

    def __init__(self, number=1, piece=PIECE, pieces=8):
        self.number, self.piece, self.size = number, piece, piece * pieces
        self.fail, self.read = None, []
        self.go_on = threading.Event()
        self.go_on.set()

    def content(self):
        return self

    def span(self, offset):
        start = offset // self.piece * self.piece
        return start, start + self.piece

    def read_into(self, out, offset):
        self.read.append(offset)
        assert self.go_on.wait(TIMEOUT)
        if self.fail:
            raise self.fail
        out[:] = bytes([self.number + offset // self.piece]) * len(out)


def test_read_once_and_kept():
    node, cache = Numbered(), BlockCache()
    for _ in range(2):
        block = cache.acquire(node, PIECE + 5)
        assert (block.start, block.end, bytes(block.data)) == (PIECE, 2 * PIECE, b"\2" * PIECE)
        cache.release(block)
    cache.prefetch(node, PIECE)
    cache.prefetch(node, 0)
    cache.release(cache.acquire(node, 0))
    assert node.read == [PIECE, 0]
    assert cache.size == 2 * PIECE


def test_what_is_dropped_while_it_is_read_is_wiped_afterwards():
    node, other, cache = Numbered(), Numbered(2), BlockCache()
    block, kept = cache.acquire(node, 0), cache.acquire(other, 0)
    again = cache.acquire(node, 0)
    cache.release(kept)
    cache.drop(node.number)
    assert bytes(block.data) == b"\1" * PIECE
    cache.release(again)
    assert bytes(block.data) == b"\1" * PIECE
    cache.release(block)
    assert not any(block.buffer)
    assert cache.size == PIECE
    assert any(kept.buffer)
    cache.drop()
    assert not any(kept.buffer)
    assert cache.size == 0


def test_a_failure_is_told_to_all_who_wait_and_tried_again():
    node, cache, told = Numbered(), BlockCache(), []

    def ask():
        with pytest.raises(StorageError, match="away") as caught:
            cache.acquire(node, 0)
        told.append(caught.value)

    node.go_on.clear()
    node.fail = StorageError("It is away.")
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    node.go_on.set()
    for one in threads:
        one.join(TIMEOUT)
    assert len({id(one) for one in told} | {id(node.fail)}) == 5
    assert cache.size == 0
    node.fail = None
    block = cache.acquire(node, 0)
    assert bytes(block.data) == b"\1" * PIECE
    cache.release(block)


def test_one_who_reads_ahead_is_not_told():
    node, cache = Numbered(), BlockCache()
    node.fail = StorageError("It is away.")
    cache.prefetch(node, 0)
    assert cache.size == 0


def test_the_bound_holds_for_what_is_not_in_use():
    node, cache = Numbered(pieces=20), BlockCache(4 * PIECE)
    used = [cache.acquire(node, number * PIECE) for number in range(6)]
    assert cache.size == 6 * PIECE
    for number, block in enumerate(used, 1):
        assert bytes(block.data) == bytes([number]) * PIECE
        cache.release(block)
    # What was used longest ago makes room; a buffer of the same size is used again, and holds the new alone.
    block = cache.acquire(node, 10 * PIECE)
    assert block.buffer is used[0].buffer
    assert bytes(block.data) == b"\x0b" * PIECE
    cache.release(block)
    # One of another size does not fit: buffers are wiped and given back until the bound holds.
    large = Numbered(100, piece=3 * PIECE)
    block = cache.acquire(large, 0)
    assert cache.size == 4 * PIECE
    assert [any(one.buffer) for one in used[1:]] == [False] * 5
    cache.release(block)


def test_what_was_read_to_its_end_makes_room_first():
    node, cache = Numbered(), BlockCache()
    first = cache.acquire(node, 0)
    cache.release(first, PIECE - 1)
    second = cache.acquire(node, PIECE)
    cache.release(second, PIECE)
    third = cache.acquire(node, 2 * PIECE)
    assert third.buffer is second.buffer
    cache.release(cache.acquire(node, 0), 1)
    assert cache.acquire(node, 3 * PIECE).buffer is first.buffer
    assert node.read == [0, PIECE, 2 * PIECE, 3 * PIECE]


def test_a_block_that_is_read_again_at_its_end_is_not_taken_from_its_reader():
    node, cache = Numbered(), BlockCache()
    cache.release(cache.acquire(node, 0), PIECE)
    reader = cache.acquire(node, 0)
    other = cache.acquire(node, PIECE)
    assert other.buffer is not reader.buffer
    assert bytes(reader.data) == b"\1" * PIECE


def test_what_was_used_last_is_kept():
    node, cache = Numbered(), BlockCache(2 * PIECE)
    for number in (0, 1, 0, 2, 0):
        cache.release(cache.acquire(node, number * PIECE))
    assert node.read == [0, PIECE, 2 * PIECE]


def test_a_buffer_is_used_for_blocks_of_its_size():
    node, large, small, cache = Numbered(), Numbered(2, 2 * PIECE), Numbered(3, 1000), BlockCache()
    cache.release(cache.acquire(node, 0), PIECE)
    block = cache.acquire(large, 0)
    assert bytes(block.data) == b"\2" * 2 * PIECE
    assert cache.size == 3 * PIECE
    # Buffers are multiples of the same: a small block takes one, and is used again for another.
    cache.release(cache.acquire(node, PIECE), PIECE)
    assert bytes(cache.acquire(small, 500).data) == b"\3" * 1000
    assert cache.size == 3 * PIECE + PIECE


def test_what_was_dropped_after_it_was_read_is_not_used_again():
    node, cache = Numbered(), BlockCache()
    cache.release(cache.acquire(node, 0), PIECE)
    cache.drop()
    block = cache.acquire(node, PIECE)
    assert bytes(block.data) == b"\2" * PIECE
    assert cache.size == PIECE
