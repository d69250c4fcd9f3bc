"""Asks a server whether it is ready, until it is."""

from __future__ import annotations

import http.client
import ssl
import threading
from typing import Final
from urllib.parse import urlsplit

from strongroom.errors import UsageError

__all__ = ["Readiness"]

_PAUSE: Final = 0.5
_TIMEOUT: Final = 5.0
_PORTS: Final = {"http": 80, "https": 443}


class Readiness:
    """A readiness endpoint.

    Args:
        url: HTTP or HTTPS. The certificate is not verified, as with the probes of Kubernetes: it names
            another host than this one, and who lies about it gains no plaintext.

    Raises:
        UsageError: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme not in _PORTS or not host:
            raise UsageError(
                "What says that the command is ready is no URL.",
                hint="Write http://127.0.0.1:8000/v2/health/ready.",
            )
        self._tls = parts.scheme == "https"
        self._host, self._port = host, port or _PORTS[parts.scheme]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _connection(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=context)

    def now(self) -> bool:
        """Whether it answers 200."""
        connection = self._connection()
        try:
            connection.request("GET", self._path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait(self, stop: threading.Event) -> bool:
        """Ask until it answers 200; False if ``stop`` was set before."""
        while not self.now():
            if stop.wait(_PAUSE):
                return False
        return True
