"""Namespaces of Linux: mounts and processes that nobody outside sees."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, Final

__all__ = [
    "Privacy",
    "adopt_orphans",
    "detach",
    "die_with_parent",
    "end_children",
    "enter_mounts",
    "enter_processes",
    "mount_memory",
    "mount_processes",
    "possible",
    "protect",
]

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWPID: Final = 0x20000000
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 0x20
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
# linux/sched.h, linux/mount.h, linux/prctl.h

_LIBC: Final[Any] = ctypes.CDLL(None, use_errno=True)


class Privacy(IntEnum):
    """What this process may have for itself and those it starts."""

    NONE = 0
    MOUNTS = 1
    PROCESSES = 2
    """Mounts, and processes that all end with the first of them."""


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_LIBC, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int = 0) -> int:
    return _call("prctl", option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def _mount(source: str, place: str, kind: str, flags: int, options: str = "") -> None:
    texts = (source.encode(), os.fsencode(place), kind.encode())
    _call("mount", *texts, ctypes.c_ulong(flags), options.encode())


def _works(work: Callable[[], None]) -> bool:
    """Whether ``work`` goes without an error, in a process of its own: half a failure is not undone."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def possible(directory: str) -> Privacy:
    """What the system allows; ``directory`` is one to mount at.

    Containers often allow neither. A process namespace takes a ``/proc`` of its own, which is refused
    where parts of the present one are hidden.
    """

    def mounts() -> None:
        enter_mounts()
        mount_memory(directory)

    def processes() -> None:
        enter_mounts()
        enter_processes()
        if not _works(lambda: mount_processes(directory)):
            raise OSError

    if _works(processes):
        return Privacy.PROCESSES
    return Privacy.MOUNTS if _works(mounts) else Privacy.NONE


def enter_mounts() -> None:
    """Give this process, which has one thread, mounts of its own.

    What is mounted outside later is seen here too, and nothing of here outside. Who may not do so gets
    a user namespace of its own as well, as the same user and group.

    Raises:
        OSError: the system does not allow it.
    """
    try:
        _call("unshare", _CLONE_NEWNS)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUSER)
        with _dumpable():
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    _mount("none", "/", "", _MS_SLAVE | _MS_REC)


@contextmanager
def _dumpable() -> Iterator[None]:
    """Otherwise the files of this process in ``/proc`` are root's. No key has been read yet."""
    before = _prctl(_PR_GET_DUMPABLE)
    _prctl(_PR_SET_DUMPABLE, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_DUMPABLE, before)


def enter_processes() -> None:
    """Have the next child be the first of a process namespace: when it ends, all in there do.

    Raises:
        OSError: the system does not allow it.
    """
    _call("unshare", _CLONE_NEWPID)


def mount_processes(directory: str = "/proc") -> None:
    """Show the processes of this namespace.

    Raises:
        OSError: the system does not allow it.
    """
    _mount("proc", directory, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def mount_memory(directory: str, *, native_code: bool = False) -> None:
    """Mount an empty file system in memory that is never swapped.

    It is ramfs: tmpfs without swap takes Linux 6.4 and root of the machine. Ramfs has no limit of its
    own; nobody but who mounts it may write (:func:`protect`).

    Raises:
        OSError: the system does not allow it.
    """
    flags = _MS_NOSUID | _MS_NODEV | (0 if native_code else _MS_NOEXEC)
    _mount("strongroom", directory, "ramfs", flags, "mode=0755")


def protect(directory: str, *, native_code: bool = False) -> None:
    """Enter mounts of this process's own again; in them, nobody can write to what is mounted there.

    Raises:
        OSError: the system does not allow it.
    """
    _call("unshare", _CLONE_NEWNS)
    flags = _MS_NOSUID | _MS_NODEV | (0 if native_code else _MS_NOEXEC)
    _mount("none", directory, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags)


def detach(directory: str) -> None:
    """Take away what is mounted there, if anything is; who has files of it open keeps them."""
    _LIBC.umount2(os.fsencode(directory), _MNT_DETACH)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _children() -> Iterator[int]:
    own = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # After the name of the program, which may hold anything: state, parent.
                if file.read().rpartition(b")")[2].split()[1].decode() == own:
                    yield int(name)


def end_children() -> None:
    """Kill all processes below this one, which adopts orphans, and wait until they are gone."""
    while True:
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
