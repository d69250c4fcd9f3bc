"""Challenges that need no row until they are used.

A challenge is its expiry and 12 random bytes under a MAC whose key all replicas share, so that any of
them can check one that another gave. That it is used once is for the database: using one inserts it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied
from strongroom.release.limits import CHALLENGE_SECONDS, CHALLENGE_SIZE
from strongroom.release.messages import Challenge

__all__ = ["Challenges"]

_EXPIRY: Final = struct.Struct(">I")
_RANDOM_SIZE: Final = 12
"""With the expiry enough that no challenge comes twice: a million a second for its minute, 2⁻⁴⁴."""

_MAC_SIZE: Final = 16
_DOMAIN: Final = b"strongroom/v1/challenge\x00"
assert _EXPIRY.size + _RANDOM_SIZE + _MAC_SIZE == CHALLENGE_SIZE


class Challenges:
    """Makes and checks challenges.

    Args:
        key: of the MAC; the same in all replicas.
        server_id: a challenge of another server is refused.
        random: gives so many random bytes.
    """

    def __init__(
        self, key: SecretBytes, server_id: str, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._key = key
        self._server_id = server_id
        self._random = random

    def _mac(self, content: bytes) -> bytes:
        message = _DOMAIN + self._server_id.encode() + b"\x00" + content
        return hmac.digest(self._key.buffer, message, hashlib.sha256)[:_MAC_SIZE]

    def make(self, now: datetime) -> Challenge:
        """A new challenge."""
        # Whole seconds, so that what is said is what is checked.
        expires = now.replace(microsecond=0) + timedelta(seconds=CHALLENGE_SECONDS)
        content = _EXPIRY.pack(int(expires.timestamp())) + self._random(_RANDOM_SIZE)
        return Challenge(content + self._mac(content), self._server_id, expires)

    def check(self, challenge: bytes, now: datetime) -> datetime:
        """When a challenge of this server, and no older one, expires.

        Raises:
            ReleaseDenied: it is of another server, changed, or too old.
        """
        content, mac = challenge[:-_MAC_SIZE], challenge[-_MAC_SIZE:]
        genuine = hmac.compare_digest(mac, self._mac(content))
        expires = datetime.fromtimestamp(_EXPIRY.unpack_from(content)[0], UTC)
        if not genuine or now >= expires or expires - now > timedelta(seconds=CHALLENGE_SECONDS):
            raise used_challenge()
        return expires


def used_challenge() -> ReleaseDenied:
    """The answer to a challenge that is not, or no longer, good."""
    return ReleaseDenied(
        "The challenge is not one of this server, has expired, or was used before.",
        code="challenge",
        hint="Ask for a new one; each is good for one request within a minute.",
    )
