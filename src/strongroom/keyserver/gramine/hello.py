"""What a client says in clear while TLS 1.2 begins: whom it means, and its certificate.

OpenSSL verifies a client's certificate against those that it trusts, and Python has no way to say that it
should take any; it does take one that is added to the context before it arrives. In TLS 1.2 it can be seen
coming. What is read here decides nothing: afterwards the certificate is taken from the connection, whose
client has proved to have its key, and the name is no secret and no proof of anything.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Hello", "NotTls"]

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE = 20, 21, 22
_CLIENT_HELLO, _CERTIFICATE = 1, 11
_SERVER_NAME: Final = 0
_MAX_RECORD: Final = 1 << 14
_MAX_CLEAR: Final = 24 << 10
"""Bytes of handshake messages: a hello of half a KB, a certificate of at most 16, and three small ones."""


class NotTls(ValueError):
    """It is not the beginning of a connection of TLS."""


class Hello:
    """Reads records until the client encrypts.

    Attributes:
        name: of the server that the client means, in lower case; None where it says none.
        certificate: DER, once it has come.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.certificate: bytes | None = None
        self._received = bytearray()
        self._messages = bytearray()
        self._size = 0
        self._encrypted = False

    def feed(self, data: bytes) -> bytes:
        """Take what has come; gives what can be handed on, whole records.

        Raises:
            NotTls: it is none, or too large.
        """
        if self._encrypted:
            return data
        self._received += data
        received, at = self._received, 0
        while not self._encrypted and len(received) - at >= 5:
            kind, size = received[at], int.from_bytes(received[at + 3 : at + 5], "big")
            if kind not in (_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE) or not 0 < size <= _MAX_RECORD:
                raise NotTls
            if len(received) - at < 5 + size:
                break
            if kind == _HANDSHAKE:
                self._take(received[at + 5 : at + 5 + size])
            self._encrypted = kind == _CHANGE_CIPHER_SPEC
            at += 5 + size
        end = len(received) if self._encrypted else at
        whole = bytes(received[:end])
        del received[:end]
        return whole

    def _take(self, fragment: bytearray) -> None:
        self._size += len(fragment)
        if self._size > _MAX_CLEAR:
            raise NotTls
        messages = self._messages
        messages += fragment
        while len(messages) >= 4:
            end = 4 + int.from_bytes(messages[1:4], "big")
            if end > _MAX_CLEAR:
                raise NotTls
            if len(messages) < end:
                return
            kind, body = messages[0], bytes(messages[4:end])
            del messages[:end]
            if kind == _CLIENT_HELLO:
                self.name = _server_name(body)
            elif kind == _CERTIFICATE:
                self._take_certificates(body)

    def _take_certificates(self, body: bytes) -> None:
        listed = _Reader(body).vector(3)
        # An empty list is an answer too, and refused by OpenSSL; Gramine sends no chain.
        if listed.left():
            certificate = listed.vector(3).rest()
            if listed.left() or not certificate or self.certificate is not None:
                raise NotTls
            self.certificate = certificate


class _Reader:
    """Reads the vectors of TLS: a length, then so many bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left():
            raise NotTls
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(self.left())


def _server_name(body: bytes) -> str | None:
    hello = _Reader(body)
    hello.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session, ciphers, compression
        hello.vector(size)
    extensions = hello.vector(2) if hello.left() else _Reader(b"")
    while extensions.left():
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = content.vector(2)
            names.number(1)  # host_name: there is no other kind
            text = names.vector(2).rest()
            if names.left() or not text.isascii():
                raise NotTls
            return text.decode().lower()
    return None
