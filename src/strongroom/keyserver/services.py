"""What the routes work with, made once for a process."""

from __future__ import annotations

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
    """

    config: Config
    store: Store
    release: ReleaseService
    metrics: Metrics
    identities: Identities
    enrolments: Enrolments
    clock: Callable[[], datetime]
    draining: bool = False


def services(request: Request) -> Services:
    """Those of the application that a request has come to."""
    found: Services = request.app.state.services
    return found
