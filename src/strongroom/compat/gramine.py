"""Gramine's encrypted ("protected") files: ``gramine-sgx-pf-crypt``, and mounts of type ``encrypted``.

A Merkle tree of AES-128-GCM nodes of 4 KiB under a 16-byte wrap key (:mod:`.gramine_nodes`). Authentic
are all bytes, the length, and the path under which Gramine shall open the file: the host path as the
manifest has it, normalised as text. The tree is checked from its root, so stale nodes that an
overwritten or shortened file has left behind are never looked at. A file that was being written to when
that was interrupted is read as its recovery log restores it, in memory.

Versions: 2 is written, and read, by Gramine 1.9 and later; 1 is read by all, and is what 1.0 to 1.8 write.

What the format does not protect: an older version of a file, under the same path and wrap key, can be
put back (rollback), and a file can be removed. What it is called now is of no account; the path in it is
compared if ``path`` says what it must be, as Gramine itself always does. Length and time are visible.

Both directions stream: 2 MiB of memory, and 128 bytes for 384 KiB of a file; twice 1.5 MiB more for each
process. Local files are read and written in one pass. An output that takes its bytes in order alone
costs a second one, since a node of keys lies before what it has the tags of.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.gramine_nodes import KEY, MAGIC, MAX_PATH, normal_path
from strongroom.compat.gramine_reader import GramineFile
from strongroom.compat.gramine_recovery import LOG_SUFFIX
from strongroom.compat.gramine_writer import write_gramine
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import InvalidKey, NotFound, UsageError, os_errors
from strongroom.model.location import is_url
from strongroom.model.output import Output
from strongroom.model.payload import Content
from strongroom.model.reader import SealedModel
from strongroom.model.storage import LocalSource, Source

__all__ = ["GramineCodec", "parse_key"]

_MOST: Final = 64
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Not with an underscore first: so begin the sealing keys of the processor, which are nobody's to hand out."""
_HEX: Final = b"0123456789abcdefABCDEF"


def parse_key(content: SecretBytes) -> SecretBytes:
    """The wrap key: 16 bytes, or 32 hexadecimal digits as in a manifest; a newline may follow.

    Raises:
        InvalidKey: anything else.
    """
    size = len(content)
    # A key may end in a newline by chance; one byte more can only be the editor's.
    if size in (KEY + 1, 2 * KEY + 1) and content.buffer[size - 1] == ord("\n"):
        size -= 1
    if size == KEY:
        return SecretBytes(content.buffer[:KEY])
    if size == 2 * KEY and all(digit in _HEX for digit in content.buffer[:size]):
        return SecretBytes.take(binascii.unhexlify(content.buffer[:size]))
    raise InvalidKey(
        f"This is no wrap key of Gramine: it has {size} bytes.",
        hint="Give the file of 16 bytes that gramine-sgx-pf-crypt gen-key wrote.",
    )


