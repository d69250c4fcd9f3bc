"""The keys that are held: asked for once, renewed in time, wiped at the end of their leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied, ServerUnavailable, StrongroomError
from strongroom.keycache.clock import LeaseClock
from strongroom.providers.keyserver.backoff import delay
from strongroom.providers.keyserver.client import Answer, ReleaseClient
from strongroom.providers.keyserver.denial import denied
from strongroom.release.answer import Lease, Refused, Released
from strongroom.release.binding import WantedKey
from strongroom.release.limits import MAX_KEYS
from strongroom.release.messages import time_text

__all__ = ["Held", "KeyHolder"]

_LOG: Final = logging.getLogger("strongroom.keycache")

MAX_HELD: Final = 2048
"""Keys: each has a locked page of 4 KiB."""

MAX_FLIGHTS: Final = 64
_WORKERS: Final = 4
"""Releases at once: a node starts some dozen models, and each release waits for its TEE or the server."""

_REFUSED_FOR: Final = 2.0
"""Seconds for which a failure is repeated without asking again: what a process that retries at once
costs the server."""

_TICK: Final = 1.0
"""Seconds: a machine that slept wipes what has ended meanwhile so much later. It serves nothing of it."""

_END_TIMEOUT: Final = 3.0


@dataclass(slots=True)
class Held:
    """A key and its lease.

    Attributes:
        version: the one that was released.
        renew_at: when to ask for more time.
        anew: ask with new evidence: renewing is not enough any more.
        failures: attempts to renew in a row that failed.
        served: how often it was given out.
    """

    wanted: WantedKey
    version: int
    dek: SecretBytes
    lease: Lease
    renew_at: datetime
    anew: bool = False
    failures: int = 0
    served: int = 0

    @property
    def name(self) -> str:
        """For people: name and version."""
        return f"{self.wanted.key.name}@{self.version}"


class KeyHolder:
    """Holds the keys of one node. All methods belong to the thread of the event loop.

    Args:
        connect: makes a client of the server; called once for each thread that asks.
        clock: by which leases end.
        chance: gives the jitter, uniform in [0, 1).
    """

    def __init__(
        self,
        connect: Callable[[], ReleaseClient],
        clock: LeaseClock,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._chance = chance
        self._keys: dict[WantedKey, Held] = {}
        self._flights: dict[WantedKey, asyncio.Task[Held]] = {}
        self._failed: dict[WantedKey, tuple[StrongroomError, float]] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._closing = False
        self._local = threading.local()
        self._clients: list[ReleaseClient] = []
        self._asking = ThreadPoolExecutor(_WORKERS, "release")
        # Apart from the others: a release that hangs must not keep leases from being renewed.
        self._renewing = ThreadPoolExecutor(1, "renew")
        self.releases = self.refusals = self.renewals = self.failures = 0

    def held(self, wanted: WantedKey) -> Held | None:
        """The key if it is here and its lease is not over."""
        held = self._keys.get(wanted)
        if held is not None and self._clock.now() >= held.lease.not_after:
            self._drop(held, "the lease is over")
            return None
        return held

    async def get(self, wanted: WantedKey) -> Held:
        """The key, from here or from the server; whoever asks for it at the same time shares one request.

        Raises:
            ReleaseDenied: the server refuses.
            ServerUnavailable: it does not answer, or there is too much to do.
            StrongroomError: no evidence could be collected, or the answer cannot be trusted.
        """
        held = self.held(wanted)
        if held is not None:
            return held
        if (failed := self._failed.get(wanted)) is not None:
            if time.monotonic() < failed[1]:
                raise failed[0].with_traceback(None)
            del self._failed[wanted]
        await asyncio.shield(self._fly(wanted))
        # It may have been wiped between the end of the flight and this line.
        held = self.held(wanted)
        if held is None:
            raise ServerUnavailable("The key was withdrawn at the moment it came.")
        return held

    def _fly(self, wanted: WantedKey) -> asyncio.Task[Held]:
        flight = self._flights.get(wanted)
        if flight is None:
            full = len(self._keys) >= MAX_HELD and wanted not in self._keys
            if self._closing or full or len(self._flights) >= MAX_FLIGHTS:
                raise ServerUnavailable("The key cache takes no more requests now.")
            flight = asyncio.get_running_loop().create_task(self._fetch(wanted))
            self._flights[wanted] = flight
            flight.add_done_callback(lambda done: self._landed(wanted, done))
        return flight

    def _landed(self, wanted: WantedKey, flight: asyncio.Task[Held]) -> None:
        del self._flights[wanted]
        if flight.cancelled():
            return
        error = flight.exception()
        if isinstance(error, StrongroomError):
            now = time.monotonic()
            self._failed = {key: one for key, one in self._failed.items() if one[1] > now}
            self._failed[wanted] = (error, now + _REFUSED_FOR)
            self.refusals += isinstance(error, ReleaseDenied)
            self.failures += not isinstance(error, ReleaseDenied)
            _LOG.warning("%s is not released: %s", wanted.key, error)
        elif error is not None:
            _LOG.error("asking for %s failed: %s", wanted.key, type(error).__name__)

    async def _fetch(self, wanted: WantedKey) -> Held:
        loop = asyncio.get_running_loop()
        answer: Answer[Released | Refused]
        answer = await loop.run_in_executor(self._asking, lambda: self._client().ask([wanted]))
        self._clock.heard(answer.time, answer.asked_at)
        (result,) = answer.results
        if isinstance(result, Refused):
            raise denied(result.code, wanted.key)
        if self._closing or self._clock.now() >= result.lease.not_after:
            result.dek.wipe()
            raise ServerUnavailable(
                "The lease is over before it began, by the clock of this machine.",
                hint="Look whether the clock is ahead.",
            )
        before = self._keys.get(wanted)
        held = Held(wanted, result.version, result.dek, result.lease, self._renew_at(result.lease))
        self._keys[wanted] = held
        if before is not None:
            held.served = before.served
            before.dek.wipe()
        self.releases += 1
        _LOG.info("released %s until %s", held.name, time_text(held.lease.not_after))
        return held

    def _client(self) -> ReleaseClient:
        """The client of this thread."""
        client: ReleaseClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
            self._clients.append(client)
        return client

    def _renew_at(self, lease: Lease) -> datetime:
        """Between half and three quarters of the lease, and not before the server wants it."""
        now = self._clock.now()
        left = lease.not_after - now
        return max(lease.renew_after, now + left * (0.5 + 0.25 * self._chance()))

    def _drop(self, held: Held, why: str) -> None:
        if self._keys.get(held.wanted) is held:
            del self._keys[held.wanted]
        held.dek.wipe()
        _LOG.info("wiped %s: %s", held.name, why)

    async def run(self) -> None:
        """Renew and wipe, until cancelled."""
        while True:
            await asyncio.sleep(self.tick())

    def tick(self) -> float:
        """Do what is due; seconds until to be called again."""
        now = self._clock.now()
        for held in list(self._keys.values()):
            if now >= held.lease.not_after:
                self._drop(held, "the lease is over")
        due = [one for one in self._keys.values() if now >= one.renew_at]
        if due and self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew_all(due))
            self._renewal.add_done_callback(self._renewed)
        ends = [min(one.lease.not_after, max(one.renew_at, now)) for one in self._keys.values()]
        left = min(ends, default=now + timedelta(seconds=_TICK)) - now
        return min(_TICK, max(0.05, left.total_seconds()))

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewal = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("renewing failed: %s", type(error).__name__)

    async def _renew_all(self, due: Sequence[Held]) -> None:
        for held in [one for one in due if one.anew]:
            await self._ask_anew(held)
        rest = [one for one in due if not one.anew]
        for start in range(0, len(rest), MAX_KEYS):
            await self._renew(rest[start : start + MAX_KEYS])

    async def _renew(self, due: Sequence[Held]) -> None:
        ids = [held.lease.id for held in due]
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._renewing, lambda: self._client().renew(ids))
        except StrongroomError as error:
            # An outage within the lease is nobody's concern but the operator's.
            self.failures += 1
            _LOG.warning("%d leases are not renewed yet: %s", len(due), error)
            for held in due:
                self._later(held)
            return
        self._clock.heard(answer.time, answer.asked_at)
        for held, renewal in zip(due, answer.results, strict=True):
            if self._keys.get(held.wanted) is not held:
                continue  # Dropped or replaced meanwhile.
            if renewal.lease is not None:
                held.lease, held.failures = renewal.lease, 0
                held.renew_at = self._renew_at(renewal.lease)
                self.renewals += 1
            elif renewal.code == "attest-again":
                held.anew, held.renew_at = True, self._clock.now()
            else:
                self.refusals += 1
                self._drop(held, f"the server withdrew it: {renewal.code}")

    async def _ask_anew(self, held: Held) -> None:
        try:
            await asyncio.shield(self._fly(held.wanted))
        except ReleaseDenied as error:
            self._drop(held, f"the server withdrew it: {error.code}")
        except StrongroomError:
            self._later(held)

    def _later(self, held: Held) -> None:
        wait = 0.2 + delay(held.failures, self._chance())
        held.failures += 1
        held.renew_at = self._clock.now() + timedelta(seconds=wait)

    def status(self) -> dict[str, Any]:
        """What is held, without keys, and without the ids of leases."""
        return {
            "time": time_text(self._clock.now()),
            "releases": self.releases,
            "renewals": self.renewals,
            "refusals": self.refusals,
            "failures": self.failures,
            "leases": [
                {
                    "name": held.wanted.key.name,
                    "version": held.version,
                    "not_after": time_text(held.lease.not_after),
                    "renew_at": time_text(held.renew_at),
                    "served": held.served,
                }
                for held in self._keys.values()
            ],
        }

    async def close(self) -> None:
        """Wipe everything, and give the leases back if the server answers soon."""
        self._closing = True
        for task in [*self._flights.values(), self._renewal]:
            if task is not None:
                task.cancel()
        ids = [held.lease.id for held in self._keys.values()]
        for held in list(self._keys.values()):
            self._drop(held, "the cache ends")
        with contextlib.suppress(StrongroomError, TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT):
                await asyncio.get_running_loop().run_in_executor(self._renewing, self._end, ids)
        # In a thread, since one may be in use still.
        for client in self._clients:
            self._renewing.submit(client.close)
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._renewing.shutdown(wait=False)

    def _end(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), MAX_KEYS):
            self._client().end(ids[start : start + MAX_KEYS])
