"""Memory for keys: hard to print, to pickle, to swap and to dump; wiped when released."""

from __future__ import annotations

import errno
import hmac
import mmap
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SecretBytes", "advise", "keep_out_of_core_dumps", "wipe_bytes"]


@cache
def _libc() -> Any:
    import ctypes  # 5 ms, paid only by a process that holds a key

    return ctypes.CDLL(None, use_errno=True)


def _lock(memory: mmap.mmap) -> None:
    """mlock; best effort, since RLIMIT_MEMLOCK is 64 KiB on some systems."""
    try:
        import ctypes

        anchor = ctypes.c_char.from_buffer(memory)
        _libc().mlock(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(memory)))
        del anchor
    except (OSError, AttributeError):
        pass


def advise(memory: mmap.mmap, name: str) -> None:
    """``madvise(2)``, where the system knows this advice and has any.

    In an enclave Gramine has none about core dumps: nobody outside could read one.
    """
    advice = getattr(mmap, name, None)
    if advice is None:
        return
    try:
        memory.madvise(advice)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def keep_out_of_core_dumps() -> None:
    """Make this process undumpable (``PR_SET_DUMPABLE`` 0) and set its core size limit to 0.

    For processes that belong to strongroom, the command line first of all; a library has no
    business doing this to its host. Has no effect where the system knows neither.
    """
    import resource

    pr_set_dumpable = 4
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        _libc().prctl(pr_set_dumpable, 0, 0, 0, 0)
    except (OSError, ValueError, AttributeError):
        pass


def wipe_bytes(data: bytes) -> None:
    """Zero a ``bytes`` in place, against its nature: only for one that nobody else will look at."""
    if len(data) > 1 and sys.implementation.name == "cpython":  # shorter ones are shared
        import ctypes

        header = bytes.__basicsize__ - 1  # what precedes the contents, less the final NUL
        ctypes.memset(id(data) + header, 0, len(data))


class SecretBytes:
    """A fixed number of secret bytes in a page of their own.

    The page is locked in memory where the system allows it, left out of core dumps, and zeroed
    by :meth:`wipe`, at the end of a ``with`` block, and when the object is collected.
    Printing shows the length only; pickling and copying raise ``TypeError``.
    """

    __slots__ = ("_memory", "_size")

    def __init__(self, data: Buffer) -> None:
        with memoryview(data).cast("B") as view:
            self._allocate(len(view))
            self._memory[: len(view)] = view

    @classmethod
    def take(cls, data: bytes) -> SecretBytes:
        """Move ``data`` here: the ``bytes``, which some libraries give and nobody can wipe, is zeroed.

        It must be nobody else's: a result just returned, never a constant.
        """
        secret = cls(data)
        wipe_bytes(data)
        return secret

    def _allocate(self, size: int) -> None:
        if size < 1:
            raise ValueError("a secret has at least one byte")
        self._size = size
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        advise(self._memory, "MADV_DONTDUMP")
        _lock(self._memory)

    @classmethod
    def zeros(cls, size: int) -> SecretBytes:
        """``size`` zero bytes, for something that fills :attr:`buffer`."""
        secret = cls.__new__(cls)
        secret._allocate(size)
        return secret

    @classmethod
    def random(cls, size: int) -> SecretBytes:
        """``size`` bytes of the system's generator, read straight into locked memory."""
        secret = cls.zeros(size)
        descriptor = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.readv(descriptor, [secret.buffer]) != size:
                raise OSError("short read from /dev/urandom")
        finally:
            os.close(descriptor)
        return secret

    @property
    def buffer(self) -> memoryview:
        """A writable view of the bytes; do not keep it longer than the secret."""
        return memoryview(self._memory)[: self._size]

    def wipe(self) -> None:
        """Overwrite with zeros. The object must not be used afterwards."""
        self._memory[: self._size] = bytes(self._size)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self.buffer, other.buffer)

    __hash__ = None  # type: ignore[assignment]  # equality by content, content never in a table

    def __enter__(self) -> SecretBytes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wipe()

    def __del__(self) -> None:
        if getattr(self, "_memory", None) is not None:
            self.wipe()

    def __repr__(self) -> str:
        return f"<SecretBytes: {self._size} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("SecretBytes cannot be pickled or copied")
