"""What the routes work with, made once for a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from fastapi import Request

from strongroom.keyserver.enrolment import Enrolments
from strongroom.keyserver.identities import Identities
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.release import ReleaseService
from strongroom.keyserver.settings import Config
from strongroom.keyserver.store import Store

__all__ = ["Services", "services"]


@dataclass(slots=True)
class Services:
    """The parts of a running server.

    Attributes:
        config: what it was started with.
        store: keys, policies, leases, audit.
        release: challenges, releases, renewals.
        metrics: numbers.
        identities: of machines, besides their evidence.
        enrolments: of TPMs.
        clock: gives the time, with a time zone.
        draining: it is about to stop; load balancers shall look elsewhere.
        checking: the check of the store that runs, or that ran last.
    """

    config: Config
    store: Store
    release: ReleaseService
    metrics: Metrics
    identities: Identities
    enrolments: Enrolments
    clock: Callable[[], datetime]
    draining: bool = False
    checking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """See :meth:`.Store.check`. One at a time, whoever asks and how often: nobody is limited who does.

        Raises:
            StrongroomError: what the check raises.
        """
        if self.checking is None or self.checking.done():
            self.checking = asyncio.create_task(asyncio.to_thread(self.store.check))
            # Whoever asked may be gone before there is an answer.
            self.checking.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self.checking)


def services(request: Request) -> Services:
    """Those of the application that a request has come to."""
    found: Services = request.app.state.services
    return found
