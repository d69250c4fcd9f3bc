"""``/v1/audit``: what happened, in a chain that cannot be changed without being noticed."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from strongroom.keyserver.auth import Auditor
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.schemas import AuditRecords, Signed
from strongroom.keyserver.services import services

__all__ = ["router"]

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", responses=responses(401, 403), response_model=AuditRecords)
async def records(
    request: Request,
    actor: Auditor,
    after: Annotated[int, Query(ge=0, le=1 << 62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JSONResponse:
    """Records after a sequence number, in order."""
    found = await run_sync(services(request).store.audit, after, limit)
    return JSONResponse({"records": list(found)})


@router.get("/head", responses=responses(401, 403), response_model=Signed)
async def head(request: Request, actor: Auditor) -> JSONResponse:
    """The last record's number and hash, signed: to be kept where this server cannot change it."""
    return JSONResponse(await run_sync(services(request).release.signed_head))
