"""An HTTP request that has arrived whole, and its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strongroom.errors import StrongroomError
from strongroom.serving.call import Client
from strongroom.serving.status import RequestError, code_of

__all__ = ["Answering", "HttpApi", "HttpRequest", "HttpResponse"]


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
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)
    model: tuple[str, int] | None = None


Answering = HttpResponse | Coroutine[Any, Any, HttpResponse]
"""An answer, or what gives it where something has to be waited for: to go through a coroutine takes 1 µs."""


class HttpApi(ABC):
    """One protocol over HTTP."""

    @abstractmethod
    def answer(self, request: HttpRequest) -> Answering:
        """Answer.

        Raises:
            StrongroomError: what :meth:`begin` makes a failure of.
        """

    @abstractmethod
    def failure(self, error: RequestError) -> HttpResponse:
        """What the protocol says of a failure."""

    def begin(self, request: HttpRequest) -> Answering:
        """Answer; failures too, in the form of the protocol."""
        try:
            found = self.answer(request)
        except StrongroomError as error:
            return self._failed(error)
        return found if isinstance(found, HttpResponse) else self._wait(found)

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """As :meth:`begin`, for who can wait."""
        found = self.begin(request)
        return found if isinstance(found, HttpResponse) else await found

    async def _wait(self, work: Coroutine[Any, Any, HttpResponse]) -> HttpResponse:
        try:
            return await work
        except StrongroomError as error:
            return self._failed(error)

    def _failed(self, error: StrongroomError) -> HttpResponse:
        if not isinstance(error, RequestError):
            error = RequestError(code_of(error), error.message)
        return self.failure(error)
