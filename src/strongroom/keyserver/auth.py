"""Who asks, and what they may do.

Administrators come with a token of the server, or with a client certificate that the configuration
names. A token that is given and not good is never made up for by a certificate.

======== ====================================================================
role     may
======== ====================================================================
owner    everything
operator read; add, rotate and revoke keys; enrol and evict machines; hand in approvals
auditor  read, and nothing else
======== ====================================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated, Final

from anyio.to_thread import run_sync
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from fastapi import Depends, Request

from strongroom.attest.evidence import Claims
from strongroom.errors import EvidenceError, NotAuthorised
from strongroom.keyserver.errors_http import HttpError
from strongroom.keyserver.services import services
from strongroom.keyserver.settings import MtlsRole
from strongroom.keyserver.store import Actor
from strongroom.keyserver.tls_contexts import CLIENT_CERTIFICATE, ClientCertificate
from strongroom.web.logs import describe, log

__all__ = ["Auditor", "Operator", "Owner", "actor_of_certificate", "bearer", "identities", "must_be"]

TOKEN_PREFIX: Final = "srt_"
_RANK: Final = {"auditor": 0, "operator": 1, "owner": 2}
_MAX_TOKEN: Final = 16 << 10


def _unknown() -> HttpError:
    return HttpError(
        401,
        "not-authenticated",
        "Who asks is not known.",
        hint="Send a token of this server (in Authorization: Bearer srt_…; the commands take it from "
        "--token-file, STRONGROOM_TOKEN, or token_file of the profile), or a client certificate.",
    )


def bearer(request: Request) -> str | None:
    """The token of the Authorization header; None where there is no such header.

    Raises:
        HttpError: 401, the header is something else.
    """
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN or not token.isascii():
        raise _unknown()
    return token


def actor_of_certificate(
    certificate: ClientCertificate, roles: Sequence[MtlsRole], now: datetime
) -> Actor | None:
    """Whom the configuration names for a certificate; None if nobody, or it has ended since the handshake.

    Args:
        certificate: as TLS has verified it.
        roles: the first that fits counts.
        now: with a time zone.
    """
    parsed = x509.load_der_x509_certificate(certificate.leaf)
    if parsed.not_valid_after_utc < now:
        return None
    subject = parsed.subject.rfc4514_string()
    fingerprint = parsed.fingerprint(hashes.SHA256()).hex()
    for one in roles:
        if (one.subject is not None and one.subject == subject) or one.sha256 == fingerprint:
            return Actor(name=one.name, role=one.role, kind="mtls")
    return None


async def _actor(request: Request) -> Actor:
    here = services(request)
    token = bearer(request)
    actor: Actor | None = None
    if token is not None:
        if token.startswith(TOKEN_PREFIX):
            try:
                actor = await run_sync(here.store.token, token)
            except NotAuthorised:
                actor = None
    else:
        certificate = request.scope.get(CLIENT_CERTIFICATE)
        if certificate is not None:
            actor = actor_of_certificate(certificate, here.config.auth.mtls, here.clock())
    if actor is None:
        raise _unknown()
    request.scope["strongroom.actor"] = {"actor": actor.name, "role": actor.role}
    return actor


def must_be(actor: Actor, role: str) -> None:
    """Refuse an actor who has not at least ``role``.

    Raises:
        NotAuthorised: 403.
    """
    # A role that is not known may nothing.
    if _RANK.get(actor.role, -1) < _RANK[role]:
        raise NotAuthorised(f"This needs the role {role}; {actor.name} has the role {actor.role}.")


def _needs(role: str) -> Callable[[Request], Awaitable[Actor]]:
    async def check(request: Request) -> Actor:
        actor = await _actor(request)
        must_be(actor, role)
        return actor

    return check


Auditor = Annotated[Actor, Depends(_needs("auditor"))]
Operator = Annotated[Actor, Depends(_needs("operator"))]
Owner = Annotated[Actor, Depends(_needs("owner"))]


async def identities(request: Request) -> list[Claims]:
    """What the transport says of who asks for a release: a client certificate, a token, or nothing.

    Raises:
        HttpError: 401, there is a token and it is not good.
        Unavailable: the keys of its issuer could not be fetched.
    """
    here = services(request)
    token = bearer(request)
    certificate = request.scope.get(CLIENT_CERTIFICATE)
    if token is None and certificate is None:
        return []
    # Not raised inside the except block: the context would hold the token.
    try:
        return await run_sync(here.identities.of, certificate, token, here.clock())
    except EvidenceError as error:
        log.info("token refused", **describe(error))
    raise HttpError(401, "not-authenticated", "The token is not accepted.")
