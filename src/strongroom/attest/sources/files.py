"""Endorsements from a directory: for machines without a network, and for tests.

Files are found by name::

    intel/tdx_90c06f000000_platform.json        amd-vcek/Milan_HWID_3_0_20_209.der
    amd-chain/Milan_vcek.pem                    amd-crl/Milan_vcek.crl
    nvidia-rim/NV_GPU_DRIVER_GH100_580.95.05.xml
    nvidia-ocsp/SHA-256.der                     jwks/https%3A%2F%2Fissuer.example.json

or lie in the directory itself under any name, and are found by their content: Intel's collateral,
AMD's certificates and lists, NVIDIA's manifests. The directory is as trusted as the configuration that names it, for a key set
(jwks) is authenticated by nothing else.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import lru_cache
from typing import Final

from strongroom.attest.endorsements import Wanted
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.attest.sources.content import fits, names_of
from strongroom.attest.sources.naming import path_of
from strongroom.errors import MissingEndorsement, Unavailable, UsageError, os_errors

__all__ = ["DirectorySource"]

_MAX_LOOSE: Final = 256
"""Files that are looked into for what no name says."""

_KEPT: Final = 64
_MAX_KEPT: Final = 64 << 10
"""Bytes of a file that is kept in memory: Intel's collateral has 20 KB."""

_SETTLED: Final = 2 * 10**9
"""Nanoseconds since its last change after which a file is kept: a second change cannot fall into the same
tick of the file system's clock, and look like none. Reading it costs 50 µs, looking at it 3."""

_Mark = tuple[int, ...]


class DirectorySource:
    """An endorsement source that reads files, and can be filled.

    Args:
        directory: must exist.

    Raises:
        UsageError: it is no directory.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        if not os.path.isdir(self._directory):
            raise UsageError(f"{self._directory} is not a directory of endorsements.")
        self._seen: dict[str, tuple[_Mark, frozenset[str]]] = {}

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: it is not there, or several are and nothing says which.
            Unavailable: a file cannot be read.
        """
        data = self._read(os.path.join(self._directory, path_of(wanted)))
        if data is None:
            data = self._by_content(wanted)
        if data is None:
            raise MissingEndorsement(
                f"The directory of endorsements does not have {path_of(wanted)}.",
                hint=f"Put it into {self._directory}.",
            )
        return data

    def store(self, wanted: Wanted, data: bytes) -> str:
        """Put an endorsement into the directory under its name, and return its path.

        Raises:
            StorageError: writing fails.
        """
        path = os.path.join(self._directory, path_of(wanted))
        with os_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        return path

    def _read(self, path: str) -> bytes | None:
        try:
            status = os.stat(path)
            settled = time.time_ns() - status.st_ctime_ns > _SETTLED
            keep = settled and status.st_size <= _MAX_KEPT
            data = _kept_content(path, _mark(status)) if keep else _content(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Unavailable(f"{path}: {os.strerror(error.errno or 0).lower()}.") from None
        if len(data) > MAX_ENDORSEMENTS:
            raise MissingEndorsement(f"{path} has more than {MAX_ENDORSEMENTS} bytes.")
        return data

    def _by_content(self, wanted: Wanted) -> bytes | None:
        found = {
            data
            for path in self._loose()
            if fits(wanted, self._names(path)) and (data := self._read(path)) is not None
        }
        if len(found) > 1:
            raise MissingEndorsement(
                f"The directory has several files that could be {path_of(wanted)}.",
                hint="Give the right one this name.",
            )
        return found.pop() if found else None

    def _loose(self) -> list[str]:
        try:
            with os.scandir(self._directory) as entries:
                return sorted(entry.path for entry in entries if entry.is_file())[:_MAX_LOOSE]
        except OSError as error:
            raise Unavailable(f"{self._directory}: {os.strerror(error.errno or 0).lower()}.") from None

    def _names(self, path: str) -> frozenset[str]:
        """What the file says it is; looked into once, until it changes."""
        try:
            mark = _mark(os.stat(path))
            known = self._seen.get(path)
            if known is None or known[0] != mark:
                known = self._seen[path] = (mark, names_of(self._read(path) or b""))
        except (OSError, MissingEndorsement):
            return frozenset()
        return known[1]


def _mark(status: os.stat_result) -> _Mark:
    """Differs when the file does; nobody can set the time of its last change."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_ENDORSEMENTS + 1)


@lru_cache(_KEPT)
def _kept_content(path: str, mark: _Mark) -> bytes:
    return _content(path)
