"""A private directory in memory, for libraries that insist on files with names."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from strongroom.errors import StorageError, os_errors
from strongroom.model.memory import writer
from strongroom.model.memory_room import check_room
from strongroom.model.parallel import for_each

if TYPE_CHECKING:
    from strongroom.model.payload import FileContent
    from strongroom.model.reader import SealedModel

__all__ = ["FILES_AT_ONCE", "check_memory", "memory_directory", "place_file", "place_files"]

_PARENT: Final = "/dev/shm"  # noqa: S108 - checked to be memory before use
_TMPFS: Final = 0x01021994
_RAMFS: Final = 0x858458F6
# statfs(2), linux/magic.h
_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILES_AT_ONCE: Final = 2
"""While one is opened the other is decrypted, by the threads of its own: 8 files of 64 MiB, or 400 of 256 KiB,
take a fifth less time than one after another, and no more CPU (2000 of 8 KiB: a third more, 0.1 s). With four
at once these take twice as long."""
_GRAMINE: Final = "/dev/attestation/attestation_type"


def _in_memory(path: str) -> bool:
    # os.statvfs leaves out the kind of file system: the first word of struct statfs.
    found = (ctypes.c_ulong * 32)()
    status: int = ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), found)
    if status == 0 and found[0] == 0:
        return _in_enclave()
    return status == 0 and found[0] in (_TMPFS, _RAMFS)


def _in_enclave() -> bool:
    """Whether Gramine runs this in an enclave, whose manifest says what can be written.

    It does not tell one file system from another (statfs gives zeros). But new files can be made only in
    its tmpfs, which is memory of the enclave, in encrypted mounts, and where ``sgx.allowed_files`` has a
    directory: deploy/gramine/ has one, for sealed models.
    """
    try:
        with open(_GRAMINE, "rb") as file:
            return file.read(16).strip() == b"dcap"
    except OSError:
        return False


def check_memory(parent: str, size: int) -> None:
    """Make sure that ``parent`` is a file system in memory, and that there is room for ``size`` bytes.

    Raises:
        StorageError: it is not, or has not.
    """
    if not _in_memory(parent):
        raise StorageError(
            f"{parent} is not a file system in memory; nothing is written there.",
            hint=f"Mount one: mount -t tmpfs -o mode=1777 tmpfs {parent}",
        )
    with os_errors(parent):
        room = os.statvfs(parent)
    # Without blocks at all: a ramfs, or a tmpfs with no limit.
    if room.f_blocks and room.f_bavail * room.f_frsize < size:
        raise StorageError(
            f"{parent} has no room for {size} bytes.",
            hint="Make it larger (docker run --shm-size, or mount -o remount,size=…).",
        )
    check_room(size, swapped=True)


@contextmanager
def memory_directory(size: int = 0, parent: str = _PARENT) -> Iterator[str]:
    """A new directory that only this user can enter, in memory; removed with all in it.

    A process that is killed leaves it behind, in memory, until the machine restarts; its name has the
    number of the process.

    Args:
        size: how many bytes will be put there.

    Raises:
        StorageError: ``parent`` is not a file system in memory, or has no room.
    """
    check_memory(parent, size)
    with os_errors(parent):
        path = tempfile.mkdtemp(prefix=f"strongroom-{os.getpid()}-", dir=parent)  # 0700
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def place_files(model: SealedModel, paths: Iterable[str], directory: str, root: str = "") -> None:
    """Decrypt some files of a model into ``directory``, under their paths relative to ``root``."""
    targets = [(path, os.path.join(directory, os.path.relpath(path, root or "."))) for path in paths]

    def place(number: int) -> None:
        path, target = targets[number]
        with os_errors(target):
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        place_file(model.content(path), target, 0o600)

    for_each(len(targets), place, FILES_AT_ONCE)


def place_file(content: FileContent, target: str, mode: int) -> None:
    """Decrypt a file of a model into a new one, which has permissions ``mode`` whatever the umask is."""
    with os_errors(target):
        descriptor = os.open(target, _FILE, mode)
        try:
            os.fchmod(descriptor, mode)
            content.copy_at(writer(descriptor))
        finally:
            os.close(descriptor)
