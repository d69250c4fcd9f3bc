"""Numbers of the release protocol, each with its reason."""

from __future__ import annotations

from typing import Final

CHALLENGE_SIZE: Final = 32
CHALLENGE_SECONDS: Final = 60
"""A quote takes a machine well below a second; a minute leaves room for a slow vTPM."""

MAX_KEYS: Final = 32
"""Keys in one request: each costs a lease, a seal of 0.15 ms and 1.6 KB of the answer."""

MAX_REQUEST: Final = 2 << 20
"""Bytes of a release request: the limits of its evidence, in base64url."""

MAX_ANSWER: Final = 1 << 20

MAX_LEASE: Final = 30 * 86400
MIN_LEASE: Final = 10
DEFAULT_LEASE: Final = 3600
"""Seconds. Long enough to live through an outage, short enough that a revocation is felt."""

MAX_ATTEST_AGAIN: Final = 90 * 86400
DEFAULT_ATTEST_AGAIN: Final = 86400
"""Seconds for which evidence may be renewed upon: firmware and revocations of a day, not of a year."""

MAX_POLICY: Final = 1 << 20
"""Bytes of a policy in canonical JSON: four thousand platforms by their 64-byte chip ids have half of it."""
