"""Payloads and sealed files, written segment by segment; memory does not grow with the model."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from strongroom.crypto.derive import BUNDLE_SIZE, DEK_SIZE, ModelKeys
from strongroom.crypto.secret import SecretBytes
from strongroom.crypto.segments import PREFIX_SIZE, SALT_SIZE, TAG_SIZE, SegmentCipher
from strongroom.errors import LimitExceeded, Malformed, SourceChanged, Truncated, UsageError
from strongroom.format.encoding import dump_json, load_json
from strongroom.format.header import Header, HeaderArea, check_segment_size
from strongroom.format.layout import PREAMBLE_SIZE, Layout, build_preamble
from strongroom.format.limits import DEFAULT_SEGMENT, MAX_SEGMENTS
from strongroom.keys.base import Recipient
from strongroom.keys.passphrase import check_count
from strongroom.model.memory import BufferPool, allocate
from strongroom.model.output import Output
from strongroom.model.parallel import default_threads, in_order
from strongroom.model.payload import Progress
from strongroom.model.storage import Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["PayloadWriter", "SealedWriter", "SealingKeys", "build_meta", "write_sealed"]

Write = Callable[[memoryview | bytes], None]


def build_meta(
    name: str | None, version: str | None, meta: Mapping[str, Any] | None, **more: Any
) -> dict[str, Any]:
    """The ``meta`` of a header: what the caller said, and the time of sealing."""
    members = {"name": name, "version": version, **more}
    result = {key: value for key, value in members.items() if value is not None}
    result["created"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for key, value in (meta or {}).items():
        if key in result and key != "created":
            raise UsageError(f"meta.{key} is given twice.")
        result[key] = value
    try:
        return load_json(dump_json(result), "meta")
    except (TypeError, ValueError, RecursionError, Malformed):
        raise UsageError(
            "The metadata cannot be written as JSON.",
            hint="Use text, numbers, lists and dictionaries of these, at most 30 levels deep.",
        ) from None


@dataclass
class SealingKeys:
    """A new DEK and bundle for one sealed model, and who can open it.

    Args:
        recipients: at least one; nobody could open the model otherwise.
        dek, bundle: given only where bytes must be repeatable, as in test vectors.
    """

    recipients: Sequence[Recipient]
    dek: SecretBytes = field(default_factory=lambda: SecretBytes.random(DEK_SIZE))
    bundle: bytes = field(default_factory=lambda: os.urandom(BUNDLE_SIZE))

    def __post_init__(self) -> None:
        self.keys = ModelKeys(self.dek, self.bundle)

    def area(self, path: str, segment: int, meta: Mapping[str, Any]) -> bytes:
        """A header area with the recipients: of a single file, or of a manifest."""
        if not self.recipients:
            raise UsageError("A model must be sealed for somebody.", hint="Give a key or a recipient.")
        header = Header(self.bundle, path, segment, (), meta)
        entries = [recipient.wrap(self.dek, header) for recipient in self.recipients]
        check_count(entries)
        return HeaderArea.build(Header(self.bundle, path, segment, entries, meta), self.keys.header_mac)

    def member_area(self, path: str, segment: int) -> bytes:
        """A header area without recipients: of a file in a directory."""
        return HeaderArea.build(Header(self.bundle, path, segment), self.keys.header_mac)


class PayloadWriter:
    """Writes one payload to ``write``. Feed it with :meth:`write` or :meth:`copy_from`, then :meth:`finish`.

    A full segment is held back until more data comes, since the last one is encrypted as such.
    """

    def __init__(
        self,
        keys: ModelKeys,
        path: str,
        segment: int,
        write: Write,
        *,
        salt: bytes | None = None,
        prefix: bytes | None = None,
    ) -> None:
        self.salt = salt or os.urandom(SALT_SIZE)
        prefix = prefix or os.urandom(PREFIX_SIZE)
        with keys.file_key(path, self.salt) as key:
            self._cipher = SegmentCipher(key, prefix)
        self._segment = segment
        self._write = write
        self._number = 0
        self._pending = allocate(segment)
        self._fill = 0
        self.size = 0
        write(build_preamble(self.salt, prefix))

    def _capacity(self, number: int) -> int:
        """Bytes of plaintext that segment ``number`` holds when full."""
        return self._segment - TAG_SIZE - (PREAMBLE_SIZE if number == 0 else 0)

    def write(self, data: Buffer) -> int:
        """Take more plaintext; return its size. ``data`` is not used after the call."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        taken = self._top_up(view)
        rest = view[taken:]
        if rest:
            if self._fill:
                self._emit([self._pending[: self._fill]])
                self._fill = 0
            whole: list[memoryview] = []
            while len(rest) > (capacity := self._capacity(self._number + len(whole))):
                whole.append(rest[:capacity])
                rest = rest[capacity:]
            self._emit(whole)
            self._top_up(rest)
        return len(view)

    def _top_up(self, view: memoryview) -> int:
        taken = min(self._capacity(self._number) - self._fill, len(view))
        self._pending[self._fill : self._fill + taken] = view[:taken]
        self._fill += taken
        return taken

    def _emit(self, plaintexts: Sequence[memoryview]) -> None:
        """Encrypt full segments, none of them the last."""
        first = self._number

        def produce(index: int, out: memoryview) -> int:
            return self._encrypt(first + index, False, plaintexts[index], out)

        # Threads of their own cost 0.1 ms a call; worth it from a few segments on.
        threads = default_threads() if len(plaintexts) > 3 else 1
        self._produce(len(plaintexts), produce, threads)

    def _produce(self, count: int, produce: Callable[[int, memoryview], int], threads: int) -> None:
        if self._number + count > MAX_SEGMENTS:
            raise LimitExceeded("The file is too large for this segment size.")
        in_order(count, self._segment, produce, self._write, threads)
        self._number += count

    def _encrypt(self, number: int, last: bool, plaintext: memoryview, out: memoryview) -> int:
        size = len(plaintext) + TAG_SIZE
        self._cipher.encrypt_into(number, last, plaintext, out[:size])
        return size

    def copy_from(self, source: Source, progress: Progress | None = None) -> None:
        """All of ``source``, read and encrypted in parallel, and the end of the payload.

        Raises:
            SourceChanged: it became shorter meanwhile.
        """
        layout = Layout.of_plaintext(self._segment, source.size)

        plaintexts = BufferPool(self._segment)

        def produce(number: int, out: memoryview) -> int:
            segment = layout[number]
            with plaintexts.buffer() as buffer:
                plaintext = buffer[: segment.size]
                try:
                    source.read_into(segment.plaintext, plaintext)
                except Truncated:
                    raise SourceChanged(
                        f"{source.name} became shorter while it was sealed.",
                        hint="Seal it again when nothing writes to it.",
                    ) from None
                size = self._encrypt(number, segment.last, plaintext, out)
            if progress:
                progress(segment.size)
            return size

        self._produce(layout.count, produce, source.threads or default_threads())
        self.size = source.size

    def finish(self) -> int:
        """Write the last segment and return the size of the plaintext."""
        self._produce(
            1,
            lambda _, out: self._encrypt(self._number, True, self._pending[: self._fill], out),
            1,
        )
        self._pending[:] = bytes(len(self._pending))
        return self.size


