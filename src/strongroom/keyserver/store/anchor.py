"""The anchor: a file outside the database that remembers how far the audit trail had come.

A database that was replaced by an older copy of itself is behind its anchor. The file has one fixed size
and is overwritten in place: processes that share it take turns, and it never goes back.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from strongroom.errors import AuditBroken, NotFound, os_errors
from strongroom.format.encoding import dump_json, parse_json
from strongroom.release.audit import Head

__all__ = ["Anchor"]

_SIZE: Final = 256
"""Bytes: below a sector, which a disk writes whole or not at all."""


class Anchor:
    """One anchor file.

    Args:
        path: on another disk than the database, if it is to survive what happens to that.
        store: id of the store.
    """

    def __init__(self, path: Path, store: str) -> None:
        """Open the file.

        Raises:
            NotFound: it is not there.
        """
        self._path = path
        self._store = store
        try:
            with os_errors(path):
                self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except NotFound as error:
            error.hint = (
                "A new replica, and a database that was restored on purpose, get one by "
                "strongroom keyserver accept-head. Otherwise find out who has removed it."
            )
            raise

    @classmethod
    def create(cls, path: Path, store: str, head: Head) -> Anchor:
        """A new file.

        Raises:
            AlreadyExists: there is one.
        """
        with os_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        anchor = cls(path, store)
        anchor.replace(head)
        with os_errors(path):
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return anchor

    def read(self) -> Head:
        """What it remembers.

        Raises:
            AuditBroken: it is of another store, or damaged.
        """
        with os_errors(self._path):
            content = os.pread(self._descriptor, _SIZE + 1, 0)
        try:
            document = parse_json(content)
            head = Head(document["sequence"], document["hash"])
            right = (document["v"], document["store"]) == (1, self._store)
        except (ValueError, KeyError):
            right, head = False, Head(0, "")
        if not right or type(head.sequence) is not int or not isinstance(head.hash, str):
            raise AuditBroken(
                f"{self._path} is not the anchor of this database.",
                hint="It is damaged, or the database is another one. Find out which before going on.",
            )
        return head

    def advance(self, head: Head) -> None:
        """Remember ``head``, unless a later one is remembered already.

        Not forced to the disk: an anchor that has lost its last seconds with the power is behind
        its database, and still notices one that was rolled back further. Waiting for it would double
        the time of a commit (4 ms of 9).

        Raises:
            StorageError: the disk does not take it.
            AuditBroken: the file is not what it was.
        """
        with os_errors(self._path):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                if self.read().sequence < head.sequence:
                    self._write(head)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def replace(self, head: Head) -> None:
        """Remember ``head``, whatever was remembered, durably."""
        with os_errors(self._path):
            self._write(head)
            os.fdatasync(self._descriptor)

    def _write(self, head: Head) -> None:
        document = {"v": 1, "store": self._store, "sequence": head.sequence, "hash": head.hash}
        os.pwrite(self._descriptor, dump_json(document).ljust(_SIZE - 1) + b"\n", 0)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
