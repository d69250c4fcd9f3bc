"""Kill a key store under load, again and again, and look for what it had acknowledged.

    python benchmarks/keyserver_kills.py [--kills 100] [--database sqlite|postgresql|both] [--seed N]

A process with 16 threads releases keys, registers keys and puts in policies, with an anchor; each thread
writes down what was acknowledged. A random time after the first release (every fourth time: after its start)
the process gets SIGKILL. Then the store is opened
as after any start, and everything that was written down must be there: each key with its bytes, each
policy, each used challenge, each release in the audit trail; and the trail must be whole. On PostgreSQL,
every tenth time the database itself crashes too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "keyserver"))

from postgres import Postgres

from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.keks.envelope import HeldKek
from strongroom.keyserver.store import Actor, Grant, ReleaseWrite, Store
from strongroom.release.audit import Head

OWNER = Actor("benchmark", "owner", "local")
THREADS = 16
LONGEST_START = 60.0


def kek() -> HeldKek:
    return HeldKek("test", SecretBytes(b"k" * 32))


def dek_of(name: str) -> SecretBytes:
    return SecretBytes(hashlib.sha256(name.encode()).digest())


def policy(id: str, version: int) -> dict[str, Any]:
    return {
        "id": id,
        "version": version,
        "keys": [f"{id}/"],
        "any": [{"kind": "mtls", "subject": [f"CN={version}"]}],
    }


class Load:
    """What one process does until it is killed."""

    def __init__(self, url: str, place: Path, round: int) -> None:
        self.store = Store(url, kek(), anchor=place / "anchor")
        self.round = round
        self.descriptor = os.open(place / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.released = threading.Event()

    def acknowledged(self, **what: Any) -> None:
        # One write, which the system keeps whatever becomes of this process.
        os.write(self.descriptor, json.dumps(what).encode() + b"\n")

    def run(self) -> None:
        for number in range(THREADS):
            work = self.keys if number == 0 else self.policies if number == 1 else self.releases
            threading.Thread(target=work, args=(number,), daemon=True).start()
        while True:
            sequence, digest = self.store.audit_head()
            self.acknowledged(kind="head", sequence=sequence, hash=digest)
            time.sleep(0.02)

    def keys(self, number: int) -> None:
        for index in range(10**9):
            name = f"keys/{self.round}-{index}"
            self.store.add_key(name, None, name.encode()[:16].ljust(16), dek_of(name), OWNER, {})
            self.acknowledged(kind="key", name=name)
            self.pause()

    def policies(self, number: int) -> None:
        id = f"p{self.round}"
        for version in range(1, 10**9):
            self.store.put_policy(policy(id, version), OWNER)
            self.acknowledged(kind="policy", id=id, version=version)
            self.pause()

    def pause(self) -> None:
        # Each change makes the releases stale that are being decided: on a slow machine there would be none.
        self.released.clear()
        self.released.wait()
        time.sleep(0.05)

    def releases(self, number: int) -> None:
        for index in range(10**9):
            challenge, platform = secrets.token_bytes(32), f"test:{self.round}-{number}-{index}"
            now = datetime.now(UTC)
            grant = Grant(platform, "m/x", 1, now + timedelta(hours=1), None, "p", 1, [])
            outcome = self.store.commit_release(
                ReleaseWrite(
                    challenge,
                    now + timedelta(seconds=60),
                    self.store.snapshot().revision,
                    platform,
                    [grant],
                    {"keys": [{"lease": platform, "code": "released"}]},
                )
            ).result()
            if not outcome.stale:
                assert (outcome.challenge_used, dict(outcome.refused)) == (False, {})
                self.acknowledged(kind="release", challenge=challenge.hex(), platform=platform)
                self.released.set()


def check(url: str, place: Path) -> dict[str, int]:
    """Raise if something that was acknowledged is not there; count what was."""
    lines = (place / "acknowledged").read_bytes().splitlines()
    said = [json.loads(line) for line in lines]
    heads = [Head(one["sequence"], one["hash"]) for one in said if one["kind"] == "head"]
    with Store(url, kek(), anchor=place / "anchor") as store:
        store.verify(heads)
        released, after = set(), 0
        while records := store.audit(after, 1000):
            released |= {one["platform"] for one in records if one["event"] == "release"}
            after = records[-1]["sequence"]
        with store._database.reading() as connection:
            used = {
                bytes(row[0]).hex()
                for row in connection.exec_driver_sql("SELECT challenge FROM challenges")
            }
            leases = {row[0] for row in connection.exec_driver_sql("SELECT id FROM leases")}
        keys = {one.name: one for one in store.keys(None)}
        policies = {one.id: one for one in store.policies()}
        for one in said:
            if one["kind"] == "key":
                assert store.dek(keys[one["name"]]) == dek_of(one["name"]), one
            elif one["kind"] == "policy":
                assert policies[one["id"]].version >= one["version"], one
            elif one["kind"] == "release":
                assert one["challenge"] in used, one
                assert one["platform"] in leases, one
                assert one["platform"] in released, one
        assert store.snapshot().revision
        # Nothing was written twice, and nothing by half.
        assert released == leases
        assert len(used) == len(released)
    kinds = [one["kind"] for one in said]
    return {kind: kinds.count(kind) for kind in ("release", "key", "policy", "head")}


def killed(url: str, place: Path, round: int, seconds: float) -> None:
    """One process under load, killed after ``seconds``: of its load, or every fourth time of its life."""
    with open(place / "acknowledged", "rb") as said:
        said.seek(0, os.SEEK_END)
        _killed(url, place, round, seconds, said)


def _killed(url: str, place: Path, round: int, seconds: float, said: BinaryIO) -> None:
    child = os.fork()
    if not child:
        try:
            Load(url, place, round).run()
        finally:
            os._exit(1)
    # On a busy machine the first release takes longer than a process would live.
    deadline, first = time.monotonic() + LONGEST_START, b""
    while round % 4 != 3 and b'"release"' not in first and time.monotonic() < deadline:
        first += said.read()
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"


def run(kind: str, kills: int, seed: int, longest: float) -> None:
    place = Path(tempfile.mkdtemp(prefix="strongroom-kills-", dir="/var/tmp"))
    chance = random.Random(seed)
    server = Postgres() if kind == "postgresql" else None
    total: dict[str, int] = {}
    crashes = 0
    try:
        url, began = "", time.monotonic()
        for round in range(kills):
            # A new database now and then: to look through all of it takes longer and longer.
            if round % 10 == 0:
                (place / "anchor").unlink(missing_ok=True)
                (place / "acknowledged").write_bytes(b"")
                url = server.database() if server else f"sqlite:///{place}/{round}.db"
                with Store.create(url, kek(), anchor=place / "anchor") as store:
                    store.add_key("m/x", None, bytes(16), dek_of("m/x"), OWNER, {})
                before: dict[str, int] = {}
            killed(url, place, round, chance.uniform(0.05, longest))
            if server and round % 10 == 9:
                server.stop(signal.SIGQUIT)
                server.start()
                crashes += 1
            found = check(url, place)
            for name, count in found.items():
                total[name] = total.get(name, 0) + count - before.get(name, 0)
            before = found
            print(f"\r{kind}: {round + 1} kills", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        what = ", ".join(f"{count} {name}s" for name, count in total.items())
        also = f" and {crashes} crashes of the database" if crashes else ""
        assert total["release"] >= kills // 2, total
        minutes = (time.monotonic() - began) / 60
        print(
            f"{kind}: {kills} kills{also} in {minutes:.1f} minutes; acknowledged and found: "
            f"{what.replace('policys', 'policies')}; every audit trail is whole."
        )
    finally:
        if server:
            server.close()
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--longest", type=float, default=1.0, help="seconds until the kill, at most")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    for kind in ("sqlite", "postgresql"):
        if options.database in (kind, "both"):
            run(kind, options.kills, options.seed, options.longest)


if __name__ == "__main__":
    main()
