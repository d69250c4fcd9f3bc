"""Attested releases per second of one core, and what a restart of a fleet costs.

    python benchmarks/keyserver.py [releases] [--database sqlite|postgresql] [--seconds 15]
                                   [--concurrency 16] [--rate 120] [--shared] [--light]
    python benchmarks/keyserver.py fleet [--machines 2000] [--within 10]
    python benchmarks/keyserver.py cache [--outage 600]

A real server over TLS, with a durable database. Each release is a challenge, a TDX quote bound to it
(synthetic, under a test root; verified with DCAP like any other), policy, X-Wing, a signed answer that
the client verifies and opens, and an audit record that is on the disk before.

``releases``: the server, its workers and the database have one core, the clients another; ``--shared``
leaves all cores to all. As fast as they can, sixteen clients wait for one another (16 / releases per
second, at least); with ``--rate`` so many begin in a second, and times count from when each should:
``late_p99_ms`` is how much of them passed before a client was free to ask. ``disk_p99_ms`` is what one
write of 8 KB to the disk takes when nothing else runs. Measuring begins a second after all have a key.
``cpu_stolen`` is what the host gave to others meanwhile, in cores: no machine is quiet where it is not near 0.
``ms_of_loop``, ``ms_of_threads``, ``ms_of_workers``: milliseconds of a core for one release, in the thread
that answers, in those beside it (the one that writes), in the processes that verify.
``--light``: clients that leave the cores to the server (``light_client.py``). ``fleet``: machines ask
once each, at random moments within some seconds, each over a connection of its own, at one of two
servers with one PostgreSQL; who is refused for load asks again after a jittered delay. ``cache``: fifty processes ask the key cache of a machine for one key at the
same moment, and must cause one release; then one asks again and again; then the server is away for some
seconds, while keys are asked for every tenth of a second.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from light_client import LightClient

from strongroom.attest.endorsements import Wanted as WantedEndorsement
from strongroom.attest.evidence import Evidence
from strongroom.attest.sources.files import DirectorySource
from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.config import load_config
from strongroom.keyserver.init import Wanted, initialise
from strongroom.keyserver.opening import open_store
from strongroom.keyserver.store import Actor
from strongroom.providers.keyserver.client import Attester, ReleaseClient
from strongroom.providers.keyserver.profile import Profile, read_profile
from strongroom.providers.keyserver.transport import Transport
from strongroom.providers.unix_socket import KeyCache
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName
from strongroom.testing.intel import IntelPki

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "keyserver"))

MR_TD = bytes(range(48))
RTMR1 = bytes(range(48, 96))
BUNDLE = bytes(range(16))
NAME = "models/benchmark"
POLICY = {
    "id": "benchmark",
    "version": 1,
    "keys": [NAME],
    "test_roots": True,
    "any": [{"kind": "tdx", "mr_td": [MR_TD.hex()], "rtmr": {"1": [RTMR1.hex()]}}],
    "lease": {"seconds": 3600},
}


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def endorse(folder: Path, tee: str, pki: IntelPki) -> Path:
    """A directory with what Intel says of machines of this PKI."""
    place = folder / "endorsements"
    place.mkdir()
    wanted = {"tee": tee, "fmspc": pki.fmspc.hex().upper(), "ca": "platform"}
    DirectorySource(place).store(WantedEndorsement("intel", wanted), pki.collateral(tee))
    return place


def make(
    folder: Path, database: str | None, pki: IntelPki, workers: int
) -> tuple[Path, Profile, SecretBytes]:
    """A server with one key and one policy; gives its configuration, its profile, and the key."""
    pki.save(folder / "node")
    made = initialise(
        folder / "server",
        Wanted(
            url=f"https://localhost:{free_port()}",
            kek_key_file=folder / "root.key",
            database=database,
            insecure_test_roots=folder / "node",
        ),
    )
    endorsements = endorse(folder, "tdx", pki)
    text = made.config.read_text()
    text = with_settings(
        text,
        {
            "attestation": f'endorsements = ["files:{endorsements}"]',
            "verification": f"workers = {workers}",
            "limits": "requests_per_second = 100000.0\nburst = 100000\nconnections_per_address = 4096",
        },
    )
    made.config.write_text(text)
    dek = SecretBytes(secrets.token_bytes(32))
    config = load_config(made.config)
    with closing(open_store(config, None)) as store:
        owner = Actor("benchmark", "owner", "local")
        store.add_key(NAME, None, BUNDLE, dek, owner, {})
        store.put_policy(POLICY, owner)
    return made.config, read_profile(made.profile), dek


def with_settings(text: str, settings: dict[str, str]) -> str:
    """The configuration with more members in some sections."""
    for section, lines in settings.items():
        head = f"[{section}]"
        text = (
            text.replace(head, f"{head}\n{lines}", 1) if head in text else f"{text}\n{head}\n{lines}\n"
        )
    return text


@contextmanager
def running(
    config: Path, profile: Profile, cpus: set[int] | None, port: int | None = None
) -> Iterator[int]:
    program = Path(sys.executable).with_name("strongroom")
    log = config.with_suffix(f".{port or 0}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "keyserver", "run", "--config", config],
            stdout=output,
            stderr=output,
            preexec_fn=None if cpus is None else lambda: os.sched_setaffinity(0, cpus),
        )
    try:
        with closing(Transport(profile, attempts=1)) as transport:
            for _ in range(300):
                try:
                    transport.request("GET", "/readyz")
                    break
                except Exception:
                    if process.poll() is not None:
                        raise SystemExit(log.read_text()) from None
                    time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass(frozen=True)
class Machine:
    """A trust domain with quotes of its own, as a collector."""

    pki: IntelPki
    kind: str = "tdx"

    def collect(self, bound: bytes) -> Evidence:
        return Evidence("tdx", self.pki.tdx_quote(bound, mr_td=MR_TD, rtmr1=RTMR1))


def release(client: ReleaseClient, expected: SecretBytes) -> None:
    """One whole release; raises if the key is not the right one."""
    (answer,) = client.release([WantedKey(KeyName(NAME), BUNDLE)])
    if answer.dek != expected:
        raise SystemExit("a wrong key")


@contextmanager
def client_of(
    arguments: argparse.Namespace, profile: Profile, attester: Attester, dek: SecretBytes
) -> Iterator[Callable[[], None]]:
    """What makes one release."""
    if not arguments.light:
        with closing(Transport(profile)) as transport:
            machine = ReleaseClient(profile, attester, transport=transport)
            yield lambda: release(machine, dek)
        return
    with closing(LightClient(profile, attester)) as light:

        def once() -> None:
            found = light.release(WantedKey(KeyName(NAME), BUNDLE))
            if found is not None and found != dek:
                raise SystemExit("a wrong key")

        yield once


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def cpu_seconds(pids: list[int]) -> float:
    """Of these processes and all below them."""
    total = 0.0
    for pid in pids:
        for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def cpu_of_threads(pid: int) -> list[float]:
    """Seconds of the first thread of a process, and of all others together."""
    found = {
        int(thread.name): int((thread / "schedstat").read_text().split()[0]) / 1e9
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }
    first = found.pop(pid)
    return [first, sum(found.values())]


def cpu_by_part(server: int) -> dict[str, float]:
    """Seconds of a server: of the thread that answers, of those beside it, of the processes that verify.

    What they take for one release differs little when others use the machine.
    """
    loop, threads = cpu_of_threads(server)
    workers = [one.pid for one in psutil.Process(server).children(recursive=True)]
    return {
        "loop": loop,
        "threads": threads,
        "workers": sum(sum(cpu_of_threads(one)) for one in workers),
    }


_PROCESSES = 4
"""Threads of one process wait for its interpreter, which would count as the server's time."""


