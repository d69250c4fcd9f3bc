"""The plaintext of one file of a model, decrypted range by range."""

from __future__ import annotations

import copy
import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag

from strongroom.crypto.segments import TAG_SIZE, SegmentCipher
from strongroom.errors import (
    IntegrityError,
    ManifestMismatch,
    PayloadTampered,
    Truncated,
)
from strongroom.format.layout import Layout, Segment
from strongroom.model.memory import BufferPool, allocate
from strongroom.model.parallel import default_threads, for_each, in_order
from strongroom.model.storage import Source

__all__ = ["ClearContent", "Content", "FileContent", "Progress", "SealedContent", "WriteAt", "explain"]

Progress = Callable[[int], None]
"""Called with the number of bytes just done, from any thread."""


WriteAt = Callable[[int, memoryview], None]
"""Takes an offset in a file and what belongs there."""


_PIECE: Final = 1 << 20
_WRITERS: Final = 2
# A file in memory takes one write at a time, and writing takes longer than decrypting: more threads spin for
# their turn (200 MB on two cores: 76 ms, 89 with four; with an empty page cache 0.16 s and 0.23 s).


class Content(Protocol):
    """Plaintext of one file. Nothing is handed out before it has been authenticated."""

    size: int

    def read_into(self, out: memoryview, offset: int = 0, progress: Progress | None = None) -> int:
        """Fill ``out`` from ``offset`` and return how many bytes that were (fewer at the end)."""
        ...

    def check(self, progress: Progress | None = None) -> None:
        """Authenticate all of it."""
        ...

    def copy_to(self, write: Callable[[memoryview], None], progress: Progress | None = None) -> None:
        """Hand all of it to ``write``, in order."""
        ...

    def copy_at(self, write_at: WriteAt) -> None:
        """Hand all of it, piece by piece with its offset, to ``write_at``: from several threads, in any order."""
        ...

    def close(self) -> None: ...


def explain(
    cipher: SegmentCipher, path: str, number: int, last: bool, ciphertext: memoryview
) -> IntegrityError:
    """What to say of a segment that does not authenticate."""
    if not last:
        return PayloadTampered(path, number)
    try:
        with allocate(len(ciphertext) - TAG_SIZE) as probe:
            cipher.decrypt_into(number, False, ciphertext, probe)
    except InvalidTag:
        return PayloadTampered(path, number, " (the last one: changed, or cut short)")
    return Truncated(f"{path}: the end is missing; segment {number} is not the last one.")


