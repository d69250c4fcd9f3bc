"""HTTP/2 by hand, to send what no client of gRPC does: calls that stop in the middle, and messages without end."""

from __future__ import annotations

import socket
import struct

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Connection:
    """One connection; streams have odd numbers."""

    def __init__(self, port: int, timeout=60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        try:
            self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            self.send(SETTINGS, 0, 0, b"")
        except OSError:  # closed by the server, before a word
            self.socket.close()
            raise
        self._buffer = b""
        self._stream = -1

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.socket.close()

    def send(self, kind, flags, stream, content) -> None:
        self.socket.sendall(
            len(content).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + content
        )

    def call(self, method: str, *, end=False) -> int:
        """Begin a call; the number of its stream."""
        self._stream += 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        self.send(HEADERS, END_HEADERS | (END_STREAM if end else 0), self._stream, block)
        return self._stream

    def message(self, stream, content, length=None, *, end=False) -> None:
        """The head of a message that says how long it is, and content."""
        size = len(content) if length is None else length
        self.send(DATA, END_STREAM if end else 0, stream, b"\0" + size.to_bytes(4, "big") + content)

    def frames(self):
        """What comes, until the end: kind, flags, stream, content."""
        while True:
            while len(self._buffer) < 9:
                data = self.socket.recv(65536)
                if not data:
                    return
                self._buffer += data
            size = int.from_bytes(self._buffer[:3], "big")
            while len(self._buffer) < 9 + size:
                data = self.socket.recv(65536)
                if not data:
                    return
                self._buffer += data
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            content, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            if kind == SETTINGS and not flags & ACK:
                self.send(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                self.send(PING, ACK, 0, content)
            yield kind, flags, stream, content

    def until_ended(self, stream) -> None:
        """Wait until a call has ended, one way or another."""
        for kind, flags, found, _ in self.frames():
            if kind == GOAWAY:
                return
            if found == stream and (kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM)):
                return
