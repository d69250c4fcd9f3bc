"""How the server is: for supervisors, load balancers and Prometheus."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from strongroom.keyserver.auth import Auditor
from strongroom.keyserver.errors_http import HttpError, responses
from strongroom.keyserver.schemas import Health
from strongroom.keyserver.services import services

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=responses())
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=responses())
async def readyz(request: Request) -> Health:
    """The server can release keys: the database answers and is under the server's root key, its clock is
    not behind its records, and it is not about to stop.
    """
    here = services(request)
    if here.draining:
        raise HttpError(503, "stopping", "The server is about to stop.", retry_after=2)
    await here.check()
    return Health(status="ok")


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Numbers for Prometheus.", "content": {"text/plain": {}}}
}


@router.get("/metrics", response_class=Response, responses={**responses(401, 403), **_TEXT})
async def metrics(request: Request, actor: Auditor) -> Response:
    """Numbers for Prometheus, which sends a token of an auditor."""
    here = services(request)
    nodes = await run_sync(here.store.nodes)
    here.metrics.leases(sum(node.leases for node in nodes))
    content, kind = here.metrics.text()
    return Response(content, media_type=kind)
