"""``/v1/nodes/enrol-tpm``: that an attestation key lies in a TPM whose maker vouches for it.

The evidence is parsed in this process: who sends it may add keys anyway.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from strongroom.attest.evidence import Evidence
from strongroom.errors import UsageError
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.keyserver.auth import Operator
from strongroom.keyserver.bodies import body_schema, read_model
from strongroom.keyserver.enrolment import Enrolled, Question
from strongroom.keyserver.errors_http import responses
from strongroom.keyserver.schemas import (
    BeginEnrolmentBody,
    EnrolledTpm,
    EnrolmentQuestion,
    FinishEnrolmentBody,
)
from strongroom.keyserver.services import services
from strongroom.release.messages import time_text

__all__ = ["router"]

router = APIRouter(prefix="/v1/nodes/enrol-tpm", tags=["nodes"])


@router.post(
    "/begin", responses=responses(401, 403, 415), openapi_extra=body_schema(BeginEnrolmentBody)
)
async def begin(request: Request, actor: Operator) -> EnrolmentQuestion:
    """A credential that only the TPM with this endorsement key and this attestation key opens.

    The certificate of the endorsement key must lead to a CA of `attestation.tpm_cas`.
    """
    here = services(request)
    body = await read_model(request, BeginEnrolmentBody, here.config.limits.body_bytes)

    def work() -> Question:
        evidence = Evidence.from_json(body.evidence.model_dump())
        return here.enrolments.begin(evidence, here.clock())

    asked = await run_sync(work)
    return EnrolmentQuestion(
        platform=asked.of.platform,
        enrolment=b64url(asked.enrolment),
        credential=b64url(asked.credential),
        expires=time_text(asked.expires),
    )


@router.post(
    "/finish", responses=responses(401, 403, 415), openapi_extra=body_schema(FinishEnrolmentBody)
)
async def finish(request: Request, actor: Operator) -> EnrolledTpm:
    """What the TPM has got out of the credential; on record if it is that."""
    here = services(request)
    body = await read_model(request, FinishEnrolmentBody, here.config.limits.body_bytes)

    try:
        enrolment = unb64url_text(body.enrolment)
    except ValueError as error:
        raise UsageError(f"enrolment {error}.") from None

    def work() -> Enrolled:
        found = here.enrolments.finish(enrolment, unb64url_text(body.answer), here.clock())
        here.store.enrol(found.platform, actor, ak_name=found.ak_name, ek=found.ek)
        return found

    found = await run_sync(work)
    return EnrolledTpm(platform=found.platform, ak_name=found.ak_name, ek=found.ek)
