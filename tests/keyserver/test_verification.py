"""The processes that verify evidence: the same claims as in one process, whatever happens to them."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from strongroom.attest import roots
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic, Unavailable
from strongroom.keyserver import verification
from strongroom.keyserver.verification import VerificationPool
from strongroom.keyserver.verification_frames import (
    MAX_ANSWER_FRAME,
    SIZE,
    answer_frame,
    error_frame,
    frame,
    parse_answer,
    parse_request,
    request_frame,
    roots_from_json,
    roots_to_json,
)

DATA = Path(__file__).parents[1] / "attest" / "data"
NOW = datetime(2025, 7, 10, tzinfo=UTC)
TDX = Evidence(
    "tdx",
    (DATA / "dcap/tdx_v4.bin").read_bytes(),
    ((DATA / "dcap/collateral/tdx_B0C06F000000.json").read_bytes(),),
)


def with_pool(use, **options):
    async def run():
        pool = VerificationPool(roots.production(), **{"workers": 1, **options})
        await pool.start()
        try:
            return await use(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def workers() -> list[psutil.Process]:
    return [
        one for one in psutil.Process().children() if "verification_worker" in " ".join(one.cmdline())
    ]


def test_same_claims_as_in_this_process():
    found, seconds = with_pool(lambda pool: pool.verify([TDX], NOW))
    assert found == [verify(TDX, Context(NOW, roots.production()))]
    assert 0 < seconds < 60


def test_errors_come_back_as_they_are():
    changed = bytearray(TDX.data)
    changed[200] ^= 1
    with pytest.raises(NotAuthentic):
        with_pool(lambda pool: pool.verify([replace(TDX, data=bytes(changed))], NOW))
    with pytest.raises(MalformedEvidence, match="not known"):
        with_pool(lambda pool: pool.verify([Evidence("abacus", b"1")], NOW))


def test_no_evidence_needs_no_worker():
    assert with_pool(lambda pool: pool.verify([], NOW)) == ([], 0.0)


def test_many_at_once():
    async def use(pool):
        return await asyncio.gather(*(pool.verify([TDX], NOW) for _ in range(50)))

    expected = verify(TDX, Context(NOW, roots.production()))
    assert all(found == [expected] for found, _ in with_pool(use, workers=2))


@pytest.mark.parametrize("what", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_hangs_or_dies_is_replaced(what):
    async def use(pool):
        (worker,) = workers()
        worker.send_signal(what)
        began = time.monotonic()
        with pytest.raises(MalformedEvidence, match=r"too long|brought its verifier down"):
            await pool.verify([TDX], NOW)
        assert time.monotonic() - began < 60
        pool._timeout = 60.0  # a busy machine needs more than one
        found, _ = await pool.verify([TDX], NOW)
        (successor,) = workers()
        assert successor.pid != worker.pid
        return found

    assert with_pool(use, timeout=1.0)[0].kind == "tdx"
    assert workers() == []


def test_an_answer_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    """A worker that was taken over says that four gigabytes follow."""
    liar = tmp_path / "liar"
    liar.write_text(
        f"#!{sys.executable}\n"
        "import socket, sys, time\n"
        "with socket.socket(fileno=int(sys.argv[3])) as server:\n"
        "    server.recv(1 << 20)\n"
        "    server.sendall(bytes(4))\n"
        "    server.recv(1 << 20)\n"
        "    server.sendall(b'\\xff' * 8)\n"
        "    time.sleep(60)\n"
    )
    liar.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(liar))
    with pytest.raises(MalformedEvidence, match="brought its verifier down"):
        with_pool(lambda pool: pool.verify([TDX], NOW), timeout=60)


def test_what_a_cancelled_request_asked_is_not_the_next_ones_answer():
    async def use(pool):
        task = asyncio.ensure_future(pool.verify([Evidence("abacus", b"1")], NOW))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await pool.verify([TDX], NOW)

    assert with_pool(use)[0][0].kind == "tdx"


def test_a_worker_has_a_bound_of_memory():
    async def use(pool):
        (worker,) = workers()
        soft, _ = worker.rlimit(psutil.RLIMIT_AS)
        assert 0 < soft < worker.memory_info().vms + (65 << 20)
        with pytest.raises(EvidenceError):
            await pool.verify([Evidence("tdx", b"\x04" * (60 << 10), (b"{" * (1 << 20),))], NOW)
        return await pool.verify([TDX], NOW)

    assert with_pool(use, memory=64)[0][0].kind == "tdx"


def test_a_worker_knows_no_secret_of_the_server(monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEK_PASSPHRASE", "canary-in-the-environment")

    async def use(pool):
        (worker,) = workers()
        return Path(f"/proc/{worker.pid}/environ").read_bytes()

    environment = with_pool(use)
    assert b"canary" not in environment
    assert b"PATH=" in environment


def test_workers_go_with_their_server():
    code = (
        "import asyncio, os, psutil\n"
        "from strongroom.attest.roots import production\n"
        "from strongroom.keyserver.verification import VerificationPool\n"
        "async def run():\n"
        "    pool = VerificationPool(production(), workers=2)\n"
        "    await pool.start()\n"
        "    print(*(one.pid for one in psutil.Process().children()), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(run())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    found = done.stdout.split()
    assert len(found) == 2
    end = time.monotonic() + 60
    while any(map(runs, found)):
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_busy_is_said(monkeypatch):
    monkeypatch.setattr(verification, "_QUEUE_SECONDS", 0.2)

    async def use(pool):
        (worker,) = workers()
        worker.suspend()
        first = asyncio.ensure_future(pool.verify([TDX], NOW))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="busy"):
            await pool.verify([TDX], NOW)
        worker.resume()
        return await first

    assert with_pool(use, timeout=60)[0][0].kind == "tdx"


def beside(use):
    """A worker object, and the socket of a process that says what the test wants."""

    async def run():
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            worker = verification._Worker(b"", 1)
            loop = asyncio.get_running_loop()
            worker._transport, _ = await loop.create_unix_connection(lambda: worker, sock=ours)
            try:
                return await use(worker, theirs)
            finally:
                worker.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("cuts", [[], [2], [4], [5, 9], list(range(1, 14))])
def test_an_answer_may_come_in_pieces(cuts):
    async def use(worker, theirs):
        answer = frame(b"answer no. %d")
        found = []
        for _ in range(2):
            asked = asyncio.ensure_future(worker.ask(b"question", 10))
            for begin, end in pairwise([0, *cuts, len(answer)]):
                theirs.send(answer[begin:end])
                await asyncio.sleep(0.002)
            found.append(await asked)
        return found, theirs.recv(100)

    assert beside(use) == ([b"answer no. %d"] * 2, b"question" * 2)


def test_an_empty_answer_is_one():
    async def use(worker, theirs):
        asyncio.get_running_loop().call_later(0.01, theirs.send, SIZE.pack(0))
        return await worker.ask(b"question", 10)

    assert beside(use) == b""


@pytest.mark.parametrize(
    "said",
    [
        frame(b"answer") + b"x",
        frame(b"answer") + frame(b"the next answer"),
        SIZE.pack(MAX_ANSWER_FRAME + 1),
        SIZE.pack(0xFFFFFFFF),
        b"",
    ],
    ids=["more", "two", "large", "largest", "end"],
)
def test_a_worker_that_says_something_else_is_not_heard(said):
    async def use(worker, theirs):
        loop = asyncio.get_running_loop()
        if said:
            loop.call_later(0.01, theirs.send, said)
        else:
            loop.call_later(0.01, theirs.shutdown, socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            await worker.ask(b"question", 10)
        with pytest.raises(ConnectionError):
            await worker.ask(b"another", 10)

    beside(use)


def test_a_worker_that_was_not_asked_is_not_heard():
    async def use(worker, theirs):
        theirs.send(frame(b"answer"))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionError):
            await worker.ask(b"question", 10)

    beside(use)


def test_an_answer_that_does_not_come_in_time():
    async def use(worker, theirs):
        with pytest.raises(TimeoutError):
            await worker.ask(b"question", 0.05)

    beside(use)


def test_who_waits_is_served_in_turn():
    async def use(pool):
        order = []

        async def ask(name):
            await pool.verify([TDX], NOW)
            order.append(name)

        first = asyncio.ensure_future(ask(0))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(ask(name)) for name in (1, 2)]
        await first
        # Comes when the worker is free again and promised to somebody.
        await asyncio.gather(ask(3), *waiting)
        return order

    assert with_pool(use) == [0, 1, 2, 3]


def test_frames_keep_everything():
    other = Evidence("nvidia", b"\x00\x01", (b"", b"abc"))
    evidence, now = parse_request(request_frame([TDX, other], NOW)[SIZE.size :])
    assert evidence == [TDX, other]
    assert now == NOW
    assert roots_from_json(roots_to_json(roots.production())) == roots.production()


def claims() -> Claims:
    return Claims("tdx", {"mr_td": "00"}, b"\x01", False, None, NOW, False, ("x",))


@pytest.mark.parametrize(
    "lie", [[], [claims()] * 2, [replace(claims(), kind="snp")], [replace(claims(), kind="mtls")]]
)
def test_claims_are_about_the_evidence_that_was_asked_about(lie, monkeypatch):
    async def ask(self, *arguments):
        return answer_frame(lie, 0.0)[SIZE.size :]

    monkeypatch.setattr(verification._Worker, "ask", ask)
    with pytest.raises(MalformedEvidence, match="could not be verified"):
        with_pool(lambda pool: pool.verify([TDX], NOW))


def test_answers_of_a_worker_that_was_taken_over():
    """It can lie about its evidence; it cannot say less than everything, or hand over code."""
    good = answer_frame([claims()], 0.5)[SIZE.size :]
    assert parse_answer(good) == ([claims()], 0.5)
    for lie in (
        b"",
        b"[]",
        b"{}",
        good.replace(b'"bound":"01"', b'"bound":"zz"'),
        good.replace(b"+00:00", b""),
        good.replace(b'"platform":null', b'"platform":5'),
        b"\x80\x05cos\nsystem\n.",
    ):
        with pytest.raises(EvidenceError):
            parse_answer(lie)
    (found,), _ = parse_answer(good.replace(b'"debug":false', b'"debug":null'))
    assert found.debug
    (found,), _ = parse_answer(good.replace(b'"test_root":false', b'"test_root":0'))
    assert found.test_root
    error = error_frame(Unavailable("No collateral.", hint="Later."))[SIZE.size :]
    with pytest.raises(Unavailable, match="No collateral"):
        parse_answer(error)
