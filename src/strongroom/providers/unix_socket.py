"""The key cache of this machine as a source of keys: ``unix:///run/strongroom/keys.sock``.

A message is the size of a JSON object (4 bytes, big-endian), the object, and, in an answer that gives
a key, its 32 raw bytes, which go straight into locked memory.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterable
from typing import Any, Final

from strongroom import errors
from strongroom.crypto.derive import DEK_SIZE
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    NoMatchingRecipient,
    NotAuthorised,
    ReleaseDenied,
    ServerUnavailable,
    StrongroomError,
    UsageError,
    os_errors,
)
from strongroom.format.encoding import dump_json, parse_json
from strongroom.format.header import Header
from strongroom.providers.keyserver.denial import denied
from strongroom.providers.keyserver.source import wanted_keys
from strongroom.release.binding import WantedKey

__all__ = ["MAX_ANSWER", "MAX_REQUEST", "KeyCache", "error_message", "frame", "socket_path"]

MAX_REQUEST: Final = 4096
"""Bytes of a request's JSON: a name has at most 200."""

MAX_ANSWER: Final = 1 << 20
"""Bytes of an answer's JSON: the status of four thousand leases is the largest."""

_TIMEOUT: Final = 120.0
"""Seconds: behind the cache are an attestation and a release, each tried a few times."""

_PEERCRED: Final = struct.Struct("3i")

_CLASSES: Final[dict[str, type[StrongroomError]]] = {
    "not-authorised": errors.NotAuthorised,
    "untrusted-answer": errors.UntrustedAnswer,
    "usage-error": errors.UsageError,
    "unavailable": errors.ServerUnavailable,
}


def socket_path(uri: str) -> str:
    """``unix:///run/strongroom/keys.sock`` → the path.

    Raises:
        UsageError: it is no such URI.
    """
    rest = uri.removeprefix("unix:")
    path = rest.removeprefix("//") if rest.startswith("///") else rest
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise UsageError(
            "This is not the socket of a key cache.", hint="Write unix:///run/strongroom/keys.sock."
        )
    return path


def frame(message: dict[str, Any]) -> bytes:
    """A message, without the key that may follow it."""
    data = dump_json(message)
    return len(data).to_bytes(4, "big") + data


class KeyCache:
    """Opens models by the key cache behind a socket. To seal with, it is no use.

    Args:
        uri: ``unix:///run/strongroom/keys.sock``.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, uri: str, *, timeout: float = _TIMEOUT) -> None:
        self._path = socket_path(uri)
        self._timeout = timeout

    def unwrap(self, header: Header) -> SecretBytes:
        wanted = [one for _, one in wanted_keys(header)]
        if not wanted:
            raise NoMatchingRecipient("The model is in no key server, and so not in the key cache.")
        return self.first(wanted)

    def first(self, wanted: Iterable[WantedKey]) -> SecretBytes:
        """The first of these keys that the cache gives.

        Raises:
            ReleaseDenied: none is released to this machine; the reason for the first of them.
            NotAuthorised: this user or program may not ask.
            ServerUnavailable: the cache does not answer, or cannot now.
        """
        refused: ReleaseDenied | None = None
        for one in wanted:
            try:
                return self.key(one)
            except ReleaseDenied as error:
                refused = refused or error
        raise refused or UsageError("No key is asked for.")

    def key(self, wanted: WantedKey) -> SecretBytes:
        """One key.

        Raises:
            ReleaseDenied, NotAuthorised, ServerUnavailable: as for :meth:`first`.
        """
        dek = SecretBytes.zeros(DEK_SIZE)
        answer = self._ask({"v": 1, "op": "key", **wanted.to_json()}, dek)
        if answer.get("key") != DEK_SIZE:
            raise _no_cache(self._path)
        return dek

    def status(self) -> dict[str, Any]:
        """What the cache says of itself: leases, without keys.

        Raises:
            NotAuthorised, ServerUnavailable: as for :meth:`first`.
        """
        return self._ask({"v": 1, "op": "status"}, None)

    def _ask(self, request: dict[str, Any], dek: SecretBytes | None) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            try:
                connection.connect(self._path)
            except PermissionError:
                raise NotAuthorised(
                    f"This user may not ask the key cache at {self._path}.",
                    hint="Its socket is for the users and the group that its operator chose.",
                ) from None
            except OSError as error:
                raise ServerUnavailable(
                    f"There is no key cache at {self._path}: {os.strerror(error.errno or 0).lower()}.",
                    hint="Start it: strongroom keycache run",
                ) from None
            _check_owner(connection, self._path)
            try:
                connection.sendall(frame(request))
                size = int.from_bytes(_exactly(connection, 4), "big")
                if size > MAX_ANSWER:
                    raise _no_cache(self._path)
                answer = parse_json(_exactly(connection, size))
                if "error" not in answer and dek is not None:
                    _fill(connection, dek.buffer)
            except TimeoutError:
                raise ServerUnavailable("The key cache does not answer in time.") from None
            except OSError as error:
                raise ServerUnavailable(
                    f"The key cache at {self._path} broke off: {os.strerror(error.errno or 0).lower()}."
                ) from None
            except ValueError:
                raise _no_cache(self._path) from None
        if "error" in answer:
            raise _error(answer["error"], request.get("name"))
        return answer

    def __repr__(self) -> str:
        return f"<KeyCache {self._path}>"


def _no_cache(path: str) -> ServerUnavailable:
    return ServerUnavailable(f"What listens at {path} does not answer as a key cache does.")


def _fill(connection: socket.socket, buffer: memoryview) -> None:
    while buffer:
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionResetError(104, "closed")
        buffer = buffer[count:]


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _fill(connection, memoryview(data))
    return bytes(data)


def _check_owner(connection: socket.socket, path: str) -> None:
    """Refuse a socket that somebody else has put in the place of the cache's.

    Whoever owns the directory decides what lies there; root and this user could do anything anyway.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    uid = _PEERCRED.unpack(raw)[1]
    with os_errors(path):
        folder = os.stat(os.path.dirname(path))
    if uid not in (0, os.geteuid(), folder.st_uid) or folder.st_mode & stat.S_IWOTH:
        raise NotAuthorised(
            f"What listens at {path} was put there by user {uid}, in a directory that is not theirs alone.",
            hint="A key cache has a directory of its own, such as /run/strongroom.",
        )


def error_message(error: StrongroomError) -> dict[str, Any]:
    """The answer of a cache that fails; a client raises it as the same class."""
    said = {"code": "unavailable", "message": error.message, "hint": error.hint}
    if isinstance(error, ReleaseDenied):
        said |= {"code": "release-denied", "reason": error.code}
    for code, kind in _CLASSES.items():
        if isinstance(error, kind):
            said["code"] = code
    return {"v": 1, "error": said}


def _error(said: object, name: object) -> StrongroomError:
    said = said if isinstance(said, dict) else {}
    code, reason, message, hint = (said.get(one) for one in ("code", "reason", "message", "hint"))
    if code == "release-denied" and isinstance(reason, str):
        return denied(reason, name)
    kind = _CLASSES.get(code, ServerUnavailable) if isinstance(code, str) else ServerUnavailable
    return kind(
        message if isinstance(message, str) else "The key cache failed.",
        hint=hint if isinstance(hint, str) else None,
    )