def write_sealed(
    keys: SealingKeys, area: bytes, path: str, segment: int, output: Output, data: Buffer
) -> PayloadWriter:
    """A whole sealed file from memory, committed."""
    try:
        output.write(area)
        writer = PayloadWriter(keys.keys, path, segment, output.write)
        writer.write(data)
        writer.finish()
        output.commit()
    except BaseException:
        output.abort()
        raise
    return writer


class SealedWriter(io.RawIOBase):
    """A writable binary file that is sealed as it is written.

    Closing it, or leaving its ``with`` block, puts the sealed file in place. An exception in the
    block, :meth:`abort`, or forgetting the object leaves nothing behind.
    """

    def __init__(
        self,
        output: Output,
        recipients: Sequence[Recipient],
        path: str,
        meta: Mapping[str, Any],
        segment: int = DEFAULT_SEGMENT,
    ) -> None:
        self._output: Output | None = output
        self.name = path
        try:
            check_segment_size(segment)
            self._keys = SealingKeys(recipients)
            output.write(self._keys.area(path, segment, meta))
            self._payload = PayloadWriter(self._keys.keys, path, segment, output.write)
        except BaseException:
            self.abort()
            raise

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        if self._output is None:
            raise ValueError("I/O operation on closed file.")
        try:
            return self._payload.write(data)
        except BaseException:
            self.abort()
            raise

    def tell(self) -> int:
        return self._payload.size

    def close(self) -> None:
        if self._output is not None:
            try:
                self._payload.finish()
                self._output.commit()
                self._output = None
            finally:
                self.abort()
        super().close()

    def abort(self) -> None:
        """Drop what has been written."""
        output, self._output = self._output, None
        if output is not None:
            output.abort()
        if hasattr(self, "_keys"):
            self._keys.keys.wipe()
        super().close()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.abort()
        self.close()

    def __del__(self) -> None:
        # io.IOBase would close, and so publish half a model.
        self.abort()
