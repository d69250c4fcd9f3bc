"""``/v1/nodes``: machines that hold keys, and machines that shall get none."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from strongroom.keyserver.auth import Auditor, Operator
from strongroom.keyserver.bodies import body_schema, read_model
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.schemas import AdmitBody, Empty, EvictBody, Node, Nodes
from strongroom.keyserver.services import services
from strongroom.keyserver.store import NodeRecord
from strongroom.release.messages import time_text

__all__ = ["router"]

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])


def _node(record: NodeRecord) -> Node:
    return Node(
        platform=record.platform,
        evicted=record.evicted,
        reason=record.reason,
        leases=record.leases,
        first_seen=time_text(record.first_seen) if record.first_seen else None,
        last_seen=time_text(record.last_seen) if record.last_seen else None,
    )


@router.get("", responses=responses(401, 403))
async def show(request: Request, actor: Auditor) -> Nodes:
    """Machines to which keys were released, and those that were enrolled or evicted."""
    here = services(request)
    return Nodes(nodes=[_node(one) for one in await run_sync(here.store.nodes)])


@router.post("/evict", responses=responses(401, 403, 404, 415), openapi_extra=body_schema(EvictBody))
async def evict(request: Request, actor: Operator) -> Empty:
    """No key, and no renewal, for a machine from now on."""
    here = services(request)
    body = await read_model(request, EvictBody, here.config.limits.body_bytes)
    await run_sync(here.store.evict, body.platform, actor, body.reason)
    return Empty()


@router.post("/admit", responses=responses(401, 403, 404, 415), openapi_extra=body_schema(AdmitBody))
async def admit(request: Request, actor: Operator) -> Empty:
    """An evicted machine may ask again."""
    here = services(request)
    body = await read_model(request, AdmitBody, here.config.limits.body_bytes)
    await run_sync(here.store.admit, body.platform, actor)
    return Empty()
