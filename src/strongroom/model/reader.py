"""Sealed models, opened: one virtual tree over a single sealed file or a directory of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import constant_time

from strongroom.crypto.derive import ModelKeys, gramine_wrap_key
from strongroom.crypto.secret import SecretBytes
from strongroom.crypto.segments import SegmentCipher
from strongroom.errors import (
    HeaderTampered,
    LimitExceeded,
    Malformed,
    ManifestMismatch,
    NotFound,
    NotSealed,
    StrongroomError,
    Truncated,
    UsageError,
)
from strongroom.format.encoding import b64url
from strongroom.format.header import Header, HeaderArea, area_size
from strongroom.format.layout import PREAMBLE_SIZE, Layout, parse_preamble
from strongroom.format.limits import HEADER_ALIGNMENT, MAX_MANIFEST
from strongroom.format.manifest import Entry, Manifest
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.keys.base import Identity, unwrap
from strongroom.model.file import FileInfo, SealedFile
from strongroom.model.location import is_url, local
from strongroom.model.memory import allocate, allocate_bytes, memory_file
from strongroom.model.memory_directory import memory_directory, place_files
from strongroom.model.payload import ClearContent, FileContent, Progress, SealedContent
from strongroom.model.storage import LocalSource, LocalTree, Source, Tree

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FileInfo", "SealedModel", "locate", "open_model", "read_area"]


def read_area(source: Source) -> HeaderArea:
    """Read and parse the header area of a sealed file; it is not authentic yet.

    Raises:
        FormatError, Truncated: as the format's rules say.
    """
    first = memoryview(bytearray(min(HEADER_ALIGNMENT, source.size)))
    source.read_into(0, first)
    try:
        size = area_size(bytes(first[:16]))
    except NotSealed:
        raise NotSealed(f"{source.name} is not a sealed file.") from None
    if size > source.size:
        raise Truncated(f"{source.name} ends inside its header.")
    raw = memoryview(bytearray(size))
    raw[: len(first)] = first
    source.read_into(len(first), raw[len(first) :])
    return HeaderArea.parse(bytes(raw))


def locate(location: str | os.PathLike[str]) -> tuple[Source, Tree | None]:
    """The sealed file that holds the recipients, and the directory around it if it is a manifest.

    Raises:
        NotFound: nothing is there.
        NotSealed: a directory without ``MANIFEST.sealed``.
    """
    if is_url(location):
        from strongroom.model.remote import locate_remote

        return locate_remote(str(location))
    location = local(location)
    if not os.path.isdir(location):
        return LocalSource(location), None
    tree = LocalTree(location)
    try:
        return tree.source(MANIFEST + SEALED_SUFFIX), tree
    except NotFound:
        tree.close()
        raise NotSealed(
            f"{location} is not a sealed model: it has no {MANIFEST}{SEALED_SUFFIX}."
        ) from None


def _authenticate(area: HeaderArea, keys: ModelKeys, name: str) -> None:
    if not constant_time.bytes_eq(keys.header_mac(area.signed), area.mac):
        raise HeaderTampered(f"{name}: the header does not authenticate.")


def _open_payload(source: Source, area: HeaderArea, keys: ModelKeys) -> tuple[SealedContent, bytes]:
    """The content behind an authenticated header, and its file salt."""
    header = area.header
    layout = Layout.of_payload(header.segment, source.size - area.size)
    preamble = memoryview(bytearray(PREAMBLE_SIZE))
    source.read_into(area.size, preamble)
    salt, prefix = parse_preamble(bytes(preamble))
    with keys.file_key(header.path, salt) as key:
        cipher = SegmentCipher(key, prefix)
    return SealedContent(source, area.size, layout, cipher, header.path), salt


class SealedModel:
    """An open sealed model. Use it as a context manager; closing it wipes its keys.

    Attributes:
        meta: what the owner said of the model; authenticated, not secret.
        bundle: 16 bytes that identify this sealing of the model.
        files: path → :class:`FileInfo`, sorted by path.
    """

    def __init__(self, source: Source, tree: Tree | None, identities: Sequence[Identity]) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._contents: dict[str, FileContent] = {}
        self._entries: dict[str, Entry] = {}
        self._closed = False
        self.name = tree.name if tree else source.name
        area = read_area(source)
        if (area.header.path == MANIFEST) != (tree is not None):
            raise _misplaced(source.name, tree)
        self.header: Header = area.header
        self._keys = ModelKeys(unwrap(self.header, identities), self.header.bundle)
        try:
            _authenticate(area, self._keys, source.name)
            content, _ = _open_payload(source, area, self._keys)
            if tree is None:
                info = FileInfo(self.header.path, content.size, sealed=True)
                self._contents[info.path] = content
                self.files: Mapping[str, FileInfo] = MappingProxyType({info.path: info})
            else:
                self._read_manifest(content, tree)
        except BaseException:
            self.close()
            raise

    def _read_manifest(self, content: SealedContent, tree: Tree) -> None:
        if content.size > MAX_MANIFEST:
            raise LimitExceeded(
                f"The manifest has {content.size} bytes; at most {MAX_MANIFEST} are read."
            )
        raw = bytearray(content.size)
        content.read_into(memoryview(raw))
        content.close()
        manifest = Manifest.parse(bytes(raw))
        self._entries = {entry.path: entry for entry in manifest.files}
        self.files = MappingProxyType(
            {e.path: FileInfo(e.path, e.size, e.salt is not None) for e in manifest.files}
        )
        self._check_listing(tree)

    def _check_listing(self, tree: Tree) -> None:
        stored = tree.sizes()
        if stored is None:
            return
        for entry in self._entries.values():
            if entry.stored_as not in stored:
                raise ManifestMismatch(entry.path, "the manifest names it, and it is missing")
        named = {entry.stored_as for entry in self._entries.values()}
        named.add(MANIFEST + SEALED_SUFFIX)
        for path in sorted(stored):
            if path.endswith(SEALED_SUFFIX) and path not in named:
                raise ManifestMismatch(path, "a sealed file that the manifest does not name")

    @property
    def meta(self) -> Mapping[str, Any]:
        return MappingProxyType(dict(self.header.meta))

    @property
    def is_directory(self) -> bool:
        """Whether the model is a directory (or one file)."""
        return self._tree is not None

    @property
    def bundle(self) -> bytes:
        return self.header.bundle

    @property
    def size(self) -> int:
        """Bytes of plaintext of all files."""
        return sum(info.size for info in self.files.values())

    def _path(self, path: str | None) -> str:
        if path is None:
            if len(self.files) != 1:
                raise UsageError(
                    f"{self.name} has {len(self.files)} files; say which one.",
                    hint="The names are in model.files.",
                )
            return next(iter(self.files))
        if path not in self.files:
            raise NotFound(
                f"{self.name} has no file {path!r}.",
                hint="It has: "
                + ", ".join(list(self.files)[:8])
                + (" …" if len(self.files) > 8 else ""),
            )
        return path

    def content(self, path: str | None = None) -> FileContent:
        """The authenticated content of one file, for those who need more than the methods below."""
        if self._closed:
            raise ValueError("the model is closed")
        path = self._path(path)
        with self._lock:
            if path not in self._contents:
                self._contents[path] = self._open(self._entries[path])
            return self._contents[path]

    def _open(self, entry: Entry) -> FileContent:
        assert self._tree is not None
        try:
            source = self._tree.source(entry.stored_as)
        except NotFound:
            raise ManifestMismatch(entry.path, "the manifest names it, and it is missing") from None
        if entry.sha256 is not None:
            return ClearContent(source, entry.path, entry.size, entry.sha256)
        try:
            area = read_area(source)
            if area.header.bundle != self.bundle:
                raise ManifestMismatch(entry.path, "the file belongs to another sealed model")
            _authenticate(area, self._keys, source.name)
            if area.header.path != entry.path:
                raise ManifestMismatch(
                    entry.path, f"the file is sealed as {area.header.path!r} and lies in its place"
                )
            if area.header.recipients:
                raise Malformed("recipients", "are not empty in a file of a directory")
            content, salt = _open_payload(source, area, self._keys)
            if salt != entry.salt:
                raise ManifestMismatch(entry.path, "the file is another than the manifest names")
            if content.size != entry.size:
                raise ManifestMismatch(
                    entry.path, f"the file has {content.size} bytes, not {entry.size}"
                )
        except StrongroomError as error:
            source.close()
            error.within(entry.path)
            raise
        except BaseException:
            source.close()
            raise
        return content

    def open(self, path: str | None = None) -> SealedFile:
        """A readable, seekable binary file; ``path`` may be left out if there is one file."""
        return SealedFile(self.content(path), self._path(path))

    def read(self, path: str | None = None) -> bytes:
        """All of one file as ``bytes``."""
        content = self.content(path)
        with allocate_bytes(content.size) as (memory, data):
            content.read_into(memory)
        return data

    def read_into(
        self,
        path: str | None,
        buffer: Buffer,
        offset: int = 0,
        progress: Progress | None = None,
    ) -> int:
        """Decrypt into the caller's memory, in parallel.

        Args:
            path: the file; None if there is only one.
            buffer: a writable contiguous buffer.
            offset: where in the file to begin.
            progress: called with bytes done, from several threads.

        Returns:
            How many bytes were written: the buffer's size, or fewer at the end of the file.
        """
        out = memoryview(buffer).cast("B")
        if out.readonly:
            raise TypeError("the buffer is read-only")
        if offset < 0:
            raise ValueError(f"negative offset {offset}")
        return self.content(path).read_into(out, offset, progress)

    def load(self, path: str | None = None, progress: Progress | None = None) -> memoryview:
        """All of one file in fresh memory on huge pages; the fastest way to have it."""
        content = self.content(path)
        memory = allocate(content.size)
        content.read_into(memory, 0, progress)
        return memory

    @contextmanager
    def path(self, name: str | None = None, *, named: bool = False) -> Iterator[str]:
        """A path to plaintext that never touches a disk, for whatever takes nothing but a path.

        It is gone when the block ends; what has been opened or mapped from it stays with its user.
        Child processes of the same user can open it.

        Args:
            name: a file gives a memory file (``/proc/…/fd/N``) that nobody can write to. A folder,
                or None where there are several files, gives a private directory in ``/dev/shm``
                with the files under their names.
            named: for one file, a path that ends in its own name: such a directory again, for
                libraries that look at the suffix or resolve links.

        Raises:
            StorageError: ``/dev/shm`` is not memory, or has no room.
        """
        folder = name.rstrip("/") if name else ""
        if name in self.files or (name is None and not self.is_directory):
            content = self.content(name)
            file = self._path(name)
            base = file.rpartition("/")[2]
            if not named:
                with memory_file(base, content.copy_at) as place:
                    yield place
                return
            with memory_directory(content.size) as directory:
                place_files(self, [file], directory, file[: -len(base)])
                yield f"{directory}/{base}"
            return
        members = [one for one in self.files if not folder or one.startswith(folder + "/")]
        if not members:
            self.content(name)  # raises, with the names that there are
        with memory_directory(sum(self.files[one].size for one in members)) as directory:
            place_files(self, members, directory, folder)
            yield directory

    def verify(self, progress: Progress | None = None) -> int:
        """Authenticate every byte of every file and return how many there are.

        Raises:
            IntegrityError, FormatError: with the file, and the segment if it is one.
        """
        for path in self.files:
            opened = path in self._contents
            self.content(path).check(progress)
            if not opened and self._tree is not None:
                self._contents.pop(path).close()
        return self.size

    def gramine_wrap_key(self) -> SecretBytes:
        """The key under which Gramine keeps the files of this model: what a key server hands to it."""
        if self._closed:
            raise ValueError("the model is closed")
        return gramine_wrap_key(self._keys.dek, self.bundle)

    def close(self) -> None:
        """Wipe the keys and close the files. What has been read stays with its reader."""
        self._closed = True
        self._keys.wipe()
        for content in self._contents.values():
            content.close()
        self._contents.clear()
        if self._tree is not None:
            self._tree.close()

    def __enter__(self) -> SealedModel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SealedModel {self.name} {b64url(self.bundle)}, {len(self.files)} files>"


def _misplaced(name: str, tree: Tree | None) -> StrongroomError:
    if tree is None:
        return UsageError(
            f"{name} is the manifest of a sealed directory.", hint="Open the directory it lies in."
        )
    return ManifestMismatch(MANIFEST, "the file in this place is sealed as something else")


def open_model(
    location: str | os.PathLike[str], identities: Callable[[], Sequence[Identity]]
) -> SealedModel:
    """Open a sealed file or directory, local or by URL.

    Args:
        location: a path, or a URL for fsspec.
        identities: gives the keys; called once it is clear that something sealed is there.

    Raises:
        StrongroomError: see :mod:`strongroom.errors`.
    """
    source, tree = locate(location)
    try:
        return SealedModel(source, tree, identities())
    except BaseException:
        source.close()
        if tree is not None:
            tree.close()
        raise
