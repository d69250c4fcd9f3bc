"""The plaintext of one file of a model, decrypted range by range."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag

from strongroom.crypto.segments import TAG_SIZE, SegmentCipher
from strongroom.errors import (
    IntegrityError,
    ManifestMismatch,
    PayloadTampered,
    Truncated,
)
from strongroom.format.layout import Layout, Segment
from strongroom.model.memory import allocate
from strongroom.model.parallel import for_each, in_order
from strongroom.model.storage import Source

__all__ = ["ClearContent", "Content", "Progress", "SealedContent", "explain"]

Progress = Callable[[int], None]
"""Called with the number of bytes just done, from any thread."""


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
        self._lock = threading.Lock()
        # The last segment that was needed in part: small sequential reads decrypt it once.
        self._kept: tuple[int, memoryview] | None = None
        self._keep(self._layout.count - 1)  # authenticates the size

    def _group(self) -> int:
        """How many segments are read with one request."""
        return max(1, self._source.request // self._layout.segment)

    def _scratch(self) -> memoryview:
        return memoryview(bytearray(self._layout.segment * min(self._group(), self._layout.count)))

    def _decrypt(self, segment: Segment, ciphertext: memoryview, out: memoryview) -> None:
        try:
            self._cipher.decrypt_into(segment.number, segment.last, ciphertext, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise explain(self._cipher, self._path, segment.number, segment.last, ciphertext) from None

    def _fail(self, error: IntegrityError) -> None:
        self._failed = self._failed or error
        self._kept = None

    def _read(self, first: int, count: int, scratch: memoryview) -> memoryview:
        """The ciphertext of segments first … first+count-1, in ``scratch``."""
        begin = self._layout[first].ciphertext
        last = self._layout[first + count - 1]
        view = scratch[: last.ciphertext + last.ciphertext_size - begin]
        self._source.read_into(self._start + begin, view)
        return view

    def _keep(self, number: int) -> memoryview:
        """The plaintext of one segment, from the last call if it is the same."""
        kept = self._kept
        if kept is not None and kept[0] == number:
            return kept[1]
        segment = self._layout[number]
        plaintext = allocate(segment.size)
        try:
            ciphertext = self._read(number, 1, memoryview(bytearray(segment.ciphertext_size)))
            self._decrypt(segment, ciphertext, plaintext)
        except IntegrityError as error:
            self._fail(error)
            raise
        self._kept = (number, plaintext)
        return plaintext

    def read_into(self, out: memoryview, offset: int = 0, progress: Progress | None = None) -> int:
        if self._failed:
            raise self._failed
        size = max(0, min(len(out), self.size - offset))
        if size == 0:
            return 0
        end = offset + size
        first, last = self._layout.number_at(offset), self._layout.number_at(end - 1)
        # Segments that are wanted in part, at most the two at the edges, go through the kept one.
        if self._layout[first].plaintext < offset or (
            first == last and end < self._layout[first].plaintext + self._layout[first].size
        ):
            self._copy(first, out, offset, end)
            first += 1
        tail = first <= last and self._layout[last].plaintext + self._layout[last].size > end
        whole = last - first + (0 if tail else 1)
        if whole > 0:
            self._decrypt_whole(first, whole, out, offset, progress)
        if tail:
            self._copy(last, out, offset, end)
        return size

    def _copy(self, number: int, out: memoryview, offset: int, end: int) -> None:
        with self._lock:
            plaintext = self._keep(number)
        begin = self._layout[number].plaintext
        low, high = max(begin, offset), min(begin + len(plaintext), end)
        out[low - offset : high - offset] = plaintext[low - begin : high - begin]

    def _decrypt_whole(
        self, first: int, count: int, out: memoryview, offset: int, progress: Progress | None
    ) -> None:
        group = self._group()

        def make_work() -> Callable[[int], None]:
            scratch = self._scratch()

            def work(piece: int) -> None:
                number = first + piece * group
                members = min(group, first + count - number)
                done = self._decrypt_group(number, members, scratch, out, offset)
                if progress:
                    progress(done)

            return work

        try:
            for_each(-(-count // group), make_work, self._source.threads)
        except IntegrityError as error:
            self._fail(error)
            raise

    def _decrypt_group(
        self, number: int, members: int, scratch: memoryview, out: memoryview, offset: int
    ) -> int:
        ciphertext = self._read(number, members, scratch)
        base = self._layout[number].ciphertext
        done = 0
        for segment in (self._layout[n] for n in range(number, number + members)):
            at = segment.ciphertext - base
            begin = segment.plaintext - offset
            self._decrypt(
                segment,
                ciphertext[at : at + segment.ciphertext_size],
                out[begin : begin + segment.size],
            )
            done += segment.size
        return done

    def _make_produce(self) -> Callable[[int, memoryview], int]:
        scratch, group = self._scratch(), self._group()

        def produce(piece: int, out: memoryview) -> int:
            number = piece * group
            members = min(group, self._layout.count - number)
            return self._decrypt_group(number, members, scratch, out, self._layout[number].plaintext)

        return produce

    def copy_to(self, write: Callable[[memoryview], None], progress: Progress | None = None) -> None:
        if self._failed:
            raise self._failed

        def consume(plaintext: memoryview) -> None:
            write(plaintext)
            if progress:
                progress(len(plaintext))

        group = self._group()
        try:
            in_order(
                -(-self._layout.count // group),
                group * self._layout.segment,
                self._make_produce,
                consume,
                self._source.threads,
            )
        except IntegrityError as error:
            self._fail(error)
            raise

    def check(self, progress: Progress | None = None) -> None:
        self.copy_to(lambda plaintext: None, progress)

    def close(self) -> None:
        self._kept = None
        self._source.close()


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

    def check(self, progress: Progress | None = None) -> None:
        if progress:
            progress(self.size)

    def copy_to(self, write: Callable[[memoryview], None], progress: Progress | None = None) -> None:
        if len(self._memory) != self.size:
            raise ValueError("I/O operation on a closed model.")
        write(self._memory)
        self.check(progress)

    def close(self) -> None:
        self._memory = memoryview(b"")
