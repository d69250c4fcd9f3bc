"""How long a key may be held."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from strongroom.attest.evidence import Claims
from strongroom.release.policy import Policy

__all__ = ["lease_end", "renewal_time"]

_RENEW_AT: Final = 0.5
"""Of the lease: half of it is left for a renewal to succeed in."""


def lease_end(policy: Policy, claims: Iterable[Claims], now: datetime) -> datetime:
    """The end of a lease that begins now: no later than that of the policy, or of what vouches for a claim.

    Args:
        policy: that allows it.
        claims: on which it does.
        now: with a time zone.
    """
    ends = [now + timedelta(seconds=policy.lease.seconds), *(one.not_after for one in claims)]
    return min(ends if policy.not_after is None else [*ends, policy.not_after])


def renewal_time(now: datetime, not_after: datetime) -> datetime:
    """From when on a holder should ask for more."""
    return now + (not_after - now) * _RENEW_AT