def threads_of(arguments: argparse.Namespace) -> int:
    """Clients in each of the processes."""
    return max(1, int(arguments.concurrency) // _PROCESSES)


class Start:
    """The moment at which all clients, and who measures them, are ready: those that still connect would
    begin with turns that they have missed.
    """

    def __init__(self, context: Any, clients: int) -> None:
        self._moment = context.Value("d")
        self._barrier = context.Barrier(clients + 1, self._now, 120)
        self.abort = self._barrier.abort

    def _now(self) -> None:
        self._moment.value = time.perf_counter()

    def wait(self) -> float:
        """That moment, by ``time.perf_counter``, which all processes share."""
        self._barrier.wait()
        return float(self._moment.value)


def disk(folder: Path) -> list[float]:
    """Seconds of writes that wait for the disk."""
    found = []
    with (folder / "disk").open("wb") as file:
        for _ in range(300):
            os.pwrite(file.fileno(), secrets.token_bytes(8192), 0)
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - begin)
    return found


def client(
    arguments: argparse.Namespace,
    profile: Profile,
    pki: IntelPki,
    dek: SecretBytes,
    start: Start,
    results: Any,
    turns: Any,
) -> None:
    """Ask until the end in some threads; put the moments, seconds and delays of all into ``results``."""
    gc.freeze()  # a client that collects garbage is no slow server
    found: list[tuple[float, float, float]] = []
    failed: list[BaseException] = []

    def ask() -> None:
        with client_of(arguments, profile, Attester(Machine(pki)), dek) as once:
            once()  # connects
            paced = start.wait()
            end = paced + 1 + arguments.seconds
            while (asked := time.perf_counter()) < end:
                begin = asked
                if arguments.rate:
                    with turns.get_lock():
                        begin = paced + turns.value / arguments.rate
                        turns.value += 1
                    time.sleep(max(0.0, begin - time.perf_counter()))
                    asked = time.perf_counter()
                once()
                found.append((begin, time.perf_counter() - begin, asked - begin))

    def asking() -> None:
        try:
            ask()
        except (Exception, SystemExit) as error:
            failed.append(error)
            start.abort()

    threads = [threading.Thread(target=asking) for _ in range(threads_of(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((found, time.process_time()))
    if failed:
        raise SystemExit(str(failed[0]))


def releases(arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pki = IntelPki.create(datetime.now(UTC))
        server_cpus = None if arguments.shared else {0}
        database, pids = None, []
        if arguments.database == "postgresql":
            from postgres import Postgres

            postgres = Postgres()
            stack.callback(postgres.close)
            database = postgres.database()
            pids.append(postgres.pid)
            if server_cpus:
                for one in (
                    psutil.Process(postgres.pid),
                    *psutil.Process(postgres.pid).children(),
                ):
                    one.cpu_affinity(list(server_cpus))
        config, profile, dek = make(folder, database, pki, arguments.workers)
        server = stack.enter_context(running(config, profile, server_cpus))
        pids.append(server)
        if not arguments.shared:
            os.sched_setaffinity(0, {1})
        writes = disk(folder)
        context = multiprocessing.get_context("fork")
        results, turns = context.SimpleQueue(), context.Value("Q", 0)
        start = Start(context, _PROCESSES * threads_of(arguments))
        clients = [
            context.Process(target=client, args=(arguments, profile, pki, dek, start, results, turns))
            for _ in range(_PROCESSES)
        ]
        for one in clients:
            one.start()
        begin = start.wait() + 1
        end = begin + arguments.seconds
        time.sleep(begin - time.perf_counter())
        used, parts = cpu_seconds(pids), cpu_by_part(server)
        stolen = psutil.cpu_times().steal
        time.sleep(end - time.perf_counter())
        used = cpu_seconds(pids) - used
        stolen = psutil.cpu_times().steal - stolen
        parts = {name: seconds - parts[name] for name, seconds in cpu_by_part(server).items()}
        found, clients_used = [], 0.0
        for _ in clients:
            times, cpu = results.get()
            found += times
            clients_used += cpu
        for one in clients:
            one.join()
        if any(one.exitcode for one in clients):
            raise SystemExit("a client failed")
        found = [one for one in found if one[0] >= begin and one[0] + one[1] <= end]
        seconds = [took for _, took, _ in found]
        rate = len(seconds) / (end - begin)
        return {
            "database": arguments.database,
            "per_second": rate,
            "cpu_of_server": used / (end - begin),
            "per_cpu_second": rate / (used / (end - begin)),
            **{f"ms_of_{name}": value * 1e3 / len(seconds) for name, value in parts.items()},
            "cpu_of_clients": clients_used / (arguments.seconds + 1),
            "cpu_stolen": stolen / (end - begin),
            "p50_ms": statistics.median(seconds) * 1e3,
            "p99_ms": percentile(seconds, 0.99) * 1e3,
            "late_p99_ms": percentile([late for _, _, late in found], 0.99) * 1e3,
            "disk_p50_ms": statistics.median(writes) * 1e3,
            "disk_p99_ms": percentile(writes, 0.99) * 1e3,
            "concurrency": arguments.concurrency,
        }


def restart(
    machines: list[IntelPki],
    servers: tuple[Profile, ...],
    dek: SecretBytes,
    begin: float,
    within: float,
    answers: Any,
) -> None:
    """All machines ask once; puts the seconds of each, the failures, and the end into ``answers``."""
    results: list[float] = []
    failures: list[str] = []
    random.seed()

    def ask(machine: IntelPki, moment: float) -> None:
        time.sleep(max(0.0, moment - time.monotonic()))
        profile = random.choice(servers)
        try:
            with closing(Transport(profile, attempts=12)) as transport:
                release(ReleaseClient(profile, Attester(Machine(machine)), transport=transport), dek)
            results.append(time.monotonic() - moment)
        except (Exception, SystemExit) as error:
            failures.append(repr(error))

    threads = [
        threading.Thread(target=ask, args=(machine, begin + random.uniform(0, within)))
        for machine in machines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put((results, failures, time.monotonic()))


def fleet(arguments: argparse.Namespace) -> dict[str, Any]:
    from postgres import Postgres

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pki = IntelPki.create(datetime.now(UTC))
        postgres = Postgres()
        stack.callback(postgres.close)
        config, profile, dek = make(folder, postgres.database(), pki, 1)
        first = json.loads((config.parent / "profile.json").read_text())
        second_port = free_port()
        second = folder / "second"
        shutil.copytree(config.parent, second)
        replica = second / config.name
        replica.write_text(
            replica.read_text().replace(
                f"port = {first['url'].rsplit(':', 1)[1]}", f"port = {second_port}"
            )
        )
        there = profile_at(profile, f"https://localhost:{second_port}")
        pids = [
            postgres.pid,
            stack.enter_context(running(config, profile, None)),
            stack.enter_context(running(replica, there, None, second_port)),
        ]
        machines = [
            pki.another(ppid=secrets.token_bytes(16), piid=secrets.token_bytes(16))
            for _ in range(arguments.machines)
        ]
        begin = time.monotonic() + 3
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        used = cpu_seconds(pids)
        parts = [machines[number::_PROCESSES] for number in range(_PROCESSES)]
        groups = [
            context.Process(
                target=restart, args=(part, (profile, there), dek, begin, arguments.within, answers)
            )
            for part in parts
        ]
        for one in groups:
            one.start()
        results: list[float] = []
        failures: list[str] = []
        ends: list[float] = []
        for _ in groups:
            times, failed, end = answers.get()
            results += times
            failures += failed
            ends.append(end)
        for one in groups:
            one.join()
        used = cpu_seconds(pids) - used
        return {
            "machines": len(machines),
            "failures": failures[:3],
            "failed": len(failures),
            "last_key_s": max(ends) - begin,
            "p50_s": statistics.median(results),
            "p99_s": percentile(results, 0.99),
            "cpu_seconds_of_servers": used,
            "machines_per_cpu_second": len(results) / used,
        }


ASK = """
import sys, time
from strongroom.providers.unix_socket import KeyCache
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName
cache, wanted = KeyCache(sys.argv[1]), WantedKey(KeyName(sys.argv[2]), bytes.fromhex(sys.argv[3]))
time.sleep(max(0.0, float(sys.argv[4]) - time.time()))
assert len(cache.key(wanted)) == 32
"""


def cache(arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pki = IntelPki.create(datetime.now(UTC))
        config, profile, dek = make(folder, None, pki, 1)
        server = ExitStack()
        stack.callback(server.close)
        server.enter_context(running(config, profile, None))
        program = Path(sys.executable).with_name("strongroom")
        node = f"{sys.executable} -m strongroom.testing.synthetic_node {folder / 'node'}"
        attester = f"exec:{node} --mr-td {MR_TD.hex()} --rtmr1 {RTMR1.hex()}"
        path = folder / "keys.sock"
        words = ["--server", config.parent / "profile.json", "--socket", path, "--attester", attester]
        log = stack.enter_context((folder / "cache.log").open("wb"))
        process = subprocess.Popen([program, "keycache", "run", *words], stderr=log, stdout=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.1)
        uri, wanted = f"unix://{path}", WantedKey(KeyName(NAME), BUNDLE)
        client = KeyCache(uri)
        together = [
            subprocess.Popen(
                [sys.executable, "-c", ASK, uri, NAME, BUNDLE.hex(), str(time.time() + 12)]
            )
            for _ in range(50)
        ]
        if any(one.wait(60) for one in together):
            raise SystemExit("not everybody got the key")
        counted = client.status()
        seconds = []
        for _ in range(5000):
            begin = time.perf_counter()
            if client.key(wanted) != dek:
                raise SystemExit("a wrong key")
            seconds.append(time.perf_counter() - begin)
        server.close()
        asked, end = 0, time.monotonic() + arguments.outage
        while time.monotonic() < end:
            if client.key(wanted) != dek:
                raise SystemExit("a wrong key")
            asked += 1
            time.sleep(0.1)
        return {
            "processes at once": 50,
            "releases for them": counted["releases"],
            "p50_ms": statistics.median(seconds) * 1e3,
            "p99_ms": percentile(seconds, 0.99) * 1e3,
            "outage_s": arguments.outage,
            "keys given meanwhile": asked,
        }


def profile_at(profile: Profile, url: str) -> Profile:
    return replace(profile, reached_at=url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("releases", "fleet", "cache"), default="releases")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, help="releases that begin in a second")
    parser.add_argument("--workers", type=int, default=1, help="processes that verify")
    parser.add_argument("--shared", action="store_true", help="all cores for all")
    parser.add_argument("--light", action="store_true", help="clients that take little time")
    parser.add_argument("--machines", type=int, default=2000)
    parser.add_argument("--within", type=float, default=10)
    parser.add_argument("--outage", type=float, default=10, help="seconds")
    arguments = parser.parse_args()
    for name, value in {"releases": releases, "fleet": fleet, "cache": cache}[arguments.what](
        arguments
    ).items():
        print(f"{name:26}{value:.4g}" if isinstance(value, float) else f"{name:26}{value}")


if __name__ == "__main__":
    main()
