"""What a sealed model says of itself to somebody without a key. None of it is authenticated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.errors import StrongroomError
from strongroom.format.encoding import b64url
from strongroom.format.header import VERSION, Header
from strongroom.format.layout import Layout
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.model.reader import FileInfo, locate, read_area
from strongroom.model.storage import Source

__all__ = ["Inspection", "inspect_model"]


@dataclass(frozen=True)
class Inspection:
    """The header, and the files as they lie there.

    Attributes:
        header: of the file, or of the manifest.
        header_area: bytes before the payload of that file.
        directory: whether it is a sealed directory.
        files: as far as the place can be listed.
        stored: bytes of all files as they lie there.
    """

    header: Header
    header_area: int
    directory: bool
    files: Sequence[FileInfo]
    stored: int

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; members are only ever added."""
        return {
            "format": VERSION,
            "kind": "directory" if self.directory else "file",
            "bundle": b64url(self.header.bundle),
            "segment": self.header.segment,
            "header_area": self.header_area,
            "recipients": [
                {key: value for key, value in entry.items() if key != "encrypted_key"}
                for entry in self.header.recipients
            ],
            "meta": dict(self.header.meta),
            "files": [
                {"path": info.path, "size": info.size, "sealed": info.sealed} for info in self.files
            ],
            "size": sum(info.size for info in self.files),
            "stored": self.stored,
            "authenticated": False,
        }


def _info(source: Source) -> tuple[Header, int, FileInfo]:
    area = read_area(source)
    size = Layout.of_payload(area.header.segment, source.size - area.size).size
    return area.header, area.size, FileInfo(area.header.path, size, sealed=True)


def inspect_model(location: str | os.PathLike[str]) -> Inspection:
    """Read the header and list the files; needs no key and decrypts nothing.

    Raises:
        FormatError, Truncated, NotFound: it is not a whole sealed model.
    """
    source, tree = locate(location)
    try:
        header, area, info = _info(source)
        if tree is None:
            return Inspection(header, area, False, (info,), source.size)
        sizes = tree.sizes() or {}
        files = []
        for path in sorted(sizes):
            if path == MANIFEST + SEALED_SUFFIX:
                continue
            if not path.endswith(SEALED_SUFFIX):
                files.append(FileInfo(path, sizes[path], sealed=False))
                continue
            member = tree.source(path)
            try:
                files.append(_info(member)[2])
            except StrongroomError as error:
                error.within(path)
                raise
            finally:
                member.close()
        return Inspection(header, area, True, tuple(files), sum(sizes.values()))
    finally:
        source.close()
        if tree is not None:
            tree.close()