class SealedContent:
    """The payload of a sealed file: segments, decrypted in parallel into the caller's memory.

    A failure is final: after it every call raises the same error.
    """

    def __init__(
        self, source: Source, start: int, layout: Layout, cipher: SegmentCipher, path: str
    ) -> None:
        self.size = layout.size
        self._source = source
        self._start = start
        self._layout = layout
        self._cipher = cipher
        self._path = path
        self._failed: IntegrityError | None = None
        # As many segments as the source likes to be asked for at once.
        self._group = min(max(1, source.request // layout.segment), layout.count)
        self._ciphertexts = BufferPool(min(self._group * layout.segment, layout.payload))
        self._plaintexts = BufferPool(min(layout.segment, layout.size))
        # The last segment that was wanted in part: small sequential reads decrypt it once.
        self._lock = threading.Lock()
        self._kept: tuple[int, memoryview] | None = None
        self._decrypt_range(layout.count - 1, 1, memoryview(bytearray()), self.size, self.size)
        # That authenticated the size, since the last segment is marked as such.

    def _decrypt(self, segment: Segment, ciphertext: memoryview, out: memoryview) -> None:
        try:
            self._cipher.decrypt_into(segment.number, segment.last, ciphertext, out)
            return
        except InvalidTag:
            out[:] = bytes(len(out))
        # Raised out here, so that no InvalidTag hangs on to the error, and views to its frames.
        raise explain(self._cipher, self._path, segment.number, segment.last, ciphertext)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        if self._failed:
            raise copy.copy(self._failed)
        try:
            yield
        except IntegrityError as error:
            with self._lock:
                # A copy: its traceback would hold this object, and the memory that was read into.
                self._failed = self._failed or copy.copy(error)
                self._kept = None
            raise

    def read_into(self, out: memoryview, offset: int = 0, progress: Progress | None = None) -> int:
        size = max(0, min(len(out), self.size - offset))
        end = offset + size
        with self._guard():
            if size == 0:
                return 0
            first, last = self._layout.number_at(offset), self._layout.number_at(end - 1)
            if copied := self._copy_kept(first, out, offset, end):
                first += 1
                if progress:
                    progress(copied)
            if first <= last:
                self._decrypt_range(first, last + 1 - first, out, offset, end, progress)
        return size

    def _copy_kept(self, number: int, out: memoryview, offset: int, end: int) -> int:
        with self._lock:
            if self._kept is None or self._kept[0] != number:
                return 0
            return _copy_part(self._layout[number], self._kept[1], out, offset, end)

    def _decrypt_range(
        self,
        first: int,
        count: int,
        out: memoryview,
        offset: int,
        end: int,
        progress: Progress | None = None,
    ) -> None:
        """Segments first … first+count-1; of them the plaintext offset … end goes to ``out``."""

        def work(piece: int) -> None:
            number = first + piece * self._group
            members = min(self._group, first + count - number)
            done = self._decrypt_group(number, members, out, offset, end)
            if progress:
                progress(done)

        # A thread costs 0.1 ms, as much as half a MiB; it pays from four segments on.
        threads = self._source.threads or min(default_threads(), max(1, count // 4))
        for_each(-(-count // self._group), work, threads)

    def _decrypt_group(self, number: int, members: int, out: memoryview, offset: int, end: int) -> int:
        """Read some segments with one request and decrypt them; returns how much went to ``out``."""
        segments = [self._layout[n] for n in range(number, number + members)]
        begin = segments[0].ciphertext
        size = segments[-1].ciphertext + segments[-1].ciphertext_size - begin
        with self._ciphertexts.buffer() as scratch:
            self._source.read_into(self._start + begin, scratch[:size])
            done = 0
            for segment in segments:
                at = segment.ciphertext - begin
                ciphertext = scratch[at : at + segment.ciphertext_size]
                to = segment.plaintext - offset
                if offset <= segment.plaintext and segment.plaintext + segment.size <= end:
                    self._decrypt(segment, ciphertext, out[to : to + segment.size])
                    done += segment.size
                else:
                    done += self._decrypt_part(segment, ciphertext, out, offset, end)
        return done

    def _decrypt_part(
        self, segment: Segment, ciphertext: memoryview, out: memoryview, offset: int, end: int
    ) -> int:
        fresh = self._plaintexts.take()
        spare: memoryview | None = fresh
        try:
            self._decrypt(segment, ciphertext, fresh[: segment.size])
            done = _copy_part(segment, fresh, out, offset, end)
            with self._lock:
                # A sequential reader wants the rest of this segment next.
                if self._kept is None or end < segment.plaintext + segment.size:
                    kept, self._kept = self._kept, (segment.number, fresh)
                    spare = kept[1] if kept else None
        finally:
            if spare is not None:
                self._plaintexts.give(spare)
        return done

    def copy_to(self, write: Callable[[memoryview], None], progress: Progress | None = None) -> None:
        def produce(piece: int, out: memoryview) -> int:
            number = piece * self._group
            members = min(self._group, self._layout.count - number)
            return self._decrypt_group(number, members, out, self._layout[number].plaintext, self.size)

        def consume(plaintext: memoryview) -> None:
            write(plaintext)
            if progress:
                progress(len(plaintext))

        pieces = -(-self._layout.count // self._group)
        size = min(self._group * self._layout.segment, max(1, self.size))
        with self._guard():
            in_order(pieces, size, produce, consume, self._source.threads)

    def copy_at(self, write_at: WriteAt) -> None:
        pool = BufferPool(min(self._group * self._layout.segment, max(1, self.size)))

        def work(piece: int) -> None:
            number = piece * self._group
            members = min(self._group, self._layout.count - number)
            offset = self._layout[number].plaintext
            with pool.buffer() as buffer:
                done = self._decrypt_group(number, members, buffer, offset, self.size)
                write_at(offset, buffer[:done])

        threads = self._source.threads or min(default_threads(), _WRITERS)
        with self._guard():
            for_each(-(-self._layout.count // self._group), work, threads)

    def check(self, progress: Progress | None = None) -> None:
        self.copy_to(lambda plaintext: None, progress)

    def span(self, offset: int) -> tuple[int, int]:
        """Where the whole segments around ``offset`` begin and end that are best read at once."""
        first = self._layout.number_at(offset) // self._group * self._group
        last = self._layout[min(first + self._group, self._layout.count) - 1]
        return self._layout[first].plaintext, last.plaintext + last.size

    @property
    def at_once(self) -> int:
        """Bytes to read at once of all of it, in order: as many requests as the source likes."""
        return self._group * self._layout.segment * (self._source.threads or 1)

    def release_memory(self) -> None:
        """Give up the buffers that wait for the next read."""
        with self._lock:
            self._kept = None
        self._ciphertexts.clear()
        self._plaintexts.clear()

    def close(self) -> None:
        with self._lock:
            self._kept = None
        self._source.close()


def _copy_part(segment: Segment, plaintext: memoryview, out: memoryview, offset: int, end: int) -> int:
    """Of one segment's plaintext, what lies in offset … end of the file, to ``out``; its size."""
    begin = segment.plaintext
    low, high = max(begin, offset), min(begin + segment.size, end)
    if low >= high:
        return 0
    out[low - offset : high - offset] = plaintext[low - begin : high - begin]
    return high - low


class ClearContent:
    """A file that stays in clear but is named by the manifest: read once, compared, kept in memory.

    What is handed out is what was compared, whatever happens to the file afterwards.
    """

    def __init__(self, source: Source, path: str, size: int, sha256: str) -> None:
        try:
            if source.size != size:
                raise ManifestMismatch(path, f"the file has {source.size} bytes, not {size}")
            self._memory = allocate(size)
            source.read_into(0, self._memory)
        finally:
            source.close()
        if not hmac.compare_digest(hashlib.sha256(self._memory).hexdigest(), sha256):
            raise ManifestMismatch(path, "the clear file has another SHA-256 digest")
        self.size = size

    def read_into(self, out: memoryview, offset: int = 0, progress: Progress | None = None) -> int:
        if len(self._memory) != self.size:
            raise ValueError("I/O operation on a closed model.")
        part = self._memory[offset : offset + len(out)]
        out[: len(part)] = part
        if progress:
            progress(len(part))
        return len(part)

    def span(self, offset: int) -> tuple[int, int]:
        """As of sealed content; here any will do."""
        start = offset // _PIECE * _PIECE
        return start, min(start + _PIECE, self.size)

    @property
    def at_once(self) -> int:
        """As of sealed content; it is in memory."""
        return _PIECE

    def release_memory(self) -> None:
        """What was compared stays."""

    def check(self, progress: Progress | None = None) -> None:
        if progress:
            progress(self.size)

    def copy_to(self, write: Callable[[memoryview], None], progress: Progress | None = None) -> None:
        if len(self._memory) != self.size:
            raise ValueError("I/O operation on a closed model.")
        write(self._memory)
        self.check(progress)

    def copy_at(self, write_at: WriteAt) -> None:
        self.copy_to(lambda plaintext: write_at(0, plaintext))

    def close(self) -> None:
        self._memory = memoryview(b"")


FileContent = SealedContent | ClearContent
"""The content of a file of a sealed model."""
