"""Where the load goes, and how it is secured."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from strongroom.errors import InvalidKey, UsageError, os_errors

__all__ = ["Security", "Target", "parse_target"]

_PORTS: Final = {"http": 80, "https": 443, "grpc": 8500, "grpcs": 8500}
_HANDSHAKE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Security:
    """What TLS needs; all as PEM.

    Attributes:
        ca: of the servers that are believed; None: those that the system believes.
        certificate: of this client, with those above it.
        key: of that certificate.
        files: of certificate and key, as Python's ``ssl`` wants them.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    files: tuple[str, str] | None = None

    @classmethod
    def read(cls, ca: str | None, certificate: str | None, key: str | None) -> Security:
        """From files. A certificate alone is that of the server's CA, as with TensorFlow Serving's clients.

        Raises:
            UsageError: a key without a certificate, or the other way round.
            NotFound: there is no such file.
        """
        if key is None and ca is None:
            ca, certificate = certificate, None
        if certificate is None or key is None:
            if certificate is not key:
                raise UsageError("A client's certificate and its key go together: -crt and -key.")
            return cls(_read(ca))
        return cls(_read(ca), _read(certificate), _read(key), (certificate, key))

    def context(self) -> ssl.SSLContext:
        """For HTTP.

        Raises:
            InvalidKey: what is in the files is not what it should be.
        """
        try:
            context = ssl.create_default_context(cadata=None if self.ca is None else self.ca.decode())
        except (ssl.SSLError, ValueError):
            raise InvalidKey("-ca, or -crt without -key, holds no certificates in PEM.") from None
        if self.files is not None:
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(*self.files, password=b"")
            except (ssl.SSLError, ValueError):
                raise InvalidKey(
                    "-crt and -key are not a certificate and its key, in PEM and without a passphrase."
                ) from None
        return context


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with os_errors(path):
        return Path(path).read_bytes()


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        grpc: or REST.
        secure: over TLS.
        path: before that of the protocol, without a slash at its end.
    """

    grpc: bool
    secure: bool
    host: str
    port: int
    path: str = ""

    @property
    def address(self) -> str:
        """Host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    async def other(self) -> str | None:
        """What is wrong with a URL whose server speaks TLS where that has none, or the other way round.

        A handshake tells the two apart, whatever words a connection fails with. Nothing is sent over it,
        and whoever answers is believed as much as needed to say so.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                _, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
            writer.transport.abort()
            speaks = True
        except ssl.SSLError:
            speaks = False
        except (OSError, TimeoutError):
            return None
        if speaks == self.secure:
            return None
        if speaks:
            return f"It speaks TLS: {self._scheme(True)}, and its CA with -ca."
        return f"It speaks no TLS: {self._scheme(False)}, without -ca, -crt and -key."

    def _scheme(self, secure: bool) -> str:
        return f"{'grpc' if self.grpc else 'http'}{'s' if secure else ''}://{self.address}{self.path}"


def parse_target(url: str, *, secure: bool) -> Target:
    """The server of a URL: http, https, grpc or grpcs; without a scheme gRPC.

    Args:
        url: with a port, unless it is the usual one (gRPC: 8500).
        secure: whether TLS is meant where there is no scheme.

    Raises:
        UsageError: it is none.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("The URL is none: it has characters that no URL has.")
    if "://" not in url:
        url = f"{'grpcs' if secure else 'grpc'}://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("The URL is none.") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise UsageError("The URL is none.", hint="http://HOST:PORT, https://…, grpc://… or grpcs://…")
    if parts.username is not None:
        raise UsageError("A URL with a user's name or password is not taken.", hint="--token-file")
    grpc = parts.scheme.startswith("grpc")
    if grpc and parts.path.strip("/"):
        raise UsageError("A gRPC server has no path.")
    if secure and not parts.scheme.endswith("s"):
        raise UsageError(f"-ca, -crt and -key are for TLS, and {parts.scheme} has none.")
    return Target(
        grpc=grpc,
        secure=parts.scheme.endswith("s"),
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        path=parts.path.rstrip("/"),
    )
