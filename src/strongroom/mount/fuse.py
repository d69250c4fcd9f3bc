"""Mounts a tree by the kernel's FUSE interface: as root by mount(2), otherwise by fusermount3."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from strongroom.errors import NotFound, StorageError, UsageError, os_errors
from strongroom.mount import protocol
from strongroom.mount.cache import CACHE_BYTES, BlockCache
from strongroom.mount.preload import Preload
from strongroom.mount.server import LOG, Server
from strongroom.mount.tree import Tree

__all__ = ["Mount", "available", "mounted"]

_DEVICE: Final = "/dev/fuse"
_KIND: Final = "fuse.strongroom"
_READAHEAD: Final = 8 << 20
"""Bytes that the kernel reads ahead; by itself it is 128 KiB.

Who maps a file and copies it by two threads, as PyTorch does, faults at two places in turn, and what is read around
them overlaps: ``load_file`` of 1 GiB takes 0.5 s of the mount's CPU with 8 MiB, 0.7 s with 4, and no less with more.
"""

_INSTEAD: Final = (
    "Where FUSE is not allowed, strongroom run --backend tmpfs shows models in memory without it."
)
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_JOIN_SECONDS: Final = 10.0


def available() -> str | None:
    """Why FUSE cannot be used here, or None if it seems so that it can."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_DEVICE}: {os.strerror(error.errno or 0).lower()}"
    return None


class Mount:
    """A mounted tree.

    Attributes:
        directory: where.
    """

    def __init__(self, directory: str, server: Server) -> None:
        self.directory = directory
        self._server = server

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until somebody unmounts it; whether that was so."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def fileno(self) -> int:
        """A descriptor that can be read when somebody has unmounted it, to be polled among others."""
        return self._server.ended


def _mount_entry(directory: str) -> tuple[str, str] | None:
    """Kind and device number of what is mounted at ``directory``, the uppermost one, or None."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            first, _, rest = line.partition(" - ")
            fields = first.split(" ")
            place = fields[4].encode("utf-8", "surrogateescape")
            if _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), place) == os.fsencode(directory):
                found = rest.split(" ")[0], fields[2]
    return found


def _checked_directory(directory: str) -> str:
    """The absolute path of a directory to mount at, without what a killed process has left there."""
    place = os.path.realpath(directory)
    if (entry := _mount_entry(place)) and entry[0] == _KIND:
        try:
            os.statvfs(place)  # Attributes are known to the kernel, and are not asked for.
        except OSError as error:
            if error.errno not in {errno.ENOTCONN, errno.ECONNABORTED}:
                with os_errors(directory):
                    raise
        else:
            raise UsageError(
                f"Sealed models are mounted at {directory} already.",
                hint=f"Unmount them: umount {directory}",
            )
        LOG.warning("%s: the mount of a process that was killed is taken away", directory)
        with os_errors(directory):
            _unmount(place, lazily=True)
        return _checked_directory(directory)
    if not os.path.exists(place):
        raise NotFound(f"{directory} is not there.", hint=f"Make it: mkdir -p {directory}")
    if not os.path.isdir(place):
        raise UsageError(f"{directory} is not a directory.")
    return place


def _mount_directly(device: int, directory: str, options: str, flags: int) -> None:
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},{options}"
    source, kind = b"strongroom", _KIND.encode()
    if _LIBC.mount(source, os.fsencode(directory), kind, ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)


def _mount_by_helper(directory: str, options: str) -> int:
    """Let fusermount3, which is setuid root, mount; the descriptor of /dev/fuse that it hands back.

    Raises:
        UsageError: it refuses, or is not there.
    """
    helper = shutil.which("fusermount3")
    if helper is None:
        raise UsageError(
            "Mounting takes root, or fusermount3, which is not there.",
            hint=f"Install fuse3. {_INSTEAD}",
        )
    here, there = socket.socketpair()
    with here, there:
        command = [helper, "-o", f"{options},fsname=strongroom,subtype=strongroom", "--", directory]
        done = subprocess.run(  # noqa: S603 - the helper of FUSE, found on PATH
            command,
            env={**os.environ, "_FUSE_COMMFD": str(there.fileno())},
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[:200]
            raise UsageError(f"{directory} cannot be mounted: {said}.", hint=_INSTEAD)
        there.close()
        _, descriptors, _, _ = socket.recv_fds(here, 1, 1, socket.MSG_CMSG_CLOEXEC)
    return descriptors[0]


def _unmount(directory: str, *, lazily: bool = False, force: bool = False) -> None:
    """Take a mount away.

    Raises:
        OSError: it is busy, or not allowed.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0) | (_MNT_FORCE if force else 0)
    if _LIBC.umount2(os.fsencode(directory), flags) == 0:
        return
    number = ctypes.get_errno()
    helper = shutil.which("fusermount3")
    if number == errno.EPERM and helper is not None:
        command = [helper, "-u", "-q", *(["-z"] if lazily else []), "--", directory]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:  # noqa: S603 - fusermount3, as above
            return
        number = errno.EBUSY
    raise OSError(number, os.strerror(number), directory)


