"""Plain files in memory: what a careful user does who has a decrypted model and wants it on no disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_file(place: Path) -> Iterator[str]:
    """A copy of a file in a memory file, and its path: the fewest copies that a path can be had with."""
    descriptor = os.memfd_create("plain")
    try:
        with place.open("rb", buffering=0) as file:
            size, done = place.stat().st_size, 0
            while done < size:
                done += os.sendfile(descriptor, file.fileno(), done, size - done)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def memory_place(place: Path) -> Iterator[Path]:
    """A copy of a file or a folder of files in memory, for who asks for its names."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy = Path(folder) / place.name
        if place.is_dir():
            shutil.copytree(place, copy)
        else:
            shutil.copyfile(place, copy)
        yield copy
