"""Load a model server for half an hour, swap its model, and look at its memory and file descriptors.

    python benchmarks/serving_soak.py [--minutes 30] [--swaps 200] [--load 0.8] [--json FILE]

A server as users start it, with a sealed model in a directory of versions, and two load tests, over REST
and gRPC. First both ask as fast as they can, which says how much the machine carries with both of them on
it; then they do so while the model is swapped again and again; then they ask at 80 % of that, at a fixed
rate, on new connections every minute, and the model is swapped every half minute. Exits with 1 if a
request failed, or if memory or descriptors grew from the second quarter of that time to its last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import strongroom

PROGRAM = [sys.executable, "-m", "strongroom"]
SCHEMES = ("http", "grpc")
MEASURE_SECONDS = 10.0
SEGMENT_SECONDS = 60.0
SWAP_EVERY = 30.0
CONNECTIONS = 8
GROWTH = 0.02
"""Of the memory: samples of one server under a steady load differ by about 1 %."""
WORKERS = 2
"""Threads of a version, the second of which is started when the first is busy: 27 or 28 in all."""


def network(seed: int) -> bytes:
    """Two dense layers, 4 MB: what a version leaves behind is seen after few of them."""
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape, np.float32) / 32, name)
        for name, shape in (("a", (16, 1024)), ("b", (1024, 1024)), ("c", (1024, 16)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("MatMul", ["2", "b"], ["3"]),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("MatMul", ["4", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, ["n", 16]) for one in "xy")
    graph = helper.make_graph(nodes, "mlp", [x], [y], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()


class Server:
    """The real server, and what the system says of its process."""

    def __init__(self, place: Path) -> None:
        self.versions = place / "versions"
        self.versions.mkdir()
        self.key = place / "key.txt"
        self.plain = place / "model.onnx"
        subprocess.run([*PROGRAM, "keygen", "-o", self.key], check=True, capture_output=True)
        self.version = 0
        self.add()
        self.log = place / "log"
        command = [*PROGRAM, "serve", f"m={self.versions}", "-k", self.key, "--no-access-log"]
        ports = ["--rest-port", "0", "--grpc-port", "0", "--poll", "0.1", "--drain-seconds", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*map(str, command), *ports], stderr=log)
        self.wait_for("AVAILABLE", 1)
        listening = next(one for one in self.events() if one["event"] == "listening")
        self.urls = {
            "http": f"http://127.0.0.1:{listening['rest_port']}",
            "grpc": f"grpc://127.0.0.1:{listening['grpc_port']}",
        }

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def wait_for(self, state: str, version: int) -> None:
        end = time.monotonic() + 120
        while not any(
            one["event"] == "model" and (one["state"], one["version"]) == (state, version)
            for one in self.events()
        ):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(self.log.read_text()[-4000:])
            time.sleep(0.02)

    def add(self) -> None:
        """One more version, whole from when it is seen."""
        self.version += 1
        self.plain.write_bytes(network(self.version))
        folder = self.versions / f".{self.version}"
        folder.mkdir()
        strongroom.seal(self.plain, folder / "m.sealed", key=self.key)
        folder.rename(self.versions / str(self.version))

    def swap(self) -> None:
        """The next version takes the place of the last; returns when that is freed."""
        before = self.version
        self.add()
        self.wait_for("AVAILABLE", self.version)
        self.wait_for("END", before)
        shutil.rmtree(self.versions / str(before))

    def sample(self) -> dict[str, int]:
        """Bytes that are its own, descriptors and threads."""
        place = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return {
            "memory": int(status["RssAnon"].split()[0]) << 10,
            "descriptors": len(os.listdir(place / "fd")),
            "threads": int(status["Threads"]),
        }

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


class Load:
    """One load test, and what it counted."""

    def __init__(self, server: Server, scheme: str, *options: str) -> None:
        command = [*PROGRAM, "loadtest", server.urls[scheme], "--model", "m", "--random", "--json"]
        self.process = subprocess.Popen(
            [*command, "-cnum", str(CONNECTIONS), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate()
        if not out.startswith("{"):
            raise SystemExit(err)
        found: dict[str, Any] = json.loads(out)
        return found


class Count:
    """Of all load tests together."""

    def __init__(self) -> None:
        self.answered, self.failed = 0, dict[str, int]()

    def add(self, result: dict[str, Any]) -> None:
        self.answered += result["answered"]
        for code, count in result["failed"].items():
            self.failed[code] = self.failed.get(code, 0) + count


@contextmanager
def full_load(server: Server, rates: dict[str, float], count: Count):
    """Both load tests, as fast as they can, for as long as the block takes."""
    loads = {scheme: Load(server, scheme, "-loop", "0") for scheme in SCHEMES}
    time.sleep(3)  # their own start
    try:
        yield
    finally:
        for one in loads.values():
            one.stop()
        for scheme, one in loads.items():
            result = one.result()
            rates[scheme] = result["queries_per_second"]
            count.add(result)


def steadily(server: Server, rates: dict[str, float], seconds: float, count: Count) -> None:
    """At fixed rates, on new connections every minute."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 1:
        part = ["--seconds", f"{min(left, SEGMENT_SECONDS):.1f}"]
        loads = [Load(server, one, "--rate", f"{rates[one]:.1f}", *part) for one in SCHEMES]
        for one in loads:
            count.add(one.result())


