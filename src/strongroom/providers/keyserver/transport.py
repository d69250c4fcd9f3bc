"""HTTPS to a key server: TLS 1.3, the CA of the profile, bounded answers, retries with back-off."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import select
import ssl
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from strongroom.errors import (
    InvalidKey,
    NotAuthorised,
    ServerUnavailable,
    StrongroomError,
    UntrustedAnswer,
    UsageError,
    os_errors,
)
from strongroom.format.encoding import dump_json, parse_json
from strongroom.providers.keyserver.backoff import delay, retry_after_seconds
from strongroom.providers.keyserver.problems import error_of
from strongroom.providers.keyserver.profile import Profile

__all__ = ["Again", "Transport"]

_T = TypeVar("_T")

_TIMEOUT: Final = 15.0
"""Seconds for a connection, and again for an answer: a release takes well below one."""

_MAX_BODY: Final = 16 << 20
"""Bytes of an answer: a page of the audit trail is the largest; a release has at most 1 MiB."""

_MAX_TOKEN: Final = 16 << 10
_ATTEMPTS: Final = 5
# Nothing happens twice when these arrive twice.
_REPEATABLE: Final = frozenset({"/v1/challenge", "/v1/lease/renew", "/v1/lease/end"})
_PUBLIC: Final = _REPEATABLE | {"/v1/server", "/v1/release"}
_ADMIN_TOKEN: Final = "srt_"

# By OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_HINTS: Final = {
    9: "Look at the clocks of this machine and of the server.",
    10: "Its owner renews it (strongroom keyserver renew-certificate). Or the clock of this machine is wrong.",
}


class Again(Exception):
    """The server was not reached, or cannot answer now; asking again may help.

    Attributes:
        error: what to raise when nobody asks again.
        sent: the request may have been carried out.
        retry_after: seconds that the server wants to be left alone.
    """

    def __init__(self, error: StrongroomError, *, sent: bool = False, retry_after: float = 0.0) -> None:
        super().__init__()
        self.error = error
        self.sent = sent
        self.retry_after = retry_after


def _context(profile: Profile) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if profile.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=profile.ca)
        except (ssl.SSLError, ValueError):
            raise UsageError("The CA in the profile of the key server is no certificate.") from None
    if profile.client_certificate is not None:
        with os_errors(profile.client_certificate):
            try:
                # With no password there would be a prompt for an encrypted key.
                context.load_cert_chain(
                    profile.client_certificate, profile.client_key, password=lambda: ""
                )
            except ssl.SSLError:
                raise InvalidKey(
                    f"{profile.client_certificate} is no certificate with a key that fits."
                ) from None
    return context


class Transport:
    """Requests to one server. One connection is kept and used again; threads take turns.

    Args:
        profile: whom to talk to.
        timeout: seconds for connecting, and again for each answer.
        attempts: how often a request is made at most where the server cannot answer.
        sleep: waits between attempts.
        chance: gives the jitter, uniform in [0, 1).
    """

    def __init__(
        self,
        profile: Profile,
        *,
        timeout: float = _TIMEOUT,
        attempts: int = _ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.profile = profile
        parts = urlsplit(profile.address)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._context = _context(profile)
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._chance = chance
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None
    ) -> dict[str, Any]:
        """Ask, and give the JSON object of the answer.

        Where the server is not reached or says that it cannot now, it is asked again a few times; a
        request that may have been carried out, and must not be twice, is not.

        Args:
            body: JSON, for methods that have one.
            token: sent as ``Authorization: Bearer``; by default that of the profile's file. A token
                of an administrator is not shown where machines ask for keys.

        Raises:
            ServerUnavailable: no answer, or none that can be used.
            StrongroomError: the error that the server answered with.
        """
        repeatable = method == "GET" or path.partition("?")[0] in _REPEATABLE

        def ask() -> dict[str, Any]:
            try:
                return self.once(method, path, body, token=token)
            except Again as again:
                if again.sent and not repeatable:
                    raise again.error from None
                raise

        return self.retrying(ask)

    def retrying(self, call: Callable[[], _T]) -> _T:
        """Give what ``call`` gives; call it again, a few times, after it raises :class:`Again`."""
        for attempt in range(self._attempts):
            try:
                return call()
            except Again as again:
                error, wait = again.error, delay(attempt, self._chance(), again.retry_after)
            if attempt + 1 < self._attempts:
                self._sleep(wait)
        raise error

    def once(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None
    ) -> dict[str, Any]:
        """As :meth:`request`, without asking again.

        Raises:
            Again: no answer, or the server says that it cannot now.
            StrongroomError: as for :meth:`request`.
        """
        headers = {"Accept": "application/json"}
        if token is None:
            token = self._token(path)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            data = dump_json(body)
            headers["Content-Type"] = "application/json"
        with self._lock:
            return self._exchange(method, path, data, headers)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _token(self, path: str) -> str | None:
        bare = path.partition("?")[0]
        if self.profile.token_file is None or (bare in _PUBLIC and bare != "/v1/release"):
            return None
        token = _read_token(self.profile.token_file)
        return None if bare in _PUBLIC and token.startswith(_ADMIN_TOKEN) else token

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout, context=self._context
        )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise UntrustedAnswer(
                f"{self.profile.address} has a certificate that the profile of the key server does not "
                f"vouch for: {error.verify_message}.",
                hint=_HINTS.get(
                    error.verify_code,
                    "If the server was set up anew, fetch its profile from its owner again.",
                ),
            ) from None
        except OSError as error:
            connection.close()
            raise Again(self._unreachable(error)) from None
        return connection

    def _unreachable(self, error: Exception) -> ServerUnavailable:
        reason = error.strerror if isinstance(error, OSError) and error.errno else str(error)
        return ServerUnavailable(
            f"The key server {self.profile.address} does not answer: {(reason or 'no reason').lower()}.",
            hint="Look whether it runs, and whether this machine can reach it.",
        )

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> dict[str, Any]:
        if self._connection is not None and _closed(self._connection):
            self._drop()
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
            raw = self._read(response, self._connection)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise Again(self._unreachable(error), sent=True) from None
        except BaseException:
            self._drop()
            raise
        if response.will_close:
            self._drop()
        return self._answer(response, raw)

    def _read(
        self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection
    ) -> bytes:
        content, end = bytearray(), time.monotonic() + self._timeout
        while chunk := response.read1(64 << 10):
            content += chunk
            left = end - time.monotonic()
            if len(content) > _MAX_BODY:
                raise ServerUnavailable("The key server gives an answer that is too long.")
            if left <= 0:
                raise TimeoutError("timed out")
            if connection.sock is not None:
                connection.sock.settimeout(left)
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout)
        response.close()  # read1 leaves it open at the end in Python 3.11, and the connection busy
        return bytes(content)

    def _answer(self, response: http.client.HTTPResponse, raw: bytes) -> dict[str, Any]:
        body: dict[str, Any] | None = None
        with contextlib.suppress(ValueError):
            body = parse_json(raw)
        if response.status in (429, 503):
            wait = retry_after_seconds(response.headers.get("Retry-After"))
            raise Again(error_of(response.status, body), retry_after=wait)
        if response.status >= 300:
            raise error_of(response.status, body)
        if response.status == 204 and not raw:
            return {}
        if body is None:
            raise ServerUnavailable(
                f"{self.profile.address} does not answer as a key server does.",
                hint="Look at the URL in the profile, and at what stands between.",
            )
        return body


def _closed(connection: http.client.HTTPSConnection) -> bool:
    """Whether the server has ended a connection that was kept: nothing else makes it readable."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _read_token(path: str) -> str:
    with os_errors(path), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        raw = file.read(_MAX_TOKEN + 1).strip()
    if not raw or len(raw) > _MAX_TOKEN or not raw.isascii() or not raw.decode().isprintable():
        raise InvalidKey(f"{path} holds no token.")
    token = raw.decode()
    # Kubernetes mounts the short-lived tokens of a pod readable by everyone in it.
    if token.startswith(_ADMIN_TOKEN) and stat.S_IMODE(status.st_mode) & 0o077:
        raise NotAuthorised(f"{path} can be read by others.", hint=f"chmod 600 {path}")
    return token
