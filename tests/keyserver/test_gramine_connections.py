"""Connections at the port for Gramine, with a decision that the test makes: limits, and the end."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.gramine.door import Door
from strongroom.keyserver.settings import Limits, Tls
from strongroom.pki.certificates import issue, new_ca
from strongroom.testing.gramine import REQUEST, RESPONSE, GramineClient, certificate, exactly

PATIENCE = 60.0
SECRET = b"0123456789abcdef"
ANSWER = RESPONSE + len(SECRET).to_bytes(4, "big") + SECRET
CLIENT = GramineClient(None)
SHOWN = certificate(CLIENT.key, [])


class Decisions:
    """Give everybody the secret, once they may."""

    def __init__(self):
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def provision(self, certificate, name, source):
        self.asked.set()
        await self.may.wait()
        return SecretBytes(SECRET)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    place = tmp_path_factory.mktemp("tls")
    now = datetime.now(UTC)
    ca, ca_key = new_ca("test", now)
    for name, content in zip(
        ("server.pem", "server.key"), issue(ca, ca_key, "localhost", ["localhost"], now), strict=True
    ):
        (place / name).write_bytes(content)
    return SimpleNamespace(files=Tls(place / "server.pem", place / "server.key"), ca=ca.decode())


@asynccontextmanager
async def opened(tls, **limits):
    """The port; ``decisions``, ``refused`` and ``connect`` are what a test needs of it."""
    refused = []
    decisions = Decisions()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        numbers = SimpleNamespace(refused_early=refused.append)
        # Nobody is cut because the machine is slow.
        patient = {"head_seconds": 300.0, "answer_seconds": 300.0}
        door = Door(tls.files, Limits(**patient, **limits), decisions, numbers, [listener])
        await door.start()

        def connect():
            return CLIENT.connect(port, tls.ca, shown=SHOWN)

        try:
            yield SimpleNamespace(door=door, decisions=decisions, refused=refused, connect=connect)
        finally:
            await door.close(PATIENCE)


async def waits(work, *arguments):
    return await asyncio.wait_for(asyncio.to_thread(work, *arguments), PATIENCE)


def ask(connection):
    connection.sendall(REQUEST)
    return exactly(connection, len(ANSWER))


def ended(connection):
    with suppress(ConnectionError):
        while connection.recv(1000):
            pass


def test_how_often_an_address_may_ask(tls):
    async def run():
        async with opened(tls, requests_per_second=0.0001, burst=2) as port:
            port.decisions.may.set()
            for _ in range(2):
                with closing(await waits(port.connect)) as connection:
                    assert await waits(ask, connection) == ANSWER
            with pytest.raises(OSError):
                await waits(port.connect)
            assert port.refused == ["too-many-requests"]

    asyncio.run(run())


def test_a_place_is_free_again_when_its_connection_has_gone(tls):
    async def run():
        async with opened(tls, connections_per_address=1) as port:
            port.decisions.may.set()
            for _ in range(3):
                # The server may hear later than the client that a connection has ended.
                end = time.monotonic() + PATIENCE
                while True:
                    try:
                        connection = await waits(port.connect)
                        break
                    except OSError:
                        assert time.monotonic() < end
                with closing(connection):
                    assert await waits(ask, connection) == ANSWER
                    with pytest.raises(OSError):
                        await waits(port.connect)
            assert set(port.refused) == {"connections"}

    asyncio.run(run())


def test_the_end_waits_for_decisions_and_for_nobody_else(tls):
    async def run():
        async with opened(tls) as port:
            asking, idle = await waits(port.connect), await waits(port.connect)
            with closing(asking), closing(idle):
                answer = asyncio.create_task(waits(ask, asking))
                await asyncio.wait_for(port.decisions.asked.wait(), PATIENCE)
                end = asyncio.create_task(port.door.close(PATIENCE))
                await waits(ended, idle)
                assert not end.done()
                port.decisions.may.set()
                assert await answer == ANSWER
                await end

    asyncio.run(run())
