"""HTTP for endorsements: bounded in size and time, no redirects, TLS verified, no proxy of the system's."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.errors import MissingEndorsement, Unavailable, UsageError

__all__ = ["Answer", "Web", "check_url"]

TIMEOUT: Final = 10.0
"""Seconds for a whole request: a release waits no longer for an endorsement."""

_ABSENT: Final = frozenset({400, 404, 410})


@dataclass(frozen=True, slots=True)
class Answer:
    """Body and headers; the names of headers in lower case."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


def check_url(url: str, *, tls: bool = False) -> str:
    """``url`` without a slash at its end.

    Args:
        url: of a service.
        tls: it must be https, for what it answers is authenticated by nothing else.

    Raises:
        UsageError: it is none of http and https, has a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ({"https"} if tls else {"http", "https"}) and parts.hostname
        _ = parts.port
    except ValueError:
        usable = None
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{url!r} is not the URL of a source of endorsements.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError("The URL of a source of endorsements has no password, query or fragment.")
    return url.rstrip("/")


class Web:
    """A client.

    Args:
        ca: PEM of the authorities that are believed for TLS, instead of those of the system.
        timeout: seconds for one request as a whole.
    """

    def __init__(self, ca: bytes | None = None, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._tls = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    def get(self, url: str) -> Answer:
        """Fetch ``url``.

        Raises:
            MissingEndorsement: there is nothing.
            Unavailable: no answer in time, an error or a redirection of the server, or more than the
                limit.
        """
        return self._send("GET", url, None, {})

    def post(self, url: str, body: bytes, kind: str) -> Answer:
        """Send ``body`` of the media type ``kind``; otherwise as :meth:`get`."""
        return self._send("POST", url, body, {"Content-Type": kind})

    def _send(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        host = parts.hostname or ""
        connection = self._connection(parts.scheme, host, parts.port)
        # The timeout of a socket starts anew with each byte; this one does not.
        late = threading.Event()
        watch = threading.Timer(self._timeout, _cut, [connection, late])
        watch.daemon = True
        watch.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            content = response.read(MAX_ENDORSEMENTS + 1)
            # A read of a number of bytes does not notice that fewer came than were announced, and
            # headers or a body that were cut look like their end.
            if (len(content) <= MAX_ENDORSEMENTS and response.length) or late.is_set():
                raise http.client.IncompleteRead(b"")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(
                f"{host} does not answer for an endorsement ({type(error).__name__})."
            ) from None
        finally:
            watch.cancel()
            connection.close()
        if response.status in _ABSENT:
            raise MissingEndorsement(f"{host} does not have this endorsement.")
        if response.status != 200:
            raise Unavailable(f"{host} answered {response.status} for an endorsement.")
        if len(content) > MAX_ENDORSEMENTS:
            raise Unavailable(f"{host} sent more than {MAX_ENDORSEMENTS} bytes for an endorsement.")
        return Answer(content, {name.lower(): value for name, value in response.headers.items()})

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """End a connection that another thread reads from."""
    late.set()
    open_socket = connection.sock
    if open_socket is not None:
        with suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)
