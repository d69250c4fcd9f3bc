"""What all remote files have in common: fsspec behind them, and a first block that is fetched once."""

from __future__ import annotations

import re
from typing import Any, Final

from strongroom.errors import MissingExtra, UsageError
from strongroom.model.location import public, scheme

__all__ = ["HEAD_SIZE", "RangeSource", "file_system"]

HEAD_SIZE: Final = 64 << 10
"""The header area of nearly every sealed file and the beginning of its payload, in one request."""

_OWN_EXTRA: Final = frozenset({"http", "https", "s3", "s3a", "gs", "gcs"})


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the path in it.

    Raises:
        MissingExtra, UsageError: there is none.
    """
    kind = scheme(url)
    if "::" in kind or re.search(r"::[a-zA-Z0-9+.-]+://", url):
        raise UsageError(
            f"{public(url)}: chained URLs are not supported.",
            hint="They may keep copies on this disk. Give the address of the model itself.",
        )
    try:
        import fsspec
    except ImportError:
        raise MissingExtra(f"{kind}://", "remote") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ValueError:
        raise UsageError(f"{public(url)}: fsspec cannot use this address.") from None
    except ImportError as error:
        if kind in _OWN_EXTRA:
            raise MissingExtra(f"{kind}://", "remote") from None
        raise UsageError(f"{kind}:// needs a package that is not installed.", hint=str(error)) from None
    # Listings that fsspec remembers are of another moment.
    fs.invalidate_cache()
    return fs, path


class RangeSource:
    """One remote file. Requests of 4 MiB, eight at once: what an object store makes a reader wait
    for is latency, and the bandwidth of one connection.

    Memory: 32 MiB for the requests under way, twice that with a back end that hands out ``bytes``.
    """

    request: Final = 4 << 20
    threads: Final = 8
    size: int

    def __init__(self, name: str) -> None:
        self.name = name
        self._head: memoryview | None = None

    def _fetch(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from ``offset``."""
        raise NotImplementedError

    def read_into(self, offset: int, out: memoryview) -> None:
        end = offset + len(out)
        if self._head is None and end <= HEAD_SIZE:
            head = memoryview(bytearray(min(HEAD_SIZE, self.size)))
            if head:
                self._fetch(0, head)
            self._head = head
        if self._head is not None and end <= len(self._head):
            out[:] = self._head[offset:end]
            return
        for start in range(0, len(out), self.request):
            self._fetch(offset + start, out[start : start + self.request])

    def close(self) -> None:
        self._head = None
