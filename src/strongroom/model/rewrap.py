"""New recipients for a sealed model: the header is written anew, the payload is not touched."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import constant_time

from strongroom.crypto.derive import ModelKeys
from strongroom.errors import HeaderTampered, SourceChanged, UsageError, os_errors
from strongroom.format.header import Header, HeaderArea
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.keys.base import Identity, Recipient, unwrap
from strongroom.keys.passphrase import check_count
from strongroom.model.location import is_http, is_url, local, public
from strongroom.model.output import FileOutput, open_file_output
from strongroom.model.reader import locate, read_area
from strongroom.model.storage import LocalSource, Source

__all__ = ["rewrap_model"]

_CHUNK = 64 << 20
# FUSE file systems and sandboxes such as gVisor.
_NO_COPY_FILE_RANGE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL)


def _new_area(
    area: HeaderArea,
    identities: Sequence[Identity],
    recipients: Sequence[Recipient],
    keep: bool,
    name: str,
) -> bytes:
    old = area.header
    keys = ModelKeys(unwrap(old, identities), old.bundle)
    try:
        if not constant_time.bytes_eq(keys.header_mac(area.signed), area.mac):
            raise HeaderTampered(f"{name}: the header does not authenticate.")
        bare = Header(old.bundle, old.path, old.segment, (), old.meta)
        entries: list[Mapping[str, Any]] = list(old.recipients) if keep else []
        for recipient in recipients:
            entry = recipient.wrap(keys.dek, bare)
            entries = [e for e in entries if not _same(e, entry)] + [entry]
        check_count(entries)
        header = Header(old.bundle, old.path, old.segment, entries, old.meta)
        return HeaderArea.build(header, keys.header_mac, minimum=area.size)
    finally:
        keys.wipe()


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries are for the same recipient."""
    return "kid" in other and (one["alg"], one.get("kid")) == (other["alg"], other["kid"])


def rewrap_model(
    location: str | os.PathLike[str],
    identities: Callable[[], Sequence[Identity]],
    recipients: Sequence[Recipient],
    *,
    keep: bool = False,
) -> None:
    """Replace the recipients of a sealed model, or add to them with ``keep``.

    A copy with the new header is put in the old file's place when it is complete, so that at
    every moment one whole file is there. On file systems with shared extents (XFS, Btrfs) the
    payload is not copied; of a directory only ``MANIFEST.sealed`` is written.

    Who has had the DEK still has it: to shut somebody out, seal the model again.

    Raises:
        StrongroomError: the model is as it was.
    """
    if not recipients:
        raise UsageError("A model must be sealed for somebody.", hint="Give a new key or recipient.")
    location = local(location)
    if is_url(location) and is_http(str(location)):
        raise UsageError(f"{public(str(location))}: nothing can be written by HTTP.")
    source, tree = locate(location)
    try:
        old = read_area(source)
        area = _new_area(old, identities(), recipients, keep, source.name)
        name = f"{os.fspath(location).rstrip('/')}/{MANIFEST}{SEALED_SUFFIX}" if tree else location
        if isinstance(source, LocalSource):
            _replace(os.path.realpath(name), source, old.size, area)
        elif tree is not None:
            _replace_remote(str(name), source, old.size, area)
        else:
            raise UsageError(
                "A single remote file cannot be rewrapped in place without risking the only copy.",
                hint="Fetch it, rewrap the local file, and upload that.",
            )
    finally:
        source.close()
        if tree is not None:
            tree.close()


def _replace(path: str, source: LocalSource, start: int, area: bytes) -> None:
    """Put ``area`` and the payload, which lies at ``start`` in the open ``source``, in place of ``path``."""
    with os_errors(path):
        status = os.fstat(source.fileno())
        output = FileOutput(path, overwrite=True, mode=0o600)
        try:
            with contextlib.suppress(PermissionError):
                os.fchown(output.descriptor, status.st_uid, status.st_gid)
            os.fchmod(output.descriptor, status.st_mode & 0o777)
            output.write(area)
            _copy_range(source.fileno(), start, output.descriptor, len(area), status.st_size - start)
            if source.changed() or not os.path.samestat(os.stat(path), status):
                raise SourceChanged(
                    f"{path} was changed or replaced while it was rewrapped.",
                    hint="Look at who writes to it, and run it again.",
                )
            output.commit()
        except BaseException:
            output.abort()
            raise


def _copy_range(source: int, start: int, target: int, at: int, size: int) -> None:
    """Copy inside the kernel; both offsets are multiples of 4096, so extents can be shared."""
    done = 0
    while done < size:
        wanted = min(_CHUNK, size - done)
        try:
            count = os.copy_file_range(source, target, wanted, start + done, at + done)
        except OSError as error:
            if error.errno not in _NO_COPY_FILE_RANGE:
                raise
            count = os.pwrite(target, os.pread(source, wanted, start + done), at + done)
        if count == 0:
            raise OSError(f"only {done} of {size} bytes of the payload could be copied")
        done += count


def _replace_remote(url: str, source: Source, start: int, area: bytes) -> None:
    payload = memoryview(bytearray(source.size - start))
    source.read_into(start, payload)
    output = open_file_output(url, overwrite=True, private=False)
    try:
        output.write(area)
        output.write(payload)
        output.commit()
    except BaseException:
        output.abort()
        raise
