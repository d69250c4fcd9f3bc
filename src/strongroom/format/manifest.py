"""The manifest of a sealed directory: which files it has, and how each is recognised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from strongroom.crypto.segments import SALT_SIZE
from strongroom.errors import LimitExceeded, Malformed, UnsupportedVersion
from strongroom.format.encoding import b64url, dump_json, load_json, unb64url
from strongroom.format.limits import MAX_MANIFEST, MAX_SEGMENT, MAX_SEGMENTS
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX, check_path

__all__ = ["Entry", "Manifest"]

_SHA256: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: path and size of its plaintext; ``salt`` if it is sealed, ``sha256`` if it is clear."""

    path: str
    size: int
    salt: bytes | None = None
    sha256: str | None = None

    @property
    def stored_as(self) -> str:
        """The path under which the file lies in the sealed directory."""
        return self.path if self.salt is None else self.path + SEALED_SUFFIX

    @classmethod
    def _parse(cls, value: object, where: str) -> Entry:
        if not isinstance(value, dict):
            raise Malformed(where, "is not an object")
        path = check_path(value.get("path"), f"{where}.path")
        if path == MANIFEST:
            raise Malformed(f"{where}.path", "is the reserved name MANIFEST")
        size = value.get("size")
        if type(size) is not int or not 0 <= size <= MAX_SEGMENT * MAX_SEGMENTS:
            raise Malformed(f"{where}.size", "is not a size")
        if set(value) == {"path", "size", "salt"}:
            return cls(path, size, salt=unb64url(value["salt"], f"{where}.salt", SALT_SIZE))
        if set(value) == {"path", "size", "sha256"}:
            digest = value["sha256"]
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise Malformed(f"{where}.sha256", "is not a SHA-256 digest in lower-case hex")
            return cls(path, size, sha256=digest)
        raise Malformed(where, "has not exactly path, size and one of salt and sha256")

    def _json(self) -> dict[str, Any]:
        members: dict[str, Any] = {"path": self.path, "size": self.size}
        if self.salt is not None:
            members["salt"] = b64url(self.salt)
        else:
            members["sha256"] = self.sha256
        return members


@dataclass(frozen=True, slots=True)
class Manifest:
    """All files of a sealed directory, sorted by path."""

    files: Sequence[Entry]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Manifest:
        """Sort and check.

        Raises:
            Malformed: two entries cannot lie beside one another.
        """
        manifest = cls(tuple(sorted(entries, key=lambda entry: entry.path)))
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Sorted, no path twice, no file that is also a directory, no two files in one place."""
        for before, after in zip(self.files, self.files[1:], strict=False):
            if not before.path < after.path:
                raise Malformed("files", f"are not sorted by path at {after.path!r}")
        paths = {entry.path for entry in self.files}
        stored = {entry.stored_as for entry in self.files} | {MANIFEST + SEALED_SUFFIX}
        if len(stored) != len(self.files) + 1:
            raise Malformed("files", "has two files that would be stored under one name")
        for names in (paths, stored):
            for name in names:
                parents = name.split("/")[:-1]
                if any("/".join(parents[: n + 1]) in names for n in range(len(parents))):
                    raise Malformed("files", f"has a file above {name!r}")

    @classmethod
    def parse(cls, raw: bytes) -> Manifest:
        """Parse and check the JSON.

        Raises:
            UnsupportedVersion: ``v`` is not 1.
            Malformed: any other rule is broken; ``field`` says which member.
        """
        members = load_json(raw, "manifest")
        version = members.get("v")
        if type(version) is not int:
            raise Malformed("manifest.v", "is not an integer")
        if version != 1:
            raise UnsupportedVersion(
                f"The manifest has version {version}; this release reads version 1.",
                hint="Upgrade strongroom.",
            )
        if set(members) != {"v", "files"}:
            raise Malformed("manifest", "has not exactly v and files")
        if not isinstance(members["files"], list):
            raise Malformed("files", "is not an array")
        manifest = cls(
            tuple(
                Entry._parse(value, f"files[{index}]") for index, value in enumerate(members["files"])
            )
        )
        manifest._check()
        return manifest

    def encode(self) -> bytes:
        """The JSON that a writer puts in ``MANIFEST.sealed``.

        Raises:
            LimitExceeded: it is larger than a reader accepts.
        """
        encoded = dump_json({"v": 1, "files": [entry._json() for entry in self.files]})
        if len(encoded) > MAX_MANIFEST:
            raise LimitExceeded(
                f"The manifest would have {len(encoded)} bytes; at most {MAX_MANIFEST} are read."
            )
        return encoded
