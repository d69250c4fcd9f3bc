"""AWS Nitro Enclaves: ``/dev/nsm``.

A request is CBOR, by an ioctl of the kernel's driver (drivers/misc/nsm.c, include/uapi/linux/nsm.h).

Run with a stand-in for the ioctl that reads and writes memory as the driver does; not in an enclave.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from typing import Any, Final, cast

from strongroom.attest.collect.base import checked
from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.errors import MissingExtra, NotFound, Unavailable, os_errors

__all__ = ["DEFAULT_DEVICE", "IOCTL", "NitroCollector", "NsmRaw"]

DEFAULT_DEVICE: Final = "/dev/nsm"

_MAX_RESPONSE: Final = 0x3000
_MAX_USER_DATA: Final = 512
_MAX_PUBLIC_KEY: Final = 1024
"""Together they stay below the 4096 bytes that a request may have."""


class NsmIovec(ctypes.Structure):
    """struct nsm_iovec"""

    _fields_ = (("addr", ctypes.c_uint64), ("len", ctypes.c_uint64))


class NsmRaw(ctypes.Structure):
    """struct nsm_raw; the driver sets the length of the response to what it has written."""

    _fields_ = (("request", NsmIovec), ("response", NsmIovec))


IOCTL: Final = 3 << 30 | ctypes.sizeof(NsmRaw) << 16 | 0x0A << 8
"""``_IOWR(0x0A, 0, struct nsm_raw)``"""

Ioctl = Callable[[int, int, NsmRaw], object]


class NitroCollector:
    """Attestation documents of the enclave that this runs in; what they are bound to is ``user_data``.

    Args:
        device: of the Nitro security module.
        public_key: goes into the document, for AWS services that encrypt to it; at most 1024 bytes.
        ioctl: as :func:`fcntl.ioctl`.

    Raises:
        NotFound: this does not run in an enclave.
        MissingExtra: there is no package for CBOR.
    """

    kind = "nitro"

    def __init__(
        self,
        device: str = DEFAULT_DEVICE,
        *,
        public_key: bytes | None = None,
        ioctl: Ioctl = cast("Ioctl", fcntl.ioctl),  # noqa: B008 - a function, of one type less
    ) -> None:
        self._cbor = _cbor()
        if not os.path.exists(device):
            raise NotFound(
                f"There is no {device}: this does not run in a Nitro enclave.",
                hint="The enclave needs a kernel with CONFIG_NSM, and /dev with the device in it.",
            )
        if public_key is not None:
            checked(public_key, _MAX_PUBLIC_KEY)
        self._device = device
        self._public_key = public_key
        self._ioctl = ioctl

    def collect(self, bound: bytes) -> Evidence:
        members = {
            "user_data": checked(bound, _MAX_USER_DATA),
            "nonce": None,
            "public_key": self._public_key,
        }
        answer = self._exchange(self._cbor.dumps({"Attestation": members}))
        try:
            said = self._cbor.loads(answer)
            if isinstance(said, dict) and isinstance(said.get("Error"), str):
                raise Unavailable(f"The Nitro security module answers {said['Error'][:100]}.")
            document = said["Attestation"]["document"]
        except (self._cbor.CBORError, ValueError, KeyError, TypeError):
            document = None
        if not isinstance(document, bytes) or not 0 < len(document) <= MAX_EVIDENCE:
            raise Unavailable("The answer of the Nitro security module is not a document.")
        return Evidence(self.kind, document)

    def _exchange(self, request: bytes) -> bytes:
        asked = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(_MAX_RESPONSE)
        message = NsmRaw(
            NsmIovec(ctypes.addressof(asked), len(request)),
            NsmIovec(ctypes.addressof(answer), _MAX_RESPONSE),
        )
        with os_errors(self._device):
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, IOCTL, message)
            finally:
                os.close(descriptor)
        return answer.raw[: min(message.response.len, _MAX_RESPONSE)]


def _cbor() -> Any:
    try:
        import cbor2
    except ImportError:
        raise MissingExtra("Evidence of Nitro enclaves", "attest") from None
    return cbor2
