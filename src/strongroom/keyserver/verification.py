"""Evidence is verified in worker processes, within bounds of time and memory.

Verifying is a millisecond or four of one core that threads do not share (dcap-qvl holds the lock of
the interpreter, 1230 verifications a second with one thread and 1390 with two), and it is parsing of
bytes from strangers: both are reasons for processes that hold no key.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.roots import Roots
from strongroom.errors import MalformedEvidence, Unavailable
from strongroom.format.encoding import dump_json
from strongroom.keyserver.verification_frames import (
    MAX_ANSWER_FRAME,
    SIZE,
    frame,
    parse_answer,
    request_frame,
    roots_to_json,
)

__all__ = ["VerificationPool"]

_START_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 1.0
_QUEUE_SECONDS: Final = 10.0
"""A request that has waited so long for a worker is answered that the server is busy."""


class _Worker(asyncio.Protocol):
    """One process, and the connection to it."""

    def __init__(self, setup: bytes, memory: int) -> None:
        self._setup = setup
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._asked: asyncio.Future[bytes] | None = None

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "strongroom.keyserver.verification_worker"]
            self._process = subprocess.Popen(  # noqa: S603
                [*command, str(theirs.fileno()), str(self._memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        await self.ask(frame(self._setup), _START_SECONDS)

    async def ask(self, request: bytes, seconds: float) -> bytes:
        """The body of the answer; one request at a time.

        Raises:
            TimeoutError: there is none within ``seconds``.
            ConnectionError: the process has ended, or answers something else.
        """
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError
        loop = asyncio.get_running_loop()
        self._asked = loop.create_future()
        # Streams and asyncio.timeout would do the same, and cost a release twice as much here.
        timer = loop.call_later(seconds, self._fail, TimeoutError())
        try:
            self._transport.write(request)
            return await self._asked
        finally:
            timer.cancel()
            self._asked = None

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        size = SIZE.unpack_from(received)[0] if len(received) >= SIZE.size else 0
        missing = SIZE.size + size - len(received)
        if self._asked is None or missing < 0 or size > MAX_ANSWER_FRAME:
            assert self._transport is not None
            self._transport.abort()
        elif not missing:
            answer = bytes(received[SIZE.size :])
            received.clear()
            if not self._asked.done():
                self._asked.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionResetError())

    def _fail(self, error: OSError) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()  # at once: it has been killed
            self._process = None


def _environment() -> dict[str, str]:
    """A worker gets no secret of the server's environment."""
    kept = (
        "PATH",
        "LANG",
        "LC_ALL",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "TZ",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    )
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in (*kept, *proxies) if name in os.environ}


class VerificationPool:
    """Workers that verify evidence, each one piece of work at a time.

    Args:
        roots: whom to believe.
        endorsements: specs of endorsement sources, see :mod:`strongroom.attest.sources`.
        workers: processes.
        timeout: seconds for the evidence of one request; then its worker is killed and replaced.
        memory: MiB that a worker may use above what it starts with.
    """

    def __init__(
        self,
        roots: Roots,
        endorsements: Sequence[str] = (),
        *,
        workers: int = 2,
        timeout: float = 5.0,
        memory: int = 256,
    ) -> None:
        self._setup = dump_json({"roots": roots_to_json(roots), "endorsements": list(endorsements)})
        self._timeout = timeout
        self._memory = memory
        self._count = workers
        self._all: set[_Worker] = set()
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._waiting = 0
        self._replacing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the workers; returns when all of them are ready.

        Raises:
            Unavailable: they do not start.
        """
        try:
            await asyncio.gather(*(self._add() for _ in range(self._count)))
        except OSError as error:
            self.close()
            raise Unavailable("The processes that verify evidence do not start.") from error

    async def _add(self) -> None:
        worker = _Worker(self._setup, self._memory)
        self._all.add(worker)
        try:
            await worker.start()
        except BaseException:
            self._all.discard(worker)
            worker.stop()
            raise
        self._idle.put_nowait(worker)

    async def verify(self, evidence: Sequence[Evidence], now: datetime) -> tuple[list[Claims], float]:
        """The claims of every piece of evidence at ``now``, and the seconds that it took a worker.

        Raises:
            EvidenceError: one piece is not authentic, or took too long or too much memory.
            Unavailable: no worker is free for long, or an endorsement source does not answer.
        """
        if not evidence:
            return [], 0.0
        worker = await self._free()
        healthy = False
        try:
            body = await worker.ask(request_frame(evidence, now), self._timeout)
            healthy = True
        except TimeoutError:
            raise MalformedEvidence("Verifying the evidence takes too long.") from None
        except OSError:
            raise MalformedEvidence("The evidence brought its verifier down.") from None
        finally:
            # Also when the request was cancelled: what the worker says next belongs to nobody.
            if healthy:
                self._idle.put_nowait(worker)
            else:
                self._replace(worker)
        claims, seconds = parse_answer(body)
        if [one.kind for one in claims] != [one.kind for one in evidence]:
            raise MalformedEvidence("The evidence could not be verified.")
        return claims, seconds

    async def _free(self) -> _Worker:
        if not self._waiting and not self._idle.empty():
            return self._idle.get_nowait()
        self._waiting += 1
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                return await self._idle.get()
        except TimeoutError:
            raise Unavailable("The key server is busy.", hint="Ask again in a few seconds.") from None
        finally:
            self._waiting -= 1

    async def _add_again(self) -> None:
        while True:
            try:
                return await self._add()
            except OSError:
                await asyncio.sleep(_AGAIN_SECONDS)

    def _replace(self, worker: _Worker) -> None:
        self._all.discard(worker)
        worker.stop()
        task = asyncio.ensure_future(self._add_again())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    def close(self) -> None:
        """Kill the workers."""
        for task in self._replacing:
            task.cancel()
        for worker in self._all:
            worker.stop()
        self._all.clear()
