"""What can go wrong with a request, in the codes that both protocols share: those of gRPC."""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus
from typing import Final

from strongroom.errors import (
    AccessError,
    EvidenceError,
    FormatError,
    IntegrityError,
    NotFound,
    StrongroomError,
    Unavailable,
    UsageError,
)

__all__ = ["HTTP_STATUS", "Code", "RequestError", "code_of", "code_of_loading"]


class Code(IntEnum):
    """``grpc.StatusCode`` by number, without gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: Final = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FAILED_PRECONDITION: HTTPStatus.PRECONDITION_FAILED,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}
"""As TensorFlow Serving and the gRPC gateways map them."""


class RequestError(StrongroomError):
    """A request that is not answered as asked; the message is for the client.

    Attributes:
        code: why.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> Code:
    """The code for any exception; what nobody foresaw is INTERNAL."""
    if isinstance(error, RequestError):
        return error.code
    if isinstance(error, UsageError):
        return Code.INVALID_ARGUMENT
    if isinstance(error, Unavailable):
        return Code.UNAVAILABLE
    return Code.INTERNAL


def code_of_loading(error: BaseException) -> Code:
    """The code in the status of a version that could not be loaded."""
    if isinstance(error, NotFound):
        return Code.NOT_FOUND
    for kind, code in (
        (Unavailable, Code.UNAVAILABLE),
        (AccessError, Code.PERMISSION_DENIED),
        (EvidenceError, Code.PERMISSION_DENIED),
        (IntegrityError, Code.DATA_LOSS),
        (FormatError, Code.INVALID_ARGUMENT),
        (UsageError, Code.FAILED_PRECONDITION),
    ):
        if isinstance(error, kind):
            return code
    return Code.INTERNAL
