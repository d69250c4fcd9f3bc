"""What KServe's server is short of where clients are not trusted: limits of a body, and who may unload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from strongroom.serving.status import HTTP_STATUS, Code, RequestError

__all__ = ["BodyLimit", "NoControl", "Refusal", "answer_refusal"]

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Refusal(RequestError, GrpcException):  # type: ignore[misc]
    """A refusal that both transports of KServe's server answer with its code."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.status_code = StatusCode[code.name]
        self.details = self.message


async def answer_refusal(request: Request, error: Exception) -> JSONResponse:
    """The answer over HTTP; for ``add_exception_handler``."""
    assert isinstance(error, RequestError)
    return JSONResponse({"error": error.message}, int(HTTP_STATUS[error.code]))


class NoControl(ModelRepositoryExtension):  # type: ignore[misc]
    """Nobody loads or unloads models by requests: what one has unloaded, the SDK does not load again."""

    async def load(self, model_name: str) -> NoReturn:
        raise _no_control()

    async def unload(self, model_name: str) -> NoReturn:
        raise _no_control()


def _no_control() -> Refusal:
    return Refusal(Code.PERMISSION_DENIED, "This server does not let clients load and unload models.")


class BodyLimit:
    """Middleware of ASGI that reads bodies up to a limit; the SDK has none.

    Args:
        app: behind it.
        limit: bytes.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if len(length) > 12 or int(length) > self._limit:
                said = JSONResponse({"error": f"The body has more than {self._limit} bytes."}, 413)
                await said(scope, receive, send)
                return
            receive = self._counted(receive)
        await self._app(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                raise Refusal(Code.INVALID_ARGUMENT, f"The body has more than {self._limit} bytes.")
            return message

        return counted
