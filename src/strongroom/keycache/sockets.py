"""The socket of the key cache: made where nobody else can put one, in one step, once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from strongroom.errors import AlreadyExists, UsageError, os_errors

__all__ = ["listen"]

_MODE: Final = 0o660
_BACKLOG: Final = 256


def _check_directories(folder: str) -> None:
    """Refuse a place where another user could take the name of the socket away."""
    # As it is written too: a link leads wherever its owner, or that of its directory, wants.
    for place in dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))):
        _check_upwards(place)


def _check_upwards(place: str) -> None:
    inner = True
    while True:
        with os_errors(place):
            found, owner = os.stat(place), os.lstat(place).st_uid
        others = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
        # Further up, in a directory such as /tmp, names belong to those who made them.
        if others and not inner and found.st_mode & stat.S_ISVTX:
            others = 0
        if others or not {found.st_uid, owner} <= {0, os.geteuid()}:
            raise UsageError(
                f"Others than this user can change what is in {place}.",
                hint="Give the socket a directory of its own: install -d -m 755 /run/strongroom",
            )
        inner = False
        if place == "/":
            return
        place = os.path.dirname(place)


@contextmanager
def listen(path: str, gid: int | None = None) -> Iterator[socket.socket]:
    """A listening socket at ``path``, mode 0660; gone afterwards.

    It appears under its name complete, and takes the place of one that a killed process left; a lock
    beside it keeps two caches apart.

    Args:
        path: absolute.
        gid: the group that may connect; by default that of the process.

    Raises:
        AlreadyExists: another cache has it, or something there is no socket.
        UsageError, NotFound: the directory is not there, or others can write to it.
    """
    folder = os.path.dirname(path)
    _check_directories(folder)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.sock")
    with _lock(path + ".lock", path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise AlreadyExists(f"{path} is there and is no socket.")
        try:
            # From its first moment on it is for nobody else.
            before = os.umask(0o777)
            try:
                _bind(listener, temporary)
            finally:
                os.umask(before)
            with os_errors(path):
                if gid is not None:
                    os.chown(temporary, -1, gid)
                os.chmod(temporary, _MODE)
                listener.listen(_BACKLOG)
                listener.setblocking(False)
                made = os.stat(temporary)
                os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(path), made):
                    os.unlink(path)


def _bind(listener: socket.socket, path: str) -> None:
    with os_errors(path):
        try:
            listener.bind(path)
        except OSError as error:
            if "too long" in str(error):
                raise UsageError("The path of the socket is too long: at most 80 bytes.") from None
            raise


@contextmanager
def _lock(path: str, socket_path: str) -> Iterator[None]:
    with os_errors(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(
                f"A key cache runs at {socket_path} already.", hint="Stop it, or give another --socket."
            ) from None
        # It stays: a lock file that is removed can be locked twice.
        yield
    finally:
        os.close(descriptor)