def _open_and_mount(directory: str, options: list[str], flags: int) -> int:
    text = ",".join(options)
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EACCES:
            reason = os.strerror(error.errno or 0).lower()
            raise UsageError(f"{_DEVICE} cannot be opened: {reason}.", hint=_INSTEAD) from None
        device = -1
    try:
        if device >= 0:
            try:
                _mount_directly(device, directory, text, flags)
                return device
            except PermissionError:
                pass
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                raise UsageError(f"{directory} cannot be mounted: {reason}.", hint=_INSTEAD) from None
    except BaseException:
        os.close(device)
        raise
    if device >= 0:
        os.close(device)
    names = {_MS_RDONLY: "ro", _MS_NOSUID: "nosuid", _MS_NODEV: "nodev", _MS_NOEXEC: "noexec"}
    return _mount_by_helper(
        directory, ",".join([text, *(n for bit, n in names.items() if flags & bit)])
    )


def _set_readahead(directory: str) -> bool:
    """Let the kernel ask for as much at once as it can; only root may, and without it all works, slower."""
    device = os.stat(directory).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "w") as file:
            file.write(str(_READAHEAD >> 10))
    except OSError:
        return False
    return True


@contextmanager
def mounted(
    tree: Tree,
    directory: str | os.PathLike[str],
    *,
    page_cache: bool = True,
    allow_other: bool = False,
    allow_native_code: bool = False,
    cache_bytes: int = CACHE_BYTES,
    preload: bool = False,
) -> Iterator[Mount]:
    """Show ``tree`` at ``directory``, read-only, until the block is left; then nothing of it is kept.

    Files that somebody still has open then give errors, and mappings of them SIGBUS. This process may read
    files of it, but must not map them: a page fault would wait, with the interpreter's lock, for a thread that
    needs it.

    Args:
        page_cache: let the kernel keep what was read, and map files shared. Without it (direct I/O)
            ``MAP_SHARED`` fails with ENODEV.
        allow_other: let other users read, root among them; otherwise this one alone can, and not even
            root.
        allow_native_code: let machine code be run and mapped from it.
        cache_bytes: of plaintext that this process keeps while files are open.
        preload: fill the page cache in the background, as far as there is room.

    Raises:
        NotFound, UsageError: not there, or FUSE cannot be used here; or no page cache to preload.
    """
    if preload and not page_cache:
        raise UsageError(
            "Without the page cache there is nothing to preload.", hint="Leave out one of both."
        )
    place = _checked_directory(os.fspath(directory))
    options = ["default_permissions", f"max_read={protocol.MAX_READ}"]
    if allow_other:
        options.append("allow_other")
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | (0 if allow_native_code else _MS_NOEXEC)
    cache = BlockCache(cache_bytes)
    device = _open_and_mount(place, options, flags)
    own = _mount_entry(place)
    server = Server(tree, device, page_cache=page_cache, everybody=allow_other, cache=cache)
    preloading = None
    try:
        try:
            server.begin(_READAHEAD)
            if _set_readahead(place):
                server.read_ahead = not page_cache
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise StorageError(f"{place}: the kernel does not answer: {reason}.") from None
        if preload:
            preloading = Preload(server, tree, place)
            preloading.start()
        yield Mount(place, server)
    finally:
        if preloading:
            preloading.stop()
        _end(place, own, server)
        cache.drop()
        # Who may still write to it would write to what is opened next under its number.
        if server.join(_JOIN_SECONDS) and (preloading is None or preloading.join(_JOIN_SECONDS)):
            os.close(device)
            os.close(server.ended)


def _end(directory: str, own: tuple[str, str] | None, server: Server) -> None:
    """Unmount; what is in use is taken away from its users.

    What somebody has mounted at the same place since, or over it, stays: as long as the connection is
    there, nobody else has its device number.
    """
    if not server.connected:
        return
    mounted_here = _mount_entry(directory) == own
    if mounted_here:
        with contextlib.suppress(OSError):
            _unmount(directory)
            return
    server.stop_reading()
    if not mounted_here:  # but still in use: somebody has unmounted it lazily
        return
    # Ends the connection, whatever is open; it is said to be busy all the same.
    with contextlib.suppress(OSError):
        _unmount(directory, force=True)
    try:
        _unmount(directory, lazily=True)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        LOG.error("%s: not unmounted: %s", directory, reason)
