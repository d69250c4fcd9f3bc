"""Bodies of requests over HTTP, within limits: of one, and of all that wait for their answers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from strongroom.serving.exchange import HttpRequest
from strongroom.serving.settings import RequestLimits
from strongroom.serving.status import Code, RequestError

__all__ = ["Bodies", "Receive", "Refusal"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


_SHORT: Final = 4096
"""Bytes of JSON that are too few to be counted."""

_HEADER_LENGTH: Final = b"inference-header-content-length"


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

    def hold(self, request: HttpRequest) -> None:
        """Count a body, and the tensors that it becomes, until :meth:`release`, which follows whatever
        this says.

        Raises:
            Refusal: its JSON would take too much memory while it is read.
            RequestError: RESOURCE_EXHAUSTED: others fill the memory.
        """
        request.held = len(request.body)
        if request.held > _SHORT:
            request.held += self._grown(request)
        self._held += request.held
        self._check_room()

    def release(self, request: HttpRequest) -> None:
        """It has been answered."""
        self._held -= request.held

    def _grown(self, request: HttpRequest) -> int:
        """Bytes of the tensors that are in the JSON of a body.

        Python's values are larger than their text, an empty list 24 times, and are there while a body is
        read; a number then takes 8 bytes of a tensor, and a text an object of 64.
        """
        body = request.body
        end = _json_size(request)
        values, texts = body.count(b",", 0, end), body.count(b'"', 0, end)
        lists = body.count(b"[", 0, end) + body.count(b"{", 0, end)
        if 88 * lists + 32 * values + 48 * texts > self._limits.json_bytes:
            raise Refusal(
                413,
                f"Read as JSON, the body would take more than {self._limits.json_bytes} bytes. Send "
                "tensors as binary data (Inference-Header-Content-Length), or over gRPC.",
            )
        return 8 * values + 32 * texts

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

    def unpack(self, request: HttpRequest) -> None:
        """Take the packing from a body that its headers name, and the name from them.

        Raises:
            Refusal, RequestError: it is too large unpacked, or cannot be.
        """
        headers = dict(request.headers)
        coding = headers.pop(b"content-encoding").lower()
        if coding != b"identity":
            request.body, request.headers = _unpacked(request.body, coding, self._limits.bytes), headers


def _json_size(request: HttpRequest) -> int:
    """How much of a body is JSON: all of it, or what stands before binary tensors."""
    size = len(request.body)
    length = request.headers.get(_HEADER_LENGTH)
    # Other endpoints read all of it, whatever is in the header.
    if length is None or not (request.path.startswith("/v2/") and request.path.endswith("/infer")):
        return size
    return min(size, int(length)) if length.isdigit() and len(length) <= 18 else 0


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
