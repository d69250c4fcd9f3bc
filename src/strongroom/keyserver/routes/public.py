"""What machines that want keys ask. Whoever they are is for the evidence to prove."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from strongroom.format.encoding import b64url
from strongroom.keyserver.auth import identities
from strongroom.keyserver.bodies import body_schema, read_model, read_object
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.public_keys import public_keys
from strongroom.keyserver.schemas import (
    ChallengeAnswer,
    Empty,
    EndBody,
    RecipientKey,
    ReleaseBody,
    RenewBody,
    Server,
    Signed,
)
from strongroom.keyserver.services import services
from strongroom.keyserver.version import VERSION
from strongroom.release.messages import ReleaseRequest

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["release"])


@router.get("/server", responses=responses())
async def server(request: Request) -> Server:
    """Who this server is. Compare it with the profile that the owner gave; do not trust it instead."""
    here = services(request)
    keys = await run_sync(public_keys, here.store)
    return Server(
        server_id=here.config.server_id,
        signing_key=b64url(keys.signing),
        registration_key=RecipientKey(suite=keys.suite, public_key=b64url(keys.registration)),
        version=VERSION,
        test=here.config.test,
    )


@router.post(
    "/challenge",
    openapi_extra=body_schema(Empty, required=False),
    responses=responses(415),
    response_model=ChallengeAnswer,
)
async def challenge(request: Request) -> JSONResponse:
    """A challenge, good for one request within a minute, at every replica."""
    here = services(request)
    await read_model(request, Empty, here.config.limits.body_bytes, optional=True)
    return JSONResponse(here.release.challenge().to_json())


@router.post(
    "/release",
    openapi_extra=body_schema(ReleaseBody),
    responses=responses(401, 403, 415, 501),
    response_model=Signed,
)
async def release(request: Request) -> JSONResponse:
    """Keys for a machine: each sealed to its one-time key, or refused with a short code.

    The challenge is used up, also where everything is refused. An identity that is no TEE comes as a
    client certificate, or as `Authorization: Bearer` with a token of an issuer that the server knows.
    """
    here = services(request)
    # Before the body, which may be large.
    known = await identities(request)
    asked = ReleaseRequest.from_json(await read_object(request, here.config.limits.release_bytes))
    source = request.client.host if request.client else ""
    return JSONResponse(await here.release.release(asked, known, source))


@router.post(
    "/lease/renew",
    openapi_extra=body_schema(RenewBody),
    responses=responses(415),
    response_model=Signed,
)
async def renew(request: Request) -> JSONResponse:
    """More time for leases, where what was claimed then is acceptable now."""
    here = services(request)
    body = await read_model(request, RenewBody, here.config.limits.body_bytes)
    return JSONResponse(await here.release.renew(body.model_dump()))


@router.post("/lease/end", openapi_extra=body_schema(EndBody), responses=responses(415))
async def end(request: Request) -> Empty:
    """Leases that are given back before their end."""
    here = services(request)
    body = await read_model(request, EndBody, here.config.limits.body_bytes)
    await here.release.end(body.model_dump())
    return Empty()
