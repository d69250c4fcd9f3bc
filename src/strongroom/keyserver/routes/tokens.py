"""``/v1/tokens``: who may administer."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Request

from strongroom.keyserver.auth import Auditor, Owner
from strongroom.keyserver.bodies import body_schema, read_model
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.schemas import Empty, NewToken, Token, TokenBody, Tokens
from strongroom.keyserver.services import services
from strongroom.keyserver.store import TokenRecord
from strongroom.release.messages import parse_time, time_text

__all__ = ["router"]

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


def _token(record: TokenRecord) -> Token:
    return Token(
        id=record.id,
        name=record.name,
        role=record.role,  # type: ignore[arg-type]  # checked when it is made
        created=time_text(record.created),
        expires=time_text(record.expires) if record.expires else None,
    )


@router.post(
    "", status_code=201, responses=responses(401, 403, 409, 415), openapi_extra=body_schema(TokenBody)
)
async def add(request: Request, actor: Owner) -> NewToken:
    """A new token; it is told once, here."""
    here = services(request)
    body = await read_model(request, TokenBody, here.config.limits.body_bytes)
    expires = None if body.expires is None else parse_time(body.expires, "The end of the token")
    id, token = await run_sync(here.store.add_token, body.name, body.role, expires, actor)
    return NewToken(id=id, token=token)


@router.get("", responses=responses(401, 403))
async def show(request: Request, actor: Auditor) -> Tokens:
    """What is known of the tokens; not the tokens."""
    here = services(request)
    return Tokens(tokens=[_token(one) for one in await run_sync(here.store.tokens)])


@router.delete("/{id}", responses=responses(401, 403, 404))
async def drop(
    request: Request, actor: Owner, id: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
) -> Empty:
    """A token that is good no more, from this moment on."""
    await run_sync(services(request).store.drop_token, id, actor)
    return Empty()