def growth(samples: list[dict[str, int]], what: str) -> tuple[float, float]:
    """The medians of the second quarter and the last."""
    values = [one[what] for one in samples]
    quarter = max(1, len(values) // 4)
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


def soak(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    server = Server(place)
    said: dict[str, Any] = {"swaps": options.swaps, "minutes": options.minutes, "load": options.load}
    try:
        rates: dict[str, float] = {}
        with full_load(server, rates, Count()):
            time.sleep(MEASURE_SECONDS)
        said["queries_per_second"] = dict(rates)

        count, began = Count(), time.monotonic()
        with full_load(server, {}, count):
            for number in range(options.swaps):
                server.swap()
                print(f"\r{number + 1} swaps", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        said["under_full_load"] = {
            "seconds": round(time.monotonic() - began, 1),
            "answered": count.answered,
            "failed": count.failed,
        }

        count, samples = Count(), list[dict[str, int]]()
        seconds = options.minutes * 60
        steady = {one: rate * options.load for one, rate in rates.items()}
        thread = threading.Thread(target=steadily, args=(server, steady, seconds, count))
        cpu, began = server.cpu(), time.monotonic()
        thread.start()
        swap_at = began + SWAP_EVERY
        swapped = 0
        while thread.is_alive():
            thread.join(1.0)
            samples.append(server.sample())
            if time.monotonic() >= swap_at and thread.is_alive():
                server.swap()
                swapped += 1
                swap_at += SWAP_EVERY
            print(f"\r{time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        said["soak"] = {
            "answered": count.answered,
            "failed": count.failed,
            "swaps": swapped,
            "cores_of_the_server": round((server.cpu() - cpu) / (time.monotonic() - began), 2),
            **{one: growth(samples, one) for one in ("memory", "descriptors", "threads")},
        }
    finally:
        said["exit_code"] = server.stop()
    return said


def faults(said: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = [
        f"{part}: {said[part]['failed']}"
        for part in ("under_full_load", "soak")
        if said[part]["failed"]
    ]
    before, after = said["soak"]["memory"]
    if after > before * (1 + GROWTH):
        found.append("its memory grew")
    for what, more in (("descriptors", 0), ("threads", WORKERS)):
        before, after = said["soak"][what]
        if after > before + more:
            found.append(f"its {what} grew")
    if said["exit_code"]:
        found.append(f"it ended with {said['exit_code']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--json", type=Path, help="write what was measured there")
    options = parser.parse_args()
    # In the background of a shell that is no terminal's it is ignored, and so it would be by the load tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = Path(tempfile.mkdtemp(prefix="strongroom-soak-", dir="/var/tmp"))
    try:
        said = soak(place, options)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(said, indent=1) + "\n")
    full, steady = said["under_full_load"], said["soak"]
    rates = ", ".join(f"{rate:,.0f}/s over {one}" for one, rate in said["queries_per_second"].items())
    memory = " to ".join(f"{value / 2**20:.1f}" for value in steady["memory"])
    descriptors = " to ".join(f"{value:.0f}" for value in steady["descriptors"])
    print(
        f"Full load: {rates}.\n"
        f"{said['swaps']} swaps under it in {full['seconds']} s: {full['answered']:,} requests answered,"
        f" {sum(full['failed'].values())} failed.\n"
        f"{said['minutes']:g} minutes at {said['load']:.0%}: {steady['answered']:,} answered,"
        f" {sum(steady['failed'].values())} failed, {steady['swaps']} swaps;"
        f" memory {memory} MiB, descriptors {descriptors}, {steady['cores_of_the_server']} cores."
    )
    found = faults(said)
    print(f"Not as it should be: {'; '.join(found)}." if found else "Nothing failed, and nothing grew.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
