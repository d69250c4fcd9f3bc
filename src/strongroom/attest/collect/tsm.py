"""Intel TDX and AMD SEV-SNP, by the kernel's configfs-tsm (Linux 6.7 and later).

The kernel makes the files of a directory in ``/sys/kernel/config/tsm/report`` when the directory is made:
``inblob`` is taken when it is closed, the quote is made when ``outblob`` is read, ``generation`` counts
what was written. See ``Documentation/ABI/testing/configfs-tsm``.

Run against a file system that behaves as drivers/virt/coco/tsm.c of Linux 6.7 says (FUSE); not on a
machine with TDX or SEV-SNP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from strongroom.attest.collect.base import report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.errors import NotFound, Unavailable, UsageError

__all__ = ["DEFAULT_PATH", "TsmCollector"]

DEFAULT_PATH: Final = "/sys/kernel/config/tsm/report"

_KINDS: Final = {"tdx_guest": "tdx", "sev_guest": "snp"}
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.2
"""Seconds before the second attempt, twice as long before each further one: the firmware of SEV-SNP turns
requests away that come too fast."""

_AGAIN: Final = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EIO)
_ABSENT: Final = (errno.ENOENT, errno.ENXIO, errno.EINVAL, errno.EOPNOTSUPP)


class _Again(Exception):
    """Somebody else has used our directory."""


class TsmCollector:
    """Quotes of TDX and reports of SEV-SNP, whichever the machine gives.

    Args:
        path: directory of reports.
        pause: waits so many seconds between attempts.

    Raises:
        NotFound: there is no such directory, or no driver behind it.
        UsageError: this user may not, or the driver is for a TEE that is not known here.
    """

    def __init__(
        self, path: str = DEFAULT_PATH, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._path = path
        self._pause = pause
        with self._errors(), self._entry() as entry:
            provider = _read(os.path.join(entry, "provider"), 100).decode("ascii", "replace").strip()
        if provider not in _KINDS:
            raise UsageError(
                f"The kernel's provider of reports is {provider!r}, which is not known here."
            )
        self._kind = _KINDS[provider]

    @property
    def kind(self) -> str:
        return self._kind

    def collect(self, bound: bytes) -> Evidence:
        data = report_data(bound)
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_PAUSE * 2 ** (attempt - 1))
            with self._errors(), contextlib.suppress(_Again):
                return self._once(data, last=attempt == _ATTEMPTS - 1)
        raise Unavailable(
            f"The kernel gave no report in {_ATTEMPTS} attempts.",
            hint="For TDX, see whether the quote generation service of the host runs.",
        )

    def _once(self, data: bytes, *, last: bool) -> Evidence:
        with self._entry() as entry:
            before = self._generation(entry)
            try:
                _write(os.path.join(entry, "inblob"), data)
                quote = _read(os.path.join(entry, "outblob"), MAX_EVIDENCE)
                certificates = _read_optional(os.path.join(entry, "auxblob"), MAX_ENDORSEMENTS)
            except OSError as error:
                if error.errno in _AGAIN and not last:
                    raise _Again from None
                raise
            if self._generation(entry) != before + 1:
                raise _Again
        if not quote:
            raise Unavailable("The kernel gave an empty report.")
        return Evidence(self._kind, quote, (certificates,) if certificates else ())

    @staticmethod
    def _generation(entry: str) -> int:
        text = _read(os.path.join(entry, "generation"), 32)
        try:
            return int(text)
        except ValueError:
            raise Unavailable("The kernel's generation of a report is no number.") from None

    @contextmanager
    def _entry(self) -> Iterator[str]:
        entry = os.path.join(self._path, f"strongroom-{os.getpid()}-{secrets.token_hex(8)}")
        os.mkdir(entry, 0o700)
        try:
            yield entry
        finally:
            # The files in it cannot be removed one by one: they are the kernel's, and go with it.
            os.rmdir(entry)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> UsageError | Unavailable:
        if isinstance(error, FileNotFoundError):
            return NotFound(
                f"There are no reports of the kernel in {self._path}.",
                hint="They need Linux 6.7, the module tdx_guest or sev-guest, and configfs: "
                "mount -t configfs none /sys/kernel/config",
            )
        if error.errno == errno.ENXIO:
            return NotFound(
                "The kernel has no driver that makes reports.", hint="modprobe tdx_guest, or sev-guest"
            )
        if isinstance(error, PermissionError):
            return UsageError(
                f"{self._path}: {os.strerror(error.errno or 0).lower()}.",
                hint="Only root makes reports: run the key cache as root, and programs by its socket.",
            )
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return Unavailable(f"The kernel made no report: {reason}.")


def _read(path: str, most: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, left = [], most + 1
        while left > 0 and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    if left <= 0:
        raise Unavailable(f"{os.path.basename(path)} of the kernel has more than {most} bytes.")
    return b"".join(parts)


def _read_optional(path: str, most: int) -> bytes:
    try:
        return _read(path, most)
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        raise


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # The kernel counts writes; a blob in two of them would be two blobs to it.
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    finally:
        os.close(descriptor)
