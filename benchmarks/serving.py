"""How fast models are served, beside other servers and the least that frameworks do, in one run.

    python benchmarks/serving.py rest|grpc|resnet50|batching|start|memory|all
        [--rounds 5] [--seconds 5] [--mlserver-venv DIR] [--triton-venv DIR] [--output FILE.json]

``rest``, ``grpc``: an identity model of ONNX, float32[1, 16], with 16 connections; each server alone on the
first processor, the client on the second. The servers take turns; figures are medians of the rounds.
``cpu_us`` is processor time of the server for a request, which other work on the machine disturbs less than
the rate. ``resnet50``: batch 1 over gRPC, where client and server share all processors, against a loop of
``InferenceSession.run`` and a bare gRPC server around the same run. ``batching``: 64 connections, an MLP,
with and without. ``start``: until the first answer, from a sealed model and from a plain one. ``memory``: of
one model, whatever runs it.

Clients are wrk (Debian: wrk) and h2load (Debian: nghttp2-client), which sends gRPC's frames over HTTP/2:
neither is slower than a server. Before each, one answer is looked at. Peers need environments of their own:

    python -m venv .bench/mlserver && .bench/mlserver/bin/pip install mlserver==1.7.1 onnxruntime
    python -m venv .bench/triton && .bench/triton/bin/pip install nvidia-pytriton==0.7.0 onnxruntime
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import serving_models as models
import serving_servers as servers
from serving_servers import METHOD, Server

import strongroom

SHAPE = [1, 16]
IMAGE = [1, 3, 224, 224]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CLIENT = ["taskset", "-c", "1"]
Load = Callable[[float], tuple[int, float]]
"""Loads a server for some seconds: requests that were answered, and per second."""


class Sealed:
    """A model that is sealed, in a folder with its key."""

    def __init__(self, folder: Path, make: Callable[[Path], Path]) -> None:
        name = make.__name__
        self.plain = make(folder / f"{name}.onnx")
        self.path = folder / f"{name}.sealed"
        self.key = folder / "key.txt"
        if not self.key.exists():
            program = str(Path(sys.executable).with_name("strongroom"))
            subprocess.run([program, "keygen", "-q", "-o", self.key], check=True)
        strongroom.seal(self.plain, self.path, key=str(self.key))

    def config(self, name: str, more: str = "") -> str:
        return f"models:\n  - {{name: {name}, path: {self.path}, key: {self.key}{more}}}\n"


def wrk(url: str, body: bytes, headers: dict[str, str], folder: Path, connections: int = 16) -> Load:
    script = folder / f"{time.monotonic_ns()}.lua"
    payload = script.with_suffix(".body")
    payload.write_bytes(body)
    lines = ['wrk.method = "POST"', f'wrk.body = io.open("{payload}", "rb"):read("*a")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(lines))
    command = [*CLIENT, "wrk", "-t1", f"-c{connections}", "--timeout", "60s"]
    command += ["-s", str(script), url]

    def load(seconds: float) -> tuple[int, float]:
        text = _output([*command, f"-d{seconds:g}s"])
        if "Non-2xx" in text or "Socket errors" in text:
            raise SystemExit(text)
        return _number(r"(\d+) requests in", text), float(_found(r"Requests/sec:\s+([\d.]+)", text))

    return load


def h2load(url: str, message: bytes, folder: Path, connections: int = 16) -> Load:
    payload = folder / f"{time.monotonic_ns()}.grpc"
    payload.write_bytes(models.framed(message))
    command = [*CLIENT, "h2load", "-t1", f"-c{connections}", "-m1", "-d", str(payload)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", url]

    def load(seconds: float) -> tuple[int, float]:
        text = _output([*command, f"-D{seconds:g}"])
        if not re.search(r" 0 failed, 0 errored", text):
            raise SystemExit(text)
        return _number(r"(\d+) succeeded", text), float(_found(r"([\d.]+) req/s", text))

    return load


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(text)
    return match[1]


def _number(pattern: str, text: str) -> int:
    return int(_found(pattern, text))


def check_rest(url: str, body: bytes, headers: dict[str, str]) -> None:
    """One answer has the last of the values that were sent."""
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        if b"15.5" not in answer.read():
            raise SystemExit(f"{url} answers something else")


def check_grpc(port: int, method: str, message: bytes, values: bytes) -> None:
    """One answer has the values that were sent."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        if values not in channel.unary_unary(method)(message, timeout=60):
            raise SystemExit(f"{method} answers something else")


