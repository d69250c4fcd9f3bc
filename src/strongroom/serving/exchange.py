"""An HTTP request that has arrived whole, and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from strongroom.serving.call import Client
from strongroom.serving.status import RequestError

__all__ = ["HttpApi", "HttpRequest", "HttpResponse"]


@dataclass(slots=True)
class HttpRequest:
    """A request; its body is within the limit of the server.

    Attributes:
        path: percent-decoded, without the query.
        query: of the URL, as it came.
        headers: names in lower case.
        cancelled: set when the client has gone.
        held: bytes for which :class:`.bodies.Bodies` counts it.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes | bytearray = b""
    query: bytes = b""
    client: Client = field(default_factory=Client)
    cancelled: bool = False
    held: int = 0


@dataclass(slots=True)  # frozen, it takes three times as long to make
class HttpResponse:
    """An answer.

    Attributes:
        body: whole, or in pieces that follow one another.
        headers: beside content-length, which the server adds.
        model: name and version that answered, for log and numbers.
    """

    status: int
    body: bytes | Sequence[bytes | memoryview] = b""
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)
    model: tuple[str, int] | None = None


class HttpApi(Protocol):
    """One protocol over HTTP."""

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer; failures too, in the form of the protocol."""

    def failure(self, error: RequestError) -> HttpResponse:
        """What the protocol says of a failure that came before :meth:`handle`."""
