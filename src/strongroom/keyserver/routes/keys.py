"""``/v1/keys``: what an owner does with keys. No route gives one away."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from anyio.to_thread import run_sync
from cryptography.exceptions import InvalidTag
from fastapi import APIRouter, Query, Request

from strongroom.crypto.derive import DEK_SIZE
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import InvalidKey
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.keyserver.auth import Auditor, Operator, must_be
from strongroom.keyserver.bodies import body_schema, read_model
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.public_keys import REGISTRATION_KEM
from strongroom.keyserver.schemas import NAME, AddKeyBody, Key, Keys, KeyStateBody, RotateBody
from strongroom.keyserver.services import services
from strongroom.keyserver.store import KeyRecord, Store
from strongroom.providers.admin import registration_info
from strongroom.release.messages import time_text
from strongroom.release.names import KeyName

__all__ = ["router"]


router = APIRouter(prefix="/v1/keys", tags=["keys"])


def _key(record: KeyRecord) -> Key:
    return Key(
        name=record.name,
        version=record.version,
        bundle=b64url(record.bundle),
        state=record.state,  # type: ignore[arg-type]  # checked when it is made
        current=record.current,
        created=time_text(record.created),
        reason=record.reason,
        meta=dict(record.meta),
    )


def _open(store: Store, server_id: str, body: AddKeyBody) -> SecretBytes:
    key = KeyName(body.name, body.version)
    info = registration_info(server_id, key, unb64url_text(body.bundle))
    dek: SecretBytes | None = None
    with suppress(InvalidTag, ValueError):
        sealed = unb64url_text(body.encrypted_key)
        dek = REGISTRATION_KEM.open(sealed, store.secret("registration"), info)
    if dek is None or len(dek) != DEK_SIZE:
        raise InvalidKey(
            "The key does not open: it is not sealed for this server, name, version and bundle.",
            hint="Compare the registration key and the id of the server in the profile with the server's.",
        )
    return dek


@router.post(
    "", status_code=201, responses=responses(401, 403, 409, 415), openapi_extra=body_schema(AddKeyBody)
)
async def add(request: Request, actor: Operator) -> Key:
    """Register a key, sealed to the registration key with
    `strongroom/v1/register` ‖ 0x00 ‖ canonical JSON of `{server_id, name, version, bundle}`.
    """
    here = services(request)
    body = await read_model(request, AddKeyBody, here.config.limits.body_bytes)

    def work() -> KeyRecord:
        with _open(here.store, here.config.server_id, body) as dek:
            bundle = unb64url_text(body.bundle)
            return here.store.add_key(body.name, body.version, bundle, dek, actor, body.meta)

    return _key(await run_sync(work))


@router.get("", responses=responses(401, 403))
async def show(
    request: Request,
    actor: Auditor,
    name: Annotated[str | None, Query(max_length=200, pattern=NAME)] = None,
) -> Keys:
    """All versions of all keys, or of one."""
    found = await run_sync(services(request).store.keys, name)
    return Keys(keys=[_key(one) for one in found])


@router.post(
    "/state", responses=responses(401, 403, 404, 409, 415), openapi_extra=body_schema(KeyStateBody)
)
async def set_state(request: Request, actor: Operator) -> Key:
    """Another state for a version. What is destroyed stays so; only an owner destroys."""
    here = services(request)
    body = await read_model(request, KeyStateBody, here.config.limits.body_bytes)
    if body.state == "destroyed":
        must_be(actor, "owner")
    record = await run_sync(
        here.store.set_state, body.name, body.version, body.state, actor, body.reason
    )
    return _key(record)


@router.post(
    "/rotate", responses=responses(401, 403, 404, 409, 415), openapi_extra=body_schema(RotateBody)
)
async def rotate(request: Request, actor: Operator) -> Key:
    """Make a version, the newest unless one is named, the current one; older ones are deprecated."""
    here = services(request)
    body = await read_model(request, RotateBody, here.config.limits.body_bytes)
    return _key(await run_sync(here.store.rotate, body.name, body.version, actor))
