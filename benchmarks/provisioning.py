"""Provisionings of Gramine's clients per second of one core of the key server.

    python benchmarks/provisioning.py [--seconds 10] [--clients 4] [--rounds 3]

A real port with a durable SQLite database in a process of its own; clients in other processes, each with a
key, a certificate and a connection for each provisioning, as Gramine does it. A provisioning is a handshake of
TLS 1.2 with a certificate of P-384 on the client's side, the certificate parsed, the quote verified, policy, lease
and audit record on the disk, the secret sent, the connection closed by both.

``dcap``: all of it, with one process that verifies quotes, whose time counts. ``none``: a stand-in, which exists
here alone, believes what the quote says. CPU seconds of the server's processes are what is divided by; clients
and other programs take none of them, so the figures hold on a machine that is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import uvloop

from keyserver import cpu_seconds, endorse
from strongroom.attest.dcap_quote import Quote
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.roots import production
from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.gramine.door import Door
from strongroom.keyserver.gramine.provisioning import Provisioning
from strongroom.keyserver.keks.envelope import HeldKek
from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.release import ReleaseService
from strongroom.keyserver.settings import Limits, Tls
from strongroom.keyserver.store import Actor, Store
from strongroom.keyserver.tls_files import make_certificates
from strongroom.keyserver.verification import VerificationPool
from strongroom.testing.gramine import GramineClient
from strongroom.testing.intel import IntelPki
from strongroom.web.logs import configure_logging

MR_ENCLAVE = bytes(range(32))
NAME = "models/benchmark"
POLICY = {
    "id": "benchmark",
    "version": 1,
    "keys": [NAME],
    "test_roots": True,
    "any": [{"kind": "sgx", "mr_enclave": [MR_ENCLAVE.hex()]}],
    "gramine": [{"key": NAME, "form": "wrap-key"}],
}
OWNER = Actor("benchmark", "owner", "local")
LIMITS = Limits(requests_per_second=1e6, burst=10**6, connections_per_address=4096)


class Believing:
    """Takes every quote at its word: for the time of everything else."""

    async def verify(self, evidence: Sequence[Evidence], now: datetime) -> tuple[list[Claims], float]:
        quote = Quote.parse(evidence[0].data)
        values = {**quote.values, "tcb_status": "UpToDate", "advisories": [], "tcb_eval": 20}
        values |= {"tcb_date": "2024-03-13T00:00:00Z", "fmspc": "00" * 6}
        end = now + timedelta(days=1)
        return [Claims("sgx", values, quote.report_data, False, "ppid:00", end, True)], 0.0


def serve(folder: Path, mode: str, pki: IntelPki, listening: socket.socket, ready: Any) -> None:
    log = (folder / "log").open("w")
    configure_logging(log)  # as the server does, and to a file
    sys.setswitchinterval(0.0005)  # as the server
    store = Store.create(
        f"sqlite:///{folder}/{mode}.db", HeldKek("benchmark", SecretBytes(bytes(32))), test=True
    )
    store.add_key(NAME, None, bytes(16), SecretBytes.random(32), OWNER, {})
    store.put_policy(POLICY, OWNER)
    pool = VerificationPool(pki.roots(production()), [f"files:{folder}/endorsements"], workers=1)
    release = ReleaseService(store, server_id="benchmark", pool=pool, allow_test_roots=True)
    provisioning = Provisioning(
        store,
        pool=pool if mode == "dcap" else Believing(),
        challenge=release.challenge,
        allow_test_roots=True,
        metrics=Metrics(),
    )
    place = folder / "tls"
    tls = Tls(place / "server.pem", place / "server.key")
    door = Door(tls, LIMITS, provisioning, Metrics(), [listening])

    async def run() -> None:
        if mode == "dcap":
            await pool.start()
        await door.start()
        ready.set()
        await asyncio.Event().wait()

    uvloop.run(run())


def ask(port: int, ca: str, pki: IntelPki, start: Any, end: Any, count: Any) -> None:
    client = GramineClient(pki, parts={"mr_enclave": MR_ENCLAVE})
    shown = client.certificate()
    start.wait()
    while not end.is_set():
        if len(client.ask(port, ca, shown=shown)) != 16:
            raise SystemExit("no key")
        with count.get_lock():
            count.value += 1


def measure(folder: Path, mode: str, pki: IntelPki, arguments: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    ready, start, end = context.Event(), context.Event(), context.Event()
    count = context.Value("Q", 0)
    server = context.Process(target=serve, args=(folder, mode, pki, listening, ready))
    server.start()
    listening.close()
    ca = (folder / "tls" / "ca.pem").read_text()
    clients = [
        context.Process(target=ask, args=(port, ca, pki, start, end, count))
        for _ in range(arguments.clients)
    ]
    try:
        if not ready.wait(120):
            raise SystemExit("the server does not start")
        for one in clients:
            one.start()
        start.set()
        time.sleep(1)
        assert server.pid is not None
        done, used, began = count.value, cpu_seconds([server.pid]), time.perf_counter()
        time.sleep(arguments.seconds)
        done, used = count.value - done, cpu_seconds([server.pid]) - used
        seconds = time.perf_counter() - began
        end.set()
        for one in clients:
            one.join(60)
    finally:
        for one in (*clients, server):
            if one.pid is not None:
                for child in psutil.Process(one.pid).children() if one.is_alive() else ():
                    child.kill()
                one.kill()
                one.join()
    return {
        "dcap": mode == "dcap",
        "per_second_of_a_core": round(done / used, 1),
        "cpu_ms": round(used / done * 1000, 2),
        "per_second_here": round(done / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pki = IntelPki.create(datetime.now(UTC).replace(microsecond=0))
    for round_ in range(arguments.rounds):
        for mode in ("none", "dcap"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                make_certificates(folder / "tls", "benchmark", "localhost")
                endorse(folder, "sgx", pki)
                print(
                    json.dumps({"round": round_, **measure(folder, mode, pki, arguments)}), flush=True
                )


if __name__ == "__main__":
    main()
