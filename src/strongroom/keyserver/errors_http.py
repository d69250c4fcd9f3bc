"""How failures look over HTTP: one JSON form, a status and a code for each class of the error tree.

The code is the name of the class in small letters (``NotFound`` → ``not-found``), so that a client
can raise the same class. What lies within the server (status 5xx) is never described to a caller.
"""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from strongroom import errors
from strongroom.errors import StrongroomError

__all__ = [
    "ErrorAnswer",
    "HttpError",
    "error_answer",
    "responses",
    "status_and_code",
]


class HttpError(StrongroomError):
    """A refusal that HTTP has a status for and the error tree has no class; ``code`` names it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class Problem(BaseModel):
    """What is wrong, for programs (code) and for people."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(examples=["not-found"])
    message: str = Field(examples=["There is no key resnet50@3."])
    hint: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(extra="forbid")

    error: Problem


_STATUS: Final[tuple[tuple[type[StrongroomError], int], ...]] = (
    (errors.NotFound, 404),
    (errors.AlreadyExists, 409),
    (errors.MissingExtra, 501),
    (errors.UsageError, 400),
    (errors.LimitExceeded, 413),
    (errors.FormatError, 400),
    (errors.InvalidKey, 400),
    (errors.AccessError, 403),
    (errors.IntegrityError, 500),  # of the server's own records
    (errors.EvidenceError, 400),
    (errors.Unavailable, 503),
)
"""The first that fits; a class that is not here is a fault of the server."""

_RETRY_SECONDS: Final = 2
_DESCRIPTIONS: Final = {
    400: "The request is not what it should be.",
    401: "Who asks is not known.",
    403: "Who asks may not do this.",
    404: "There is no such thing.",
    405: "The path knows other methods.",
    408: "The request took too long to arrive.",
    409: "It exists already, or changed meanwhile.",
    413: "The body is larger than what is accepted.",
    415: "The body is not application/json.",
    429: "Too many requests from this address; Retry-After says when to come back.",
    500: "A fault of the server; its log has the request's id.",
    501: "This server lacks the packages for it.",
    503: "The server cannot answer now; Retry-After says when to come back.",
}


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def status_and_code(error: Exception) -> tuple[int, str]:
    """The status and the code for an exception; 500 and ``internal`` for everything unforeseen."""
    if isinstance(error, HttpError):
        return error.status, error.code
    for kind, status in _STATUS:
        if isinstance(error, kind):
            code = (
                error.code if isinstance(error, errors.ReleaseDenied) else _kebab(type(error).__name__)
            )
            return status, code if status != 500 else "internal"
    return 500, "internal"


def error_answer(error: Exception) -> JSONResponse:
    """The answer for an exception."""
    status, code = status_and_code(error)
    message, hint = "The key server failed.", None
    retry_after: int | None = None
    if isinstance(error, HttpError):
        message, hint, retry_after = error.message, error.hint, error.retry_after
    elif status == 503:
        message, hint = "The key server cannot answer now.", "Try again in a moment."
        retry_after = _RETRY_SECONDS
    elif isinstance(error, StrongroomError) and status != 500:
        message, hint = error.message, error.hint
    headers = {}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = {"error": {"code": code, "message": message, "hint": hint}}
    return JSONResponse(body, status_code=status, headers=headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The part of an OpenAPI operation that describes its failures; what any request can meet is added."""
    everywhere = (400, 408, 413, 429, 500, 503)
    return {
        status: {"model": ErrorAnswer, "description": _DESCRIPTIONS[status]}
        for status in sorted({*statuses, *everywhere})
    }
