"""A cache before a source: fetched once for all who wait, and never kept past its own validity."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from strongroom.attest.endorsements import EndorsementSource, Wanted
from strongroom.attest.sources.naming import path_of
from strongroom.attest.sources.shared import SharedDirectory
from strongroom.attest.sources.validity import valid_until
from strongroom.errors import MissingEndorsement, StorageError, Unavailable, UsageError

__all__ = ["CachingSource"]

TTL: Final = timedelta(hours=1)
"""After this a fresh one is asked for; an old one that still holds is served only if that fails."""

_ABSENT: Final = timedelta(seconds=10)
"""How long "there is none" is remembered: long enough to take the edge off a storm."""

_MAX_ENTRIES: Final = 512
_MAX_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    data: bytes | None = field(repr=False)
    fetched: datetime
    until: datetime | None


class CachingSource:
    """Remembers what ``source`` answers.

    Args:
        source: what is asked.
        ttl: how long an answer is served without asking again.
        clock: now, with a time zone.
        shared: where answers outlive this process, and other processes find them. What lies there is
            authenticated like everything else.

    Key sets, which nobody authenticates and which say no end, are passed on and not kept: they are for
    :class:`.KeySets`.
    """

    def __init__(
        self,
        source: EndorsementSource,
        *,
        ttl: timedelta = TTL,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        shared: SharedDirectory | None = None,
    ) -> None:
        self._source = source
        self._ttl = ttl
        self._clock = clock
        self._shared = shared
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[str, Future[bytes]] = {}

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: the source does not have it.
            Unavailable: it does not answer, and nothing kept still holds.
        """
        name = path_of(wanted)
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and self._is_fresh(entry):
                self._entries.move_to_end(name)
                return _data_of(entry)
            flight = self._flights.get(name)
            if mine := flight is None:
                flight = self._flights[name] = Future()
        assert flight is not None
        if not mine:
            return flight.result()
        try:
            flight.set_result(self._refresh(name, wanted, entry))
        except BaseException as error:
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[name]
        return flight.result()

    def _is_fresh(self, entry: _Entry) -> bool:
        now = self._clock()
        # A clock that was set back makes nothing fresh again.
        return entry.fetched <= now < entry.fetched + (
            self._ttl if entry.data is not None else min(_ABSENT, self._ttl)
        ) and (entry.until is None or now <= entry.until)

    def _refresh(self, name: str, wanted: Wanted, old: _Entry | None) -> bytes:
        # Another process may have asked since.
        if (stored := self._stored(wanted)) is not None and self._is_fresh(stored):
            self._keep(name, stored)
            return _data_of(stored)
        try:
            data = self._source.fetch(wanted)
        except MissingEndorsement:
            self._keep(name, _Entry(None, self._clock(), None))
            raise
        except Unavailable:
            kept = self._still_holding(wanted, old)
            if kept is None:
                raise
            return kept
        entry = _Entry(data, self._clock(), valid_until(wanted, data))
        # What does not say until when it holds, or holds no longer, is passed on and not kept.
        if entry.until is not None and entry.until >= entry.fetched:
            self._keep(name, entry)
            self._store(wanted, data)
        return data

    def _still_holding(self, wanted: Wanted, old: _Entry | None) -> bytes | None:
        entry = old if old is not None and old.data is not None else self._stored(wanted)
        if entry is None or entry.data is None or entry.until is None:
            return None
        return entry.data if self._clock() <= entry.until else None

    def _stored(self, wanted: Wanted) -> _Entry | None:
        """What lies on the disk, from the time at which it was written."""
        if self._shared is None:
            return None
        found = self._shared.read(wanted)
        until = None if found is None else valid_until(wanted, found.data)
        return None if found is None or until is None else _Entry(found.data, found.written, until)

    def _store(self, wanted: Wanted, data: bytes) -> None:
        if self._shared is not None:
            # A full disk is no reason to refuse a key.
            with suppress(StorageError, UsageError):
                self._shared.write(wanted, data)

    def _keep(self, name: str, entry: _Entry) -> None:
        with self._lock:
            self._entries[name] = entry
            self._entries.move_to_end(name)
            size = sum(len(one.data or b"") for one in self._entries.values())
            while len(self._entries) > _MAX_ENTRIES or size > _MAX_BYTES:
                _, dropped = self._entries.popitem(last=False)
                size -= len(dropped.data or b"")


def _data_of(entry: _Entry) -> bytes:
    if entry.data is None:
        raise MissingEndorsement("The source of endorsements does not have this one.")
    return entry.data
