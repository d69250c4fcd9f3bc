"""What the connections of both transports have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from strongroom.errors import NotAuthorised, NotFound, ServerUnavailable, StrongroomError, UsageError

__all__ = ["Ask", "Connection", "Failed"]


@dataclass(frozen=True)
class Ask:
    """A request, made before the clock runs.

    Attributes:
        path: of the URL; full name of the method for gRPC.
        body: empty asks with GET.
        headers: of HTTP, beside host and length.
    """

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False)
class Failed(Exception):
    """A request that was not answered as asked.

    Attributes:
        code: ``HTTP 503``, a status of gRPC by name, or ``TIMEOUT``, ``UNREACHABLE``, ``DISCONNECTED``.
        said: words of the server, of which an error says no more than a line.
    """

    code: str
    said: str = field(default="", repr=False)

    @property
    def unreachable(self) -> bool:
        """Nobody has answered."""
        return self.code == "UNREACHABLE"

    def error(self) -> StrongroomError:
        """For a run that it ends."""
        words = " ".join(self.said.split())[:200]
        text = f"The server answers {self.code}" + (f": {words}" if words else "")
        text = text if text.endswith((".", "?", "!")) else text + "."
        match self.code:
            case "UNREACHABLE":
                reason = f": {words}" if words else ""
                return ServerUnavailable(
                    f"The server cannot be reached{reason.rstrip('.')}.",
                    # Words of gRPC.
                    hint="It may be a port of REST: http://HOST:PORT." if "http1.x" in words else None,
                )
            case "TIMEOUT":
                return ServerUnavailable("The server does not answer in time.")
            case "DISCONNECTED":
                return ServerUnavailable(
                    "The server closes the connection without an answer.",
                    hint="A port of gRPC does so: grpc://HOST:PORT. So does one that wants a client's "
                    "certificate: -crt and -key.",
                )
            case "HTTP 404" | "NOT_FOUND":
                return NotFound(text)
            case "HTTP 401" | "HTTP 403" | "UNAUTHENTICATED" | "PERMISSION_DENIED":
                return NotAuthorised(text)
            case "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "RESOURCE_EXHAUSTED" | "HTTP 429" | "INTERNAL":
                return ServerUnavailable(text)
        return ServerUnavailable(text) if self.code.startswith("HTTP 5") else UsageError(text)


class Connection(Protocol):
    """One connection, used for one request at a time."""

    async def ask(self, request: Ask) -> bytes:
        """The body of the answer, or the serialized message.

        Raises:
            Failed: there is none.
        """

    async def close(self) -> None:
        """Give it up."""
