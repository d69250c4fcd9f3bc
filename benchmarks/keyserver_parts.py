"""CPU time of the thread of a key server that answers, for one release, without network and TLS.

    python benchmarks/keyserver_parts.py [--releases 400] [--rounds 5] [--profile]

The server's own parts in this process: HTTP connections whose other end is a list, limits, routes, the
store in SQLite, evidence verified by a process. What clients do is done before it is measured, and what
other threads and processes take is not counted: the number hardly changes when others use the machine.
The least of the rounds counts. ``--profile`` prints where Python spends the time.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from keyserver import BUNDLE, NAME, Machine, make
from strongroom.attest.sources import endorsement_source
from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.format.encoding import dump_json
from strongroom.keyserver.app import make_app
from strongroom.keyserver.config import load_config
from strongroom.keyserver.direct_routes import DirectRoutes
from strongroom.keyserver.enrolment import Enrolments
from strongroom.keyserver.guard import Guard
from strongroom.keyserver.identities import Identities
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.opening import now, open_store
from strongroom.keyserver.release import ReleaseService
from strongroom.keyserver.services import Services
from strongroom.keyserver.tls import protocol_class
from strongroom.keyserver.trust import roots_of
from strongroom.keyserver.verification import VerificationPool
from strongroom.providers.keyserver.client import Attester
from strongroom.release.answer import open_answer
from strongroom.release.binding import WantedKey
from strongroom.release.messages import Challenge, ReleaseRequest
from strongroom.release.names import KeyName
from strongroom.testing.intel import IntelPki
from strongroom.web.logs import configure_logging

_CONNECTIONS = 16


class Pipe(asyncio.Transport):
    """A connection's other end: a request is given to the protocol, and its answer kept."""

    def __init__(self, make_protocol: Callable[[], Any]) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", 4712)})
        self._protocol = make_protocol()
        self._protocol.connection_made(self)
        self._answer: asyncio.Future[bytes] | None = None

    def write(self, data: Any) -> None:
        assert self._answer is not None
        self._answer.set_result(bytes(data))

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """The answer, head and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._protocol.data_received(request)
        return self._answer

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise SystemExit("the server has closed a connection")

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Bench:
    """A server in this process, and its clients.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        self._pki = IntelPki.create(datetime.now(UTC))
        path, self._profile, self._dek = make(folder, None, self._pki, 2)
        config = load_config(path)
        self.store = open_store(config, None)
        metrics = Metrics()
        roots = roots_of(config.attestation)
        self.pool = VerificationPool(roots, config.attestation.endorsements, workers=2)
        release = ReleaseService(
            self.store,
            server_id=config.server_id,
            pool=self.pool,
            clock=now,
            allow_test_roots=True,
            metrics=metrics,
        )
        identities = Identities.from_config(config, endorsement_source(config.attestation.endorsements))
        enrolments = Enrolments(self.store.secret("challenge"), config.server_id, roots)
        here = Services(config, self.store, release, metrics, identities, enrolments, now)
        settings = uvicorn.Config(
            Guard(DirectRoutes(make_app(here)), config.limits, metrics),
            http=protocol_class(config.limits, metrics),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=3600,
        )
        settings.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Sun, 22 Nov 2026 12:00:00 GMT")]
        loop = asyncio.get_running_loop()

        def protocol() -> Any:
            return settings.http_protocol_class(  # type: ignore[call-arg]
                config=settings, server_state=state, app_state={}, _loop=loop
            )

        self._protocol, self._pipes = protocol, list[Pipe]()
        secret = SecretBytes.random(MLKEM768X25519.secret_size)
        self._key = secret, MLKEM768X25519.public_of(secret)

    async def ask_all(self, path: str, bodies: list[bytes]) -> tuple[list[bytes], float]:
        """The bodies of all answers, and the seconds of this thread for each."""
        requests = [
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        answers: list[bytes] = [b""] * len(requests)
        turns = iter(range(len(requests)))

        async def client(pipe: Pipe) -> None:
            for turn in turns:
                answers[turn] = await pipe.ask(requests[turn])

        begin = time.thread_time()
        await asyncio.gather(*map(client, self._pipes))
        used = time.thread_time() - begin
        if wrong := [one for one in answers if not one.startswith(b"HTTP/1.1 200")]:
            raise SystemExit(wrong[0].decode())
        return [one.partition(b"\r\n\r\n")[2] for one in answers], used / len(requests)

    async def round(self, count: int, profile: cProfile.Profile | None) -> tuple[float, float]:
        """Milliseconds of a challenge, and of a release."""
        gc.collect()
        if not self._pipes:  # not before a head is sent soon
            self._pipes = [Pipe(self._protocol) for _ in range(_CONNECTIONS)]
        if profile:
            profile.enable()
        challenges, first = await self.ask_all("/v1/challenge", [b"{}"] * count)
        if profile:
            profile.disable()
        asked = [self._request(Challenge.from_json(json.loads(one))) for one in challenges]
        if profile:
            profile.enable()
        answers, second = await self.ask_all("/v1/release", [body for _, body in asked])
        if profile:
            profile.disable()
        (bare, _), answer = asked[-1], json.loads(answers[-1])
        binding = bare.binding(self._profile.server_id)
        _, (result,) = open_answer(answer, binding, self._key[0], self._profile.signing_key)
        if result.dek != self._dek:
            raise SystemExit("a wrong key")
        return first * 1e3, second * 1e3

    def _request(self, challenge: Challenge) -> tuple[ReleaseRequest, bytes]:
        wanted = (WantedKey(KeyName(NAME), BUNDLE),)
        bare = ReleaseRequest(challenge.challenge, MLKEM768X25519.alg, self._key[1], wanted)
        evidence = Attester(Machine(self._pki)).collect(bare.binding(self._profile.server_id))
        return bare, dump_json({**bare.to_json(), "evidence": [one.to_json() for one in evidence]})


async def measure(folder: Path, arguments: SimpleNamespace) -> None:
    bench = Bench(folder)
    profile = cProfile.Profile(time.thread_time) if arguments.profile else None
    with closing(bench.store), closing(bench.pool):
        await bench.pool.start()
        await bench.round(_CONNECTIONS * 4, None)
        gc.collect()
        gc.freeze()
        rounds = [await bench.round(arguments.releases, profile) for _ in range(arguments.rounds)]
    challenge, release = (min(one) for one in zip(*rounds, strict=True))
    print(f"challenge {challenge:.3f} ms, release {release:.3f} ms, both {challenge + release:.3f} ms")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--releases", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as lines:
            configure_logging(lines)
            uvloop.run(measure(Path(folder), arguments))


if __name__ == "__main__":
    main()
