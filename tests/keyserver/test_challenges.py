"""Challenges: checked by any replica, of this server only, for a minute only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied
from strongroom.keyserver.challenges import Challenges

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
KEY = bytes(range(32))


def challenges(server_id: str = "https://keys.example", key: bytes = KEY) -> Challenges:
    return Challenges(SecretBytes(key), server_id)


def test_a_replica_takes_what_another_gave():
    made = challenges().make(NOW)
    assert challenges().check(made.challenge, NOW + timedelta(seconds=30)) == made.expires
    assert made.server_id == "https://keys.example"
    assert len(made.challenge) == 32


def test_no_two_are_alike():
    source = challenges()
    assert len({source.make(NOW).challenge for _ in range(1000)}) == 1000


@pytest.mark.parametrize("late", [60, 61, 3600])
def test_expires_within_a_minute(late):
    made = challenges().make(NOW)
    assert made.expires - NOW <= timedelta(seconds=60)
    with pytest.raises(ReleaseDenied) as caught:
        challenges().check(made.challenge, NOW + timedelta(seconds=late))
    assert caught.value.code == "challenge"


def test_last_moment():
    made = challenges().make(NOW)
    challenges().check(made.challenge, made.expires - timedelta(milliseconds=1))
    with pytest.raises(ReleaseDenied):
        challenges().check(made.challenge, made.expires)


def test_not_of_the_future():
    """A clock that was set back does not make a challenge live longer."""
    made = challenges().make(NOW)
    with pytest.raises(ReleaseDenied):
        challenges().check(made.challenge, NOW - timedelta(seconds=5))


@pytest.mark.parametrize("position", range(32))
def test_every_byte_counts(position):
    changed = bytearray(challenges().make(NOW).challenge)
    changed[position] ^= 1
    with pytest.raises(ReleaseDenied):
        challenges().check(bytes(changed), NOW)


def test_of_another_server_or_key():
    made = challenges().make(NOW).challenge
    for other in (challenges("https://keys.example:444"), challenges(key=bytes(32))):
        with pytest.raises(ReleaseDenied):
            other.check(made, NOW)
