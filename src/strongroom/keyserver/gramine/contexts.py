"""TLS of the door: what clients of Gramine 1.7 to 1.9 take, and no more.

TLS 1.2, which all of them offer, with forward secrecy and AEAD. In 1.3, where the certificate of a client
is encrypted, Python shows it to nobody who does not believe it already, and clients of 1.8 break at the
tickets that OpenSSL sends.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import Final

from strongroom.errors import InvalidKey, os_errors
from strongroom.keyserver.settings import Tls

__all__ = ["ServerCertificate", "trusting"]

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_MAX_FILE: Final = 1 << 20


_CONNECTIONS: Final = 64
"""That begin with one context, which remembers the session of each: some 15 KB. To make one is 1.4 ms of a
core, a fourth of all that a client costs."""


class ServerCertificate:
    """The certificate of the server, in memory, and contexts made from it.

    Whoever resumes the session of another connection proves nothing, and has to be refused.

    Args:
        tls: the section of the configuration.

    Raises:
        InvalidKey, NotFound, StorageError: the files cannot be used.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._descriptor: int | None = None
        self._current: ssl.SSLContext | None = None
        self._left = 0
        self.reload()

    def reload(self) -> None:
        """Read the files again. Where they cannot be used, everything stays as it was.

        Raises:
            InvalidKey, NotFound, StorageError: they cannot.
        """
        descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
        try:
            for path in (self._tls.key, self._tls.certificate):
                with os_errors(path), open(path, "rb") as file:
                    os.write(descriptor, file.read(_MAX_FILE) + b"\n")
            _context(descriptor)
        except ssl.SSLError:
            os.close(descriptor)
            raise InvalidKey(
                f"{self._tls.certificate} and {self._tls.key} are not a certificate and its key."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor = descriptor

    def context(self) -> ssl.SSLContext:
        """To begin a connection with; see :func:`trusting` for how it goes on."""
        if self._current is None or not self._left:
            assert self._descriptor is not None
            self._current, self._left = _context(self._descriptor), _CONNECTIONS
        self._left -= 1
        return self._current

    def close(self) -> None:
        """Forget it."""
        self._current = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def trusting(leaf: bytes) -> ssl.SSLContext:
    """A context that takes one certificate of a client, for a connection to go on with.

    One for each: all certificates of Gramine have one subject, and OpenSSL refuses one of several.

    Args:
        leaf: DER.

    Raises:
        ssl.SSLError: it is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=leaf)
    return context


def _context(descriptor: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    return context
