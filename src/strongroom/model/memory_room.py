"""How much memory may still be taken: by this machine, and by the control groups that this process is in.

Files in memory count as those of the group whose process wrote them, also after its end. A group that
goes beyond its limit has a process killed, which may be the server and not the one that was too large.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from strongroom.errors import StorageError

__all__ = ["check_room", "memory_left"]

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_UNLIMITED: Final = 1 << 60
"""Version 1 says no limit as the largest number of pages, version 2 in a word."""

_GIVEN_BACK: Final = ("inactive_file", "active_file", "slab_reclaimable")
"""What the kernel takes back before it kills: pages of files on disks; those of files in memory are not
among them."""


def check_room(size: int, *, swapped: bool, proc: str = "/proc") -> None:
    """Make sure that ``size`` bytes can be written to files in memory without anybody being killed.

    Args:
        swapped: whether they may go to swap: then that counts too.
        proc: where the kernel says what there is.

    Raises:
        StorageError: they cannot.
    """
    said = _numbers(f"{proc}/meminfo", unit=1024)
    swap = said.get("SwapFree", 0) if swapped else 0
    # Gramine says less than Linux does.
    available = said.get("MemAvailable", _UNLIMITED)
    if available + swap < size:
        raise StorageError(f"This takes {size} bytes of memory, and {available} are available.")
    for group, room in _groups(proc):
        if room + swap < size:
            raise StorageError(
                f"This takes {size} bytes of memory, and the control group {group} has {room} left.",
                hint="Raise its limit (docker run --memory, resources.limits.memory, MemoryMax=).",
            )


def memory_left(proc: str = "/proc") -> int:
    """Bytes that files can take in memory before the kernel takes others back, or kills somebody.

    Pages that it keeps of files on disks count as free, those that were filled with this in mind too.
    """
    available = _numbers(f"{proc}/meminfo", unit=1024).get("MemAvailable", _UNLIMITED)
    return min(available, *(room for _, room in _groups(proc)), _UNLIMITED)


def _numbers(path: str, unit: int = 1) -> dict[str, int]:
    """The lines of a name and a number; none where there is no such file."""
    found = {}
    with suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.replace(":", " ").split()
            if len(fields) > 1 and fields[1].isdecimal():
                found[fields[0]] = int(fields[1]) * unit
    return found


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    return _UNLIMITED if text == "max" else int(text)


def _groups(proc: str) -> Iterator[tuple[str, int]]:
    """The groups of this process that have a limit, from its own upwards, and what each has left."""
    for mount, path, modern in _places(proc):
        while True:
            with suppress(OSError, ValueError):  # the uppermost one has no limit, nor the file for it
                yield from _left(mount, path, modern)
            if path in ("", "/"):
                break
            path = os.path.dirname(path)


def _left(mount: str, path: str, modern: bool) -> Iterator[tuple[str, int]]:
    folder = mount + path
    if modern:
        limit, used = _number(f"{folder}/memory.max"), _number(f"{folder}/memory.current")
        prefix = ""
    else:
        limit = _number(f"{folder}/memory.limit_in_bytes")
        used = _number(f"{folder}/memory.usage_in_bytes")
        prefix = "total_"  # with the groups below
    if limit >= _UNLIMITED:
        return
    said = _numbers(f"{folder}/memory.stat")
    back = sum(said.get(prefix + name, 0) for name in _GIVEN_BACK)
    yield path or "/", max(0, limit - used + back)


def _places(proc: str) -> Iterator[tuple[str, str, bool]]:
    """Where each hierarchy with memory is mounted, this process in it, and whether it is version 2."""
    paths: dict[bool, str] = {}
    with suppress(OSError), open(f"{proc}/self/cgroup", errors="surrogateescape") as file:
        for line in file:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                paths[number == "0"] = path
    with suppress(OSError), open(f"{proc}/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.rstrip("\n").partition(" - ")
            kind, _, options = rest.split(" ", 2)
            modern = kind == "cgroup2"
            if modern not in paths or not (
                modern or (kind == "cgroup" and "memory" in options.split(","))
            ):
                continue
            root, mount = (_ESCAPE.sub(_unescaped, one) for one in fields.split(" ")[3:5])
            path = paths.pop(modern)
            if root != "/":
                # A container that sees names of outside, and its own group alone.
                inside = path == root or path.startswith(root + "/")
                path = path[len(root) :] if inside else ""
            # Of a group above the namespace nothing can be seen.
            yield mount, "" if path.startswith("/..") else path.rstrip("/"), modern


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
