"""Bodies of requests: bounded, JSON, strict, before anything is done with them."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from strongroom.errors import UsageError
from strongroom.format.encoding import parse_json
from strongroom.keyserver.errors_http import HttpError
from strongroom.keyserver.limits import too_large

__all__ = ["body_schema", "model_of", "object_of", "read_model", "read_object"]

Model = TypeVar("Model", bound=BaseModel)


async def read_object(request: Request, limit: int, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object that is the body.

    Args:
        request: of which nothing has been read.
        limit: bytes that the body may have.
        optional: no body is an empty object.

    Raises:
        HttpError: 413 larger, 415 not said to be JSON, 400 the client is gone.
        UsageError: not a JSON object.
    """
    if int(request.headers.get("content-length", 0)) > limit:  # digits: the guard has looked
        raise too_large(limit)
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise too_large(limit)
    except ClientDisconnect:
        raise HttpError(400, "disconnected", "The request was not sent to its end.") from None
    return object_of(bytes(data), request.headers.get("content-type", ""), optional=optional)


def object_of(data: bytes, content_type: str, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object that a body is; errors as for :func:`read_object`.

    Args:
        data: the whole body.
        content_type: of the request; empty where it says none.
        optional: no body is an empty object.
    """
    if optional and not data:
        return {}
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "unsupported-media-type", "The body is not application/json.")
    try:
        return parse_json(data)
    except ValueError as error:
        # Not the error itself: its context holds the body.
        problem = str(error)
    raise UsageError(f"The body {problem}.")


async def read_model(
    request: Request, kind: type[Model], limit: int, *, optional: bool = False
) -> Model:
    """The body as ``kind``; arguments and errors as for :func:`read_object`.

    Raises:
        UsageError: a member is missing, unknown or not what it should be; says which.
    """
    return model_of(await read_object(request, limit, optional=optional), kind)


def model_of(value: dict[str, Any], kind: type[Model]) -> Model:
    """``value`` as ``kind``; errors as for :func:`read_model`."""
    try:
        return kind.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # Names of members that a caller made up are not repeated.
        known = kind.model_fields
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
        problem = first["msg"] if first["type"] != "extra_forbidden" else "an unknown member"
    raise UsageError(f"The body is not valid: {where + ': ' if where else ''}{problem}.")


def body_schema(kind: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What describes a body that :func:`read_model` reads in the OpenAPI document."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