class GramineCodec(Codec):
    """Encrypted files of Gramine, versions 1 and 2."""

    name = "gramine"
    title = "Gramine encrypted files (gramine-sgx-pf-crypt), versions 1 and 2"
    unprotected = (
        "Nothing tells an older version of a file from the newest (rollback), or that a file is missing; "
        "that one was moved shows only if path= says where it belongs."
    )
    options: ClassVar[Mapping[str, str]] = {
        "path": "where Gramine opens it: the host path in the manifest, of the file or, for a directory, of that; "
        "by default an import takes any, and an export the destination as it was written",
        "mount": "where the application sees it, for the lines of the manifest that an export prints; by default "
        "the host path, from the root",
        "key_name": "how the manifest calls the wrap key, for the same; default, by default",
        "version": "2 (the default), or 1 for Gramine before 1.9, which 1.9 reads too",
        "processes": "how many decrypt or encrypt a local file; by default as many as processors, up to 8, for a "
        "file of at least 256 MiB where there are 4 or more",
    }
    writes = True

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(key, options)
        assert key is not None  # takes_key
        self._key = parse_key(key)
        self._path = self.given.get("path")
        if self._path is not None:
            checked_path(self._path)
        self._mount = self.given.get("mount")
        if self._mount is not None:
            self._mount = _mount_point(self._mount)
        self._key_name = self.given.get("key_name", "default")
        if not _KEY_NAME.fullmatch(self._key_name):
            raise UsageError(f"{self._key_name!r} cannot name a wrap key in a manifest.")
        version = self.given.get("version", "2")
        if version not in ("1", "2"):
            raise UsageError(f"Gramine's files have no version {version!r}.", hint="It is 1 or 2.")
        self._version = int(version)
        processes = self.given.get("processes")
        allowed = {str(count) for count in range(1, _MOST + 1)}
        if processes is not None and processes not in allowed:
            raise UsageError(f"processes={processes} is not possible.", hint=f"It is 1 to {_MOST}.")
        self._processes = None if processes is None else int(processes)

    @classmethod
    def key_of(cls, model: SealedModel) -> SecretBytes:
        return model.gramine_wrap_key()

    def recognises(self, path: str, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def skips(self, path: str) -> bool:
        return path.endswith(LOG_SUFFIX)

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        expected = None
        if self._path is not None:
            expected = checked_path(self._path if self.root is None else f"{self._path}/{path}")
        file = GramineFile(source, self._key, expected, lambda: _recovery_log(source))

        def copy(write: Write) -> None:
            processes = self._count(file.size)
            if processes > 1 and file.source is source and isinstance(source, LocalSource):
                from strongroom.compat.gramine_parallel import decrypt_groups

                write(file.head)
                decrypt_groups(file.groups, source.fileno(), write, processes)
            else:
                file.copy_to(write)

        return [PlainFile(self.plain_path(path), copy)]

    def _count(self, size: int) -> int:
        from strongroom.compat.gramine_parallel import process_count

        return process_count(size, self._processes)

    def configuration(self, destination: str, encrypted: Sequence[str], clear: Sequence[str]) -> str:
        from strongroom.compat.gramine_manifest import manifest_lines

        uri = checked_path(destination if self._path is None else self._path)
        try:
            text = uri.decode()
        except UnicodeDecodeError:
            return ""  # a manifest is UTF-8, and cannot name it
        mount = self._mount or normal_path(b"/" + uri).decode()
        return manifest_lines(text, mount, self._key_name, encrypted, clear)

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        path = self._embedded(destination)
        with os_errors(destination):
            write_gramine(content, output, self._key, path, self._version, self._count(content.size))

    def _embedded(self, destination: str) -> bytes:
        if self._path is None:
            if destination == "-" or is_url(destination):
                raise UsageError(
                    f"Gramine binds a file to its path, and {destination} is none.",
                    hint="Say where Gramine will open it: -O path=… (options={'path': …}).",
                )
            return checked_path(destination)
        if self.root is not None:
            return checked_path(self._path + destination.removeprefix(self.root))
        return checked_path(self._path)


def _mount_point(path: str) -> str:
    try:
        found = normal_path(path.encode()).decode()
    except UnicodeEncodeError:
        found = ""
    if not path.startswith("/") or found == "/" or "\0" in path:
        raise UsageError(
            f"{path!r} is no mount point.", hint="Give an absolute path, such as mount=/models/resnet."
        )
    return found


def checked_path(path: str) -> bytes:
    """A path as Gramine has it in a file.

    Raises:
        UsageError: it is empty, too long, or has a NUL.
    """
    found = normal_path(os.fsencode(path))
    if not found or b"\0" in found:
        raise UsageError(f"{path!r} is no path that a file can be bound to.")
    if len(found) > MAX_PATH:
        raise UsageError(
            f"The path is too long for Gramine: it has {len(found)} bytes.",
            hint=f"It can have {MAX_PATH}. Give a relative one, as the manifest does: path=….",
        )
    return found


def _recovery_log(source: Source) -> Source | None:
    if not isinstance(source, LocalSource):
        return None
    try:
        return LocalSource(source.name + LOG_SUFFIX)
    except NotFound:
        return None
