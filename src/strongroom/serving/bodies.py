"""Bodies of requests over HTTP, within limits: of one, and of all that wait for their answers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from strongroom.serving.settings import RequestLimits
from strongroom.serving.status import Code, RequestError

__all__ = ["Bodies", "Receive", "Refusal"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Refusal(Exception):
    """What no protocol has a code for.

    Attributes:
        status: of HTTP.
        message: why.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class Bodies:
    """All bodies of a server.

    Args:
        limits: of a request.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._held = 0
        self._most_held = max(limits.bytes, limits.bytes_held)

    def hold(self, body: bytes | bytearray) -> None:
        """Count a body until :meth:`release`, which follows whatever this says.

        Raises:
            RequestError: RESOURCE_EXHAUSTED: others fill the memory.
        """
        self._held += len(body)
        self._check_room()

    def release(self, body: bytes | bytearray) -> None:
        """Its request has been answered."""
        self._held -= len(body)

    def _check_room(self) -> None:
        if self._held > self._most_held:
            raise RequestError(Code.RESOURCE_EXHAUSTED, "The bodies of other requests fill the memory.")

    async def read(
        self, headers: dict[bytes, bytes], receive: Receive, complete: bool
    ) -> bytes | bytearray:
        """A body as it was sent.

        Args:
            headers: of its request.
            receive: of ASGI.
            complete: it is there whole.

        Raises:
            Refusal, RequestError: it is too large, too slow, or one too many.
            CancelledError: the client has gone.
        """
        limit = self._limits.bytes
        length = headers.get(b"content-length", b"0")
        if len(length) > 12 or int(length) > limit:
            raise _too_large(limit)
        if complete:  # a timer costs 8 µs
            return await self._whole(receive, limit)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._whole(receive, limit)
        except TimeoutError:
            raise Refusal(408, "The request took too long to arrive.") from None

    async def _whole(self, receive: Receive, limit: int) -> bytes | bytearray:
        message = await receive()
        body: bytes | bytearray = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            if len(body) > limit:
                raise _too_large(limit)
            return body
        body, held = bytearray(body), 0
        try:
            while message["type"] == "http.request":
                self._held += len(body) - held
                held = len(body)
                if held > limit:
                    raise _too_large(limit)
                self._check_room()
                if not message.get("more_body"):
                    return body
                message = await receive()
                body += message.get("body", b"")
        finally:
            self._held -= held
        raise asyncio.CancelledError  # it disconnected

    def unpack(self, headers: dict[bytes, bytes], body: bytes | bytearray) -> bytes | bytearray:
        """A body without the packing that its headers name, and name no more.

        Raises:
            Refusal, RequestError: it is too large unpacked, or cannot be.
        """
        coding = headers[b"content-encoding"].lower()
        if coding == b"identity":
            return body
        found = _unpacked(body, coding, self._limits.bytes)
        del headers[b"content-encoding"]
        return found


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The body has more than {limit} bytes.")


def _unpacked(body: bytes | bytearray, coding: bytes, limit: int) -> bytes:
    if coding not in (b"gzip", b"deflate"):
        raise Refusal(415, "A body is sent as it is, or packed with gzip or deflate.")
    unpacker = zlib.decompressobj(31 if coding == b"gzip" else 15)
    try:
        found = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"The body is not what {coding.decode()} makes."
        ) from None
    if len(found) > limit:
        raise _too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(Code.INVALID_ARGUMENT, f"The body is not one whole {coding.decode()}.")
    return found
