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


class _Worker:
    """One process, and the connection to it."""

    def __init__(self, setup: bytes, memory: int) -> None:
        self._setup = setup
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

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
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=ours, limit=MAX_ANSWER_FRAME
        )
        async with asyncio.timeout(_START_SECONDS):
            await self.ask(frame(self._setup))

    async def ask(self, request: bytes) -> bytes:
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(request)
        (size,) = SIZE.unpack(await self._reader.readexactly(SIZE.size))
        if size > MAX_ANSWER_FRAME:
            raise ConnectionError
        return await self._reader.readexactly(size)

    def stop(self) -> None:
        if self._writer is not None:
            self._writer.close()
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
        self._replacing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the workers; returns when all of them are ready.

        Raises:
            Unavailable: they do not start.
        """
        try:
            await asyncio.gather(*(self._add() for _ in range(self._count)))
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
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
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                worker = await self._idle.get()
        except TimeoutError:
            raise Unavailable("The key server is busy.", hint="Ask again in a few seconds.") from None
        healthy = False
        try:
            async with asyncio.timeout(self._timeout):
                body = await worker.ask(request_frame(evidence, now))
            healthy = True
        except TimeoutError:
            raise MalformedEvidence("Verifying the evidence takes too long.") from None
        except (OSError, asyncio.IncompleteReadError):
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

    async def _add_again(self) -> None:
        while True:
            try:
                return await self._add()
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
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
