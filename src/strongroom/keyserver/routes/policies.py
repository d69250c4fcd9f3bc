"""``/v1/policies``: who may get which key, and under which conditions."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from strongroom.format.encoding import unb64url_text
from strongroom.keyserver.auth import Auditor, Operator, Owner
from strongroom.keyserver.bodies import body_schema, read_model
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.schemas import (
    NAME,
    ApproveBody,
    Policies,
    Policy,
    PolicyBody,
    PolicyStatus,
)
from strongroom.keyserver.services import services
from strongroom.keyserver.store import PolicyRecord
from strongroom.release.messages import time_text

__all__ = ["router"]

router = APIRouter(prefix="/v1/policies", tags=["policies"])


def _status(record: PolicyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "version": record.version,
        "status": record.status,
        "approvals": len(record.approvals),
        "needed": record.needed,
    }


def _policy(record: PolicyRecord) -> Policy:
    return Policy(
        **_status(record),
        policy=dict(record.policy),
        digest=record.digest,
        created=time_text(record.created),
        author=record.author,
        approved_by=list(record.approvals),
        previous=record.previous,
        signature=record.signature,
    )


@router.put("", responses=responses(401, 403, 409, 415), openapi_extra=body_schema(PolicyBody))
async def put(request: Request, actor: Owner) -> PolicyStatus:
    """A new version of a policy; pending where the version before wants approvals."""
    here = services(request)
    body = await read_model(request, PolicyBody, here.config.limits.body_bytes)
    return PolicyStatus(**_status(await run_sync(here.store.put_policy, body.policy, actor)))


@router.get("", responses=responses(401, 403))
async def show(request: Request, actor: Auditor) -> Policies:
    """The version of each policy that is in force, and those that wait for approvals."""
    here = services(request)
    return Policies(policies=[_policy(one) for one in await run_sync(here.store.policies)])


@router.get("/history", responses=responses(401, 403, 404))
async def history(
    request: Request, actor: Auditor, id: Annotated[str, Query(max_length=200, pattern=NAME)]
) -> Policies:
    """All versions of one policy, oldest first."""
    here = services(request)
    return Policies(policies=[_policy(one) for one in await run_sync(here.store.policy_history, id)])


@router.post(
    "/approve", responses=responses(401, 403, 404, 409, 415), openapi_extra=body_schema(ApproveBody)
)
async def approve(request: Request, actor: Operator) -> PolicyStatus:
    """An approver's signature; the policy is in force when there are enough."""
    here = services(request)
    body = await read_model(request, ApproveBody, here.config.limits.body_bytes)
    signature = unb64url_text(body.signature)
    record = await run_sync(
        here.store.approve_policy, body.id, body.version, body.approver, signature, actor
    )
    return PolicyStatus(**_status(record))
