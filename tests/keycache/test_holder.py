"""Leases by the clock: set back, asleep, ahead; one flight; what comes too late."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied, ServerUnavailable
from strongroom.keycache import holder as module
from strongroom.keycache.clock import LeaseClock
from strongroom.keycache.holder import KeyHolder
from strongroom.providers.keyserver.client import Answer, Renewal
from strongroom.release.answer import Lease, Refused, Released
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
WANTED = WantedKey(KeyName("m"), bytes(16))


def seconds(count):
    return timedelta(seconds=count)


class World:
    """A machine's two clocks and a server's, and a client that answers at once."""

    def __init__(self, lease=100):
        self.wall, self.boot, self.server = START, 1000.0, START
        self.lease = lease
        self.asked = 0
        self.answers = []  # each may be raised, or be a code
        self.deks, self.renewals, self.ended = [], [], []
        self.clock = LeaseClock(lambda: self.wall, lambda: self.boot)
        self.holder = KeyHolder(lambda: self, self.clock, chance=lambda: 0.5)

    def passes(self, count, wall=True):
        self.boot += count
        self.server += seconds(count)
        if wall:
            self.wall += seconds(count)

    def new_lease(self):
        end = self.server + seconds(self.lease)
        return Lease(f"lease-{self.asked}", end, self.server + seconds(self.lease / 2))

    def _next(self):
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, wanted):
        code = self._next()
        if code:
            result = Refused(wanted[0], code)
        else:
            self.deks.append(SecretBytes.random(32))
            result = Released(wanted[0], 1, self.new_lease(), self.deks[-1])
        return Answer(self.server, self.boot, [result])

    def renew(self, leases):
        self.renewals.append(list(leases))
        code = self._next()
        results = [Renewal(id, None if code else self.new_lease(), code or "") for id in leases]
        return Answer(self.server, self.boot, results)

    def end(self, leases):
        self.ended += leases

    def close(self):
        pass

    def wiped(self, index=0):
        return not any(self.deks[index].buffer)

    async def settle(self):
        """Do what is due, to its end."""
        self.holder.tick()
        while self.holder._renewal is not None or self.holder._flights:
            await asyncio.sleep(0.001)


@pytest.fixture
def world():
    return World()


def test_the_end_of_a_lease(world):
    async def run():
        await world.holder.get(WANTED)
        world.answers = [ServerUnavailable("away")] * 1000
        world.passes(99.9)
        await world.settle()
        assert world.holder.held(WANTED) is not None
        assert not world.wiped()
        world.passes(0.1)
        assert world.holder.held(WANTED) is None
        assert world.wiped()

    asyncio.run(run())


def test_the_end_is_noticed_when_nobody_asks(world):
    async def run():
        await world.holder.get(WANTED)
        world.passes(100)
        world.holder.tick()
        assert world.wiped()
        assert world.holder.status()["leases"] == []

    asyncio.run(run())


@pytest.mark.parametrize("back", [10, 3600, 86400 * 365])
def test_a_clock_that_is_set_back(world, back):
    async def run():
        await world.holder.get(WANTED)
        world.wall -= seconds(back)
        world.passes(99)
        assert world.holder.held(WANTED) is not None
        world.passes(1)
        world.holder.tick()
        assert world.wiped()

    asyncio.run(run())


def test_a_clock_that_stands(world):
    async def run():
        await world.holder.get(WANTED)
        world.passes(100, wall=False)
        assert world.holder.held(WANTED) is None

    asyncio.run(run())


def test_a_clock_that_is_slow_from_the_start(world):
    world.wall -= seconds(3600)

    async def run():
        await world.holder.get(WANTED)
        world.passes(99)
        assert world.holder.held(WANTED) is not None
        world.passes(1)
        assert world.holder.held(WANTED) is None

    asyncio.run(run())


def test_a_clock_that_is_ahead_shortens(world):
    async def run():
        await world.holder.get(WANTED)
        world.wall += seconds(100)
        assert world.holder.held(WANTED) is None
        with pytest.raises(ServerUnavailable, match="clock of this machine"):
            await world.holder.get(WANTED)
        assert world.wiped(1)

    asyncio.run(run())


def test_what_the_server_says_later_moves_time_forward_only():
    world = World()
    world.clock.heard(START, 1000.0)
    world.clock.heard(START - seconds(500), 1000.0)
    assert world.clock.now() == START
    world.clock.heard(START + seconds(30), 1010.0)
    assert world.clock.now() == START + seconds(20)
    world.boot += 15
    assert world.clock.now() == START + seconds(35)


def test_renewed_between_half_and_three_quarters(world):
    async def run():
        for chance, due in ((0.0, 50), (0.5, 62.5), (0.999, 74.97)):
            world.holder = KeyHolder(lambda: world, world.clock, chance=lambda chance=chance: chance)
            held = await world.holder.get(WANTED)
            at = (held.renew_at - world.server).total_seconds()
            assert at == pytest.approx(due, abs=0.1)
            assert held.renew_at >= held.lease.renew_after
        world.passes(74.8)
        await world.settle()
        assert world.renewals == []
        world.passes(0.2)
        await world.settle()
        assert len(world.renewals) == 1
        assert held.lease.not_after == world.server + seconds(100)

    asyncio.run(run())


def test_an_outage_and_the_end_of_it(world):
    async def run():
        held = await world.holder.get(WANTED)
        world.answers = [ServerUnavailable("away")] * 3
        for _ in range(30):
            world.passes(3)
            await world.settle()
        assert held.failures == 0
        assert world.asked >= 5
        assert world.holder.held(WANTED) is held
        assert held.lease.not_after > START + seconds(150)

    asyncio.run(run())


@pytest.mark.parametrize("code", ["revoked", "policy", "evicted", "expired", "", "new"])
def test_withdrawn(world, code):
    async def run():
        await world.holder.get(WANTED)
        world.answers = [code or "no such lease"]
        world.passes(65)
        await world.settle()
        assert world.wiped()
        assert world.holder.held(WANTED) is None

    asyncio.run(run())


def test_evidence_anew(world):
    async def run():
        held = await world.holder.get(WANTED)
        world.answers = ["attest-again", ServerUnavailable("away")]
        world.passes(65)
        await world.settle()
        assert world.holder.held(WANTED) is held  # until new evidence is taken
        await world.settle()
        assert held.failures == 1
        world.passes(10)
        await world.settle()
        new = world.holder.held(WANTED)
        assert new is not None
        assert new is not held
        assert world.wiped(0)
        assert not world.wiped(1)

    asyncio.run(run())


def test_evidence_anew_that_is_refused(world):
    async def run():
        await world.holder.get(WANTED)
        world.answers = ["attest-again", "policy"]
        world.passes(65)
        await world.settle()
        await world.settle()
        assert world.wiped()

    asyncio.run(run())


def test_one_flight(world):
    async def run():
        found = await asyncio.gather(*(world.holder.get(WANTED) for _ in range(200)))
        assert len({id(held) for held in found}) == 1
        assert world.asked == 1

    asyncio.run(run())


def test_one_flight_that_fails_for_all(world):
    world.answers = ["policy"]

    async def run():
        asking = (world.holder.get(WANTED) for _ in range(200))
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(one) for one in found} == {ReleaseDenied}
        assert world.asked == 1
        with pytest.raises(ReleaseDenied):  # remembered
            await world.holder.get(WANTED)
        assert world.asked == 1

    asyncio.run(run())


def test_who_goes_away_does_not_end_the_flight_of_others(world):
    async def run():
        first = asyncio.ensure_future(world.holder.get(WANTED))
        second = asyncio.ensure_future(world.holder.get(WANTED))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).version == 1

    asyncio.run(run())


def test_wiped_on_the_way_to_who_asked(world):
    """Between the end of a flight and the turn of who waits, the key can be withdrawn."""

    async def run():
        flight = world.holder._fly(WANTED)
        flight.add_done_callback(lambda done: world.holder._drop(done.result(), "withdrawn"))
        with pytest.raises(ServerUnavailable, match="withdrawn"):
            await world.holder.get(WANTED)

    asyncio.run(run())


def test_bounds(world, monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 3)
    names = [WantedKey(KeyName(f"m{index}"), bytes(16)) for index in range(4)]

    async def run():
        for wanted in names[:3]:
            await world.holder.get(wanted)
        with pytest.raises(ServerUnavailable, match="no more"):
            await world.holder.get(names[3])
        # Those that are held are renewed all the same.
        world.answers = ["attest-again"]
        world.passes(65)
        await world.settle()
        await world.settle()
        assert len(world.deks) == 6

    asyncio.run(run())


def test_so_many_are_asked_for_at_once(world, monkeypatch):
    monkeypatch.setattr(module, "MAX_FLIGHTS", 2)
    names = [WantedKey(KeyName(f"m{index}"), bytes(16)) for index in range(3)]

    async def run():
        first = [asyncio.ensure_future(world.holder.get(one)) for one in (*names[:2], names[0])]
        await asyncio.sleep(0)
        with pytest.raises(ServerUnavailable, match="no more"):
            await world.holder.get(names[2])
        assert [one.version for one in await asyncio.gather(*first)] == [1, 1, 1]
        assert (await world.holder.get(names[2])).version == 1
        assert world.asked == 3

    asyncio.run(run())


def test_nothing_after_the_end(world):
    async def run():
        await world.holder.get(WANTED)
        await world.holder.close()
        assert world.wiped()
        assert world.ended == ["lease-1"]
        with pytest.raises(ServerUnavailable):
            await world.holder.get(WANTED)

    asyncio.run(run())
