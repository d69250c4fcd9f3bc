"""TLS 1.3 and mutual TLS on both ports, made anew when the files change.

gRPC for Python has no option for the version of TLS: a server of it takes 1.2 as well. What can be set is
the list of cipher suites for 1.2, by the environment, once in a process: it holds a suite with pre-shared
keys alone here, of which no server has one, so that a handshake of 1.2 finds nothing in common. What else
is missing there: certificates that a client may show or not (it is required or not asked for), revocation
lists, and an end for connections whose CA is believed no more; they end by their age.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from datetime import UTC, datetime
from typing import Any, Final

from strongroom.errors import AccessError, InvalidKey, Unavailable
from strongroom.serving.settings import Tls
from strongroom.serving.tls_files import Material, read, stamp
from strongroom.web.contexts import NewestContext
from strongroom.web.logs import log

__all__ = ["Certificates", "only_tls_1_3"]

_CIPHERS: Final = "GRPC_SSL_CIPHER_SUITES"
_NO_TLS_1_2: Final = "ECDHE-PSK-AES128-CBC-SHA"
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 60.0
_PIPE: Final = 60 << 10
"""Bytes that a pipe holds until somebody reads."""


def only_tls_1_3() -> None:
    """Keep gRPC from TLS 1.2 in this process; it reads the environment when it is imported."""
    os.environ[_CIPHERS] = _NO_TLS_1_2


class Certificates:
    """What both ports make handshakes with.

    Args:
        tls: where the files are.

    Raises:
        StrongroomError: they cannot be used.

    Attributes:
        context: for listeners of HTTP.
        clients: goes up when other CAs of clients than before are believed: connections of those before
            have to end.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen: tuple[Any, ...] = ()
        self._tries = 0
        self._again: float | None = None
        self._material: Material | None = None
        self._given: Material | None = None
        self.clients = 0
        self.context = NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self.reload()

    @property
    def asks_clients(self) -> bool:
        """Nobody connects without a certificate."""
        return self._material is not None and self._material.client_ca is not None

    def changed(self) -> bool:
        """The files are not those that were read last, or it is time to try those once more.

        Raises:
            StrongroomError: one cannot be looked at.
        """
        if self._again is not None and time.monotonic() >= self._again:
            return True
        return stamp(self._tls) != self._seen

    def reload(self) -> None:
        """Read the files again; it may take as long as a key server does. Where one cannot be used,
        everything stays as it was.

        Raises:
            StrongroomError: it cannot; says which. Where a key server was away, or refused the key,
                :meth:`changed` says so again after a while.
        """
        self._seen, self._again = stamp(self._tls), None
        try:
            found, before = read(self._tls), self._material
        except (Unavailable, AccessError):
            self._tries += 1
            pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(self._tries, 10))
            self._again = time.monotonic() + pause
            raise
        self._tries = 0
        if before is not None and (before.client_ca is None) != (found.client_ca is None):
            raise InvalidKey(
                "Whether clients show certificates does not change while the server runs.",
                hint="Start it again.",
            )
        self.context.current = _context(found)
        self._material = found
        since, until = found.valid
        if not since <= datetime.now(UTC) <= until:
            # Clients see it; who runs the server would look for the fault there.
            log.warning(
                "the certificate is not valid now; clients refuse it",
                since=since.isoformat(),
                until=until.isoformat(),
                hint="strongroom pki server --force makes a new one.",
            )
        if before is not None and before.client_ca != found.client_ca:
            self.clients += 1

    def grpc_credentials(self) -> Any:
        """Credentials of a gRPC server; new connections get what was read last."""
        import grpc

        self._given = self._material
        assert self._given is not None
        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(self._given),
            self._newer,
            require_client_authentication=self._given.client_ca is not None,
        )

    def _newer(self) -> Any:
        """What gRPC asks before each handshake, one after another: None changes nothing."""
        found = self._material
        if found is self._given or found is None:
            return None
        self._given = found
        return _grpc_configuration(found)


def _grpc_configuration(material: Material) -> Any:
    import grpc

    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )


def _context(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would bring a client certificate that nobody has verified again.
    context.num_tickets = 0
    if len(material.certificate) > _PIPE or len(material.key) > _PIPE:
        raise InvalidKey("A certificate with its chain, or a key, has more than 60 KiB.")
    with contextlib.ExitStack() as stack:
        # OpenSSL's loader knows files only; what is in a pipe comes to no disk, not even as swap.
        certificate, key = _piped(material.certificate, stack), _piped(material.key, stack)
        try:
            context.load_cert_chain(certificate, key, password="")
        except (ssl.SSLError, OSError):
            raise InvalidKey("OpenSSL does not take this certificate and its key.") from None
    if material.client_ca is not None:
        try:
            context.load_verify_locations(cadata=material.client_ca.decode())
        except ssl.SSLError:
            raise InvalidKey("OpenSSL does not take these CAs of clients.") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _piped(content: bytes, stack: contextlib.ExitStack) -> str:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    os.write(writing, content)
    os.close(writing)
    return f"/dev/fd/{reading}"