def in_turn(
    cases: dict[str, tuple[Server, Load]], rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Load each in each round; medians of requests per second and processor time."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _, load in cases.values():
        load(1)
    for _ in range(rounds):
        for name, (server, load) in cases.items():
            before = server.cpu()
            count, rate = load(seconds)
            if not count:
                raise SystemExit(f"{name} has answered nothing in {seconds} s: is the machine busy?")
            found[name].append((rate, (server.cpu() - before) / count * 1e6))
    return {
        name: {
            "per_second": statistics.median(rate for rate, _ in each),
            "cpu_us": statistics.median(cpu for _, cpu in each),
            "cpu_us_least": min(cpu for _, cpu in each),
        }
        for name, each in found.items()
    }


def ratios(found: dict[str, dict[str, float]], of: str) -> dict[str, dict[str, float]]:
    """How many times as fast as each of the others one is: by rate, and by processor time."""
    one = found[of]
    return {
        name: {
            "rate": one["per_second"] / other["per_second"],
            "cpu": other["cpu_us"] / one["cpu_us"],
        }
        for name, other in found.items()
        if name != of
    }


@contextmanager
def peers(arguments: argparse.Namespace, folder: Path, model: Path) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        found = []
        if arguments.mlserver_venv:
            found.append(servers.mlserver(folder, arguments.mlserver_venv, model))
        if arguments.triton_venv:
            found.append(servers.triton(folder, arguments.triton_venv, model))
        yield [stack.enter_context(one) for one in found]


def rest(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sealed = Sealed(folder, models.identity)
    headers = {"content-type": "application/json"}
    body, tfs = models.v2_json(SHAPE), models.tfs_json(SHAPE)
    with ExitStack() as stack:
        own = stack.enter_context(servers.strongroom(folder, sealed.config("identity")))
        others = [stack.enter_context(servers.bare(folder, "asgi"))]
        others += stack.enter_context(peers(arguments, folder, sealed.plain))
        asked = {"strongroom, TensorFlow Serving's API": (own, "/v1/models/identity:predict", tfs)}
        asked |= {one.name: (one, one.path, body) for one in (own, *others)}
        cases = {}
        for name, (server, path, content) in asked.items():
            url = f"http://127.0.0.1:{server.rest}{path}"
            check_rest(url, content, headers)
            cases[name] = (server, wrk(url, content, headers, folder))
        found = in_turn(cases, arguments.rounds, arguments.seconds)
    return {"servers": found, "strongroom is times": ratios(found, "strongroom")}


def grpc(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sealed = Sealed(folder, models.identity)
    v2, tfs = models.v2_grpc("identity", SHAPE), models.tfs_grpc("identity", SHAPE)
    values = np.ones(SHAPE, np.float32).tobytes()
    with ExitStack() as stack:
        own = stack.enter_context(servers.strongroom(folder, sealed.config("identity")))
        others = [
            stack.enter_context(servers.bare(folder, kind)) for kind in ("grpc-aio", "grpc-threads")
        ]
        others += stack.enter_context(peers(arguments, folder, sealed.plain))
        asked = {"strongroom, TensorFlow Serving's API": (own, PREDICT, tfs)}
        asked |= {one.name: (one, METHOD, v2) for one in (own, *others)}
        cases = {}
        for name, (server, method, message) in asked.items():
            # MLServer answers with values that are no raw contents: the end of both is the same.
            check_grpc(server.grpc, method, message, values)
            cases[name] = (
                server,
                h2load(f"http://127.0.0.1:{server.grpc}{method}", message, folder),
            )
        found = in_turn(cases, arguments.rounds, arguments.seconds)
    return {"servers": found, "strongroom is times": ratios(found, "strongroom")}


def _repeat(call: Callable[[], Any], seconds: float, callers: int) -> list[float]:
    """Seconds of each of the calls that so many threads make, one after another."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def repeat() -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=repeat) for _ in range(callers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return times


def _run(session: Any, image: Any, seconds: float, callers: int) -> list[float]:
    return _repeat(lambda: session.run(None, {"x": image}), seconds, callers)


def _ask(port: int, message: bytes, seconds: float, callers: int) -> list[float]:
    """Run by a process of its own: its interpreter is not the benchmark's."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        return _repeat(lambda: call(message, timeout=60), seconds, callers)


def _from_client(port: int, payload: Path, seconds: float, callers: int) -> list[float]:
    command = [sys.executable, __file__, "client", str(port), str(payload), str(seconds), str(callers)]
    found: list[float] = json.loads(_output(command))
    return found


def resnet50(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import onnxruntime

    sealed = Sealed(folder, models.resnet50)
    session = onnxruntime.InferenceSession(str(sealed.plain))
    image = np.ones(IMAGE, np.float32)
    payload = folder / "image.grpc"
    payload.write_bytes(models.v2_grpc("resnet50", IMAGE))
    # As many callers here as there: the threads of a run are the same.
    found: dict[str, dict[int, list[float]]] = {}
    rates: dict[str, list[float]] = {}
    with (
        servers.strongroom(folder, sealed.config("resnet50"), None) as own,
        servers.bare(folder, "grpc-onnx", None, str(sealed.plain)) as other,
    ):
        ports = {"served": own.grpc, "bare_grpc": other.grpc}
        for port in ports.values():
            _from_client(port, payload, 2, 1)
        for _ in range(arguments.rounds):
            for callers in (1, 2):
                all_times = {"run": _run(session, image, arguments.seconds, callers)}
                for name, port in ports.items():
                    all_times[name] = _from_client(port, payload, arguments.seconds, callers)
                for name, times in all_times.items():
                    found.setdefault(name, {}).setdefault(callers, []).extend(times)
                    if callers == 2:
                        rates.setdefault(name, []).append(len(times) / arguments.seconds)
    ms = {name: statistics.median(times[1]) * 1e3 for name, times in found.items()}
    pairs = zip(rates["served"], rates["run"], strict=True)
    return {
        "bytes": payload.stat().st_size,
        **{f"{name}_per_second": statistics.median(one) for name, one in rates.items()},
        "served / run": statistics.median(served / run for served, run in pairs),
        **{f"{name}_ms": one for name, one in ms.items()},
        "added_ms": ms["served"] - ms["run"],
        "added by a bare gRPC server, ms": ms["bare_grpc"] - ms["run"],
    }


def batching(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sealed = Sealed(folder, models.mlp)
    body, head = models.v2_binary([1, 784])
    headers = {"inference-header-content-length": str(head)}
    with ExitStack() as stack:
        cases = {}
        for name, more in (
            ("one by one", ""),
            ("batches of 32", ", batching: {max_batch: 32, delay: 0.002}"),
        ):
            config = sealed.config("mlp", f", threads: 1{more}")
            server = stack.enter_context(servers.strongroom(folder, config, name=name))
            url = f"http://127.0.0.1:{server.rest}/v2/models/mlp/infer"
            cases[name] = (server, wrk(url, body, headers, folder, 64))
        found = in_turn(cases, arguments.rounds, arguments.seconds)
    one, many = found.values()
    return {"servers": found, "batched is times": many["per_second"] / one["per_second"]}


def start(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sealed = Sealed(folder, models.resnet50)
    body, head = models.v2_binary(IMAGE)
    headers = {"inference-header-content-length": str(head)}
    seconds: dict[str, list[float]] = {"sealed": [], "plain": []}
    for number in range(arguments.rounds + 1):
        for kind, times in seconds.items():
            began = time.perf_counter()
            config, plain = sealed.config("m"), kind == "plain"
            if plain:
                config = f"models:\n- {{name: m, path: {sealed.plain}}}\n"
            with servers.strongroom(folder, config, None, plain=plain) as server:
                url = f"http://127.0.0.1:{server.rest}/v2/models/m/infer"
                with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
                    answer.read()
                if number:  # the first is for the caches
                    times.append(time.perf_counter() - began)
    found = {f"{kind}_s": statistics.median(times) for kind, times in seconds.items()}
    return {**found, "sealed / plain": found["sealed_s"] / found["plain_s"]}


def memory(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    small, sealed = Sealed(folder, models.identity), Sealed(folder, models.wide)
    size = sealed.plain.stat().st_size
    body, head = models.v2_binary([1, 3072])
    headers = {"inference-header-content-length": str(head)}
    with servers.strongroom(folder, small.config("identity"), None) as server:
        nothing = server.memory()
    found: dict[str, Any] = {"model_bytes": size, "nothing_bytes": nothing}
    for workers in (1, 8):
        config = sealed.config("wide", f", limits: {{concurrency: {workers}}}")
        with servers.strongroom(folder, config, None) as server:
            url = f"http://127.0.0.1:{server.rest}/v2/models/wide/infer"
            wrk(url, body, headers, folder)(arguments.seconds)
            found[f"{workers} workers, times the model"] = (server.memory() - nothing) / size
    return found


def main() -> None:
    if sys.argv[1:2] == ["client"]:
        port, payload, seconds, callers = sys.argv[2:]
        found = _ask(int(port), Path(payload).read_bytes(), float(seconds), int(callers))
        print(json.dumps(found))
        return
    kinds = {one.__name__: one for one in (rest, grpc, resnet50, batching, start, memory)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=[*kinds, "all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--mlserver-venv", type=lambda text: Path(text).absolute())
    parser.add_argument("--triton-venv", type=lambda text: Path(text).absolute())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name, kind in kinds.items():
        if arguments.kind in (name, "all"):
            with tempfile.TemporaryDirectory() as folder:
                results[name] = kind(arguments, Path(folder))
            print(json.dumps({name: results[name]}, indent=2), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
