"""A TPM 2.0 by ``tpm2-pytss``: opening it, reading from it, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from strongroom.crypto.apart import load_apart
from strongroom.errors import MissingExtra, NotFound, Unavailable, UsageError

__all__ = [
    "DEFAULT_TCTI",
    "errors_of_tpm",
    "handle_at",
    "opened",
    "read_certificate",
    "read_nv",
    "tpm2",
]

DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
"""By the kernel's resource manager: several programs can use the TPM at once."""

_MAX_NV: Final = 8192
_CHUNK: Final = 512
"""Bytes in one NV read; every TPM takes as many."""

_HINTS: Final = {
    0x921: "It is locked after too many failures: tpm2_dictionarylockout --clear-lockout",
    0x902: "Its memory is full of keys: use /dev/tpmrm0, or tpm2_flushcontext --transient-object",
    0x9A2: "The endorsement hierarchy has a password, which is not supported.",
    0x98E: "The endorsement hierarchy has a password, which is not supported.",
}


def tpm2() -> Any:
    """The module ``tpm2_pytss``.

    Raises:
        MissingExtra: it is not installed.
    """
    with suppress(OSError):  # where there is none, the import says so
        load_apart("libtss2-esys.so.0")
    try:
        import tpm2_pytss
    except ImportError:
        raise MissingExtra("Using a TPM", "tpm") from None
    return tpm2_pytss


@contextmanager
def errors_of_tpm() -> Iterator[None]:
    """Turn errors of the TPM into this tree.

    Raises:
        Unavailable: the TPM refuses, or does not answer.
    """
    library = tpm2()
    try:
        yield
    except library.TSS2_Exception as error:
        # Without the bits that say which argument or session it is about.
        code = error.rc & 0xFFFF
        raise Unavailable(f"The TPM answers {code:#x}: {error}.", hint=_HINTS.get(code)) from error


@contextmanager
def opened(tcti: str) -> Iterator[Any]:
    """A connection to the TPM, as ``ESAPI``; closed at the end.

    Args:
        tcti: as of the TSS: ``device:/dev/tpmrm0``, ``swtpm:host=127.0.0.1,port=2321``.

    Raises:
        NotFound, UsageError: there is no such device, or this user may not use it.
        Unavailable: the TPM refuses, or does not answer.
    """
    library = tpm2()
    name, _, device = tcti.partition(":")
    if name == "device" and device:
        check_device(device)
    try:
        connection = library.ESAPI(tcti)
    except library.TSS2_Exception as error:
        raise Unavailable(
            f"No TPM answers at {tcti}.", hint="See the manual of tss2-tcti for how one is named."
        ) from error
    try:
        with errors_of_tpm():
            yield connection
    finally:
        connection.close()


def check_device(path: str) -> None:
    """The device is there, and this user may use it.

    Raises:
        NotFound, UsageError: it is not, or he may not.
    """
    if not os.path.exists(path):
        raise NotFound(
            f"There is no {path}: this machine has no TPM 2.0, or its driver is not loaded.",
            hint="Switch the TPM on in the firmware's set-up; in a virtual machine, give it a vTPM.",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise UsageError(
            f"This user may not use {path}.", hint="Add him to the group tss, or run as root."
        )


def handle_at(connection: Any, place: int) -> Any:
    """The library's handle of a persistent key or NV index; None if there is nothing."""
    # Asking for what is not there would be an error, which the TSS writes to standard error.
    _, found = connection.get_capability(tpm2().TPM2_CAP.HANDLES, place)
    if place not in [int(handle) for handle in found.data.handles]:
        return None
    return connection.tr_from_tpmpublic(place)


def read_nv(connection: Any, index: int) -> bytes | None:
    """What lies at an NV index; None if nothing does."""
    handle = handle_at(connection, index)
    if handle is None:
        return None
    try:
        public, _ = connection.nv_read_public(handle)
        size = min(public.nvPublic.dataSize, _MAX_NV)
        data = b""
        while len(data) < size:
            data += bytes(connection.nv_read(handle, min(_CHUNK, size - len(data)), len(data)))
    finally:
        connection.tr_close(handle)
    return data


def read_certificate(connection: Any, index: int) -> bytes | None:
    """The certificate at an NV index, DER; None if there is none.

    Makers fill up the space behind it: it ends where its DER says.
    """
    data = read_nv(connection, index)
    if data is None or data[:2] != b"\x30\x82":
        return None
    end = 4 + int.from_bytes(data[2:4], "big")
    return data[:end] if end <= len(data) else None
