"""Key sets of issuers of tokens, which change: kept for a while, and followed when an issuer takes new keys.

Nothing but the way by which it came authenticates a key set. So one from the network is used for an hour
and not longer, where a new one cannot be had; one in a file is the owner's, and is used until he has
replaced it by another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from strongroom.attest.endorsements import EndorsementSource, Wanted
from strongroom.attest.jws_keys import parse_key_set
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.errors import MissingEndorsement, NotAuthentic, Unavailable

__all__ = ["KeySetFile", "KeySets"]

TTL: Final = timedelta(hours=1)
PAUSE: Final = timedelta(minutes=1)
"""Between two looks for a key that is not in the set: anybody can write a token that names one."""

_FAILED: Final = timedelta(seconds=10)
"""For so long an issuer that did not answer is not asked again."""

_PATIENCE: Final = 1.0
"""Seconds to wait for a look that is under way, before the old set has to do."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A key set, or why there is none; and when it was asked for."""

    at: datetime
    data: bytes | None = field(default=None, repr=False)
    problem: str = ""
    missing: bool = False


class KeySets:
    """Key sets that ``source`` gives, one at a time; safe for threads.

    Args:
        source: what is asked.
        clock: now, with a time zone.
    """

    def __init__(
        self, source: EndorsementSource, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._source = source
        self._clock = clock
        self._asking = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._asked: dict[str, datetime] = {}

    def fetch(self, wanted: Wanted) -> bytes:
        """The key set; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: the source does not have it, or it is another kind.
            Unavailable: the source does not answer, or with something else.
        """
        issuer = _issuer(wanted)
        kept = self._at_hand(issuer)
        if kept is None:
            with self._asking:
                # Somebody else may have asked meanwhile.
                kept = self._at_hand(issuer) or self._ask(issuer, wanted)
        if kept.data is None:
            raise (MissingEndorsement if kept.missing else Unavailable)(kept.problem)
        return kept.data

    def fetch_newer(self, wanted: Wanted, old: bytes) -> bytes:
        """See :class:`~strongroom.attest.endorsements.RenewableSource`; asks once in :data:`PAUSE`."""
        issuer = _issuer(wanted)
        if not self._asking.acquire(timeout=_PATIENCE):
            return old
        try:
            kept = self._kept.get(issuer)
            if kept is not None and kept.data not in (None, old):
                return kept.data or old
            if self._recent(self._asked.get(issuer), PAUSE):
                return old
            return self._ask(issuer, wanted, kept).data or old
        finally:
            self._asking.release()

    def _at_hand(self, issuer: str) -> _Kept | None:
        kept = self._kept.get(issuer)
        if kept is None or not self._recent(kept.at, _FAILED if kept.data is None else TTL):
            return None
        return kept

    def _recent(self, moment: datetime | None, time: timedelta) -> bool:
        # A clock that was set back makes nothing fresh again.
        return moment is not None and moment <= self._clock() < moment + time

    def _ask(self, issuer: str, wanted: Wanted, old: _Kept | None = None) -> _Kept:
        """Ask the source, and keep what it answers; ``old`` stays where that is no key set."""
        now = self._asked[issuer] = self._clock()
        try:
            data = self._source.fetch(wanted)
            parse_key_set(data)
            found = _Kept(now, data)
        except (NotAuthentic, MissingEndorsement, Unavailable) as error:
            missing = isinstance(error, MissingEndorsement)
            found = old or _Kept(now, None, error.message, missing)
        self._kept[issuer] = found
        return found


class KeySetFile:
    """The key set of one issuer in a file, which is looked at each time, and read when it has changed.

    What cannot be read, or is no key set, takes nothing's place.

    Args:
        issuer: whose it is.
        path: of the file.
    """

    def __init__(self, issuer: str, path: str | os.PathLike[str]) -> None:
        self._issuer = issuer
        self._path = os.fspath(path)
        self._lock = threading.Lock()
        self._mark: tuple[int, int, int] | None = None
        self._data: bytes | None = None

    def fetch(self, wanted: Wanted) -> bytes:
        """The key set; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: another one is wanted.
            Unavailable: there has been no key set in the file.
        """
        if _issuer(wanted) != self._issuer:
            raise MissingEndorsement("This file has the key set of another issuer.")
        with self._lock:
            self._look()
            if self._data is None:
                raise Unavailable(f"{self._path} is no key set that can be read.")
            return self._data

    def _look(self) -> None:
        try:
            status = os.stat(self._path)
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            if mark == self._mark:
                return
            with open(self._path, "rb") as file:
                data = file.read(MAX_ENDORSEMENTS + 1)
            self._mark = mark
            parse_key_set(data)
        except (OSError, NotAuthentic):
            return
        self._data = data


def _issuer(wanted: Wanted) -> str:
    if wanted.what != "jwks":
        raise MissingEndorsement(f"This is no source of the kind {wanted.what}.")
    return wanted.members["issuer"]
