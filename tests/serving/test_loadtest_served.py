"""``strongroom loadtest`` against ``strongroom serve``, each a process of its own, over mutual TLS."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from front_process import Pki
from onnx_graphs import doubling
from PIL import Image
from sealed_server import Serve, seal, write_key

WARM_UP = 2  # queries of each connection that do not count


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("server")
    pki = Pki(place)
    write_key(place / "key")
    seal(place / "m.sealed", doubling())
    certificate, key = pki.server()
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key), "--client-ca", str(pki.ca_file))
    quota = [{"subject": "CN=loader", "requests_per_second": 5}]
    models = [
        {"name": "m", "path": "m.sealed", "batching": {"max_batch": 8, "delay": 0.001}},
        {"name": "limited", "path": "m.sealed", "clients": quota},
    ]
    (place / "models.yaml").write_text(json.dumps({"models": models}))
    server = Serve(place, "--config", "models.yaml", "-k", "key", *tls)
    server.client = pki.issue("loader")
    server.context = pki.context(server.client)
    server.ca = pki.ca_file
    try:
        server.until(lambda: server.ask("GET", "/readyz", context=server.context)[0] == 200)
        yield server
    finally:
        server.kill()


def loadtest(server, scheme, *arguments, model="m", identified=True):
    port = server.rest if scheme.startswith("http") else server.grpc
    certificate, key = server.client
    identity = ("-crt", certificate, "-key", key) if identified else ()
    tls = ("-ca", server.ca, *identity) if scheme.endswith("s") else ()
    command = [
        *(sys.executable, "-m", "strongroom", "loadtest", f"{scheme}://localhost:{port}"),
        *("--model", model, *tls, *arguments),
    ]
    return subprocess.run(
        list(map(str, command)),
        cwd=server.place,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def counted(server):
    """Examples and requests that the server itself has counted."""
    status, _, content = server.ask("GET", "/v2/models/m/stats", context=server.context)
    assert status == 200
    (stats,) = json.loads(content)["model_stats"]
    return stats["inference_count"], stats["inference_stats"]["success"]["count"]


WAYS = [("https", "v2"), ("https", "tfs"), ("grpcs", "v2"), ("grpcs", "tfs")]


@pytest.mark.parametrize(("scheme", "api"), WAYS, ids=map("-".join, WAYS))
def test_lines_and_numbers(server, scheme, api):
    before = counted(server)
    run = ("--api", api, "-batch", 2, "-cnum", 3, "-loop", 4, "--warm-up", WARM_UP)
    done = loadtest(server, scheme, *run)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    query = (
        r"query: secure channel, task (\d), batch 2, loop_idx (\d), latency\(ms\) [\d.]+, tps: [\d.]+"
    )
    found = sorted(one.groups() for line in lines if (one := re.fullmatch(query, line)))
    assert found == [(str(task), str(index)) for task in range(3) for index in range(4)]
    summary = r"summary: cnum 3, batch 2, e2e time\(s\) ([\d.]+), average latency\(ms\) ([\d.]+), tps: ([\d.]+)"
    (seconds, mean, tps) = next(
        map(float, one.groups()) for line in lines if (one := re.fullmatch(summary, line))
    )
    # 24 examples; each of the three connections waits for its answers one after the other.
    # Few of them are so fast that the seconds have one digit.
    assert 24 / (seconds + 0.0006) < tps < 24 / max(seconds - 0.0006, 1e-9)
    assert 4 * mean / 1000 <= seconds * 1.05 + 0.0006
    assert "queries: 12 answered, 0 failed" in lines
    # The server has counted the same, and those that warmed up.
    examples, requests = counted(server)
    queries = 3 * (4 + WARM_UP)
    assert (examples - before[0], requests - before[1]) == (2 * queries, queries)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_json_and_the_chart(server, scheme):
    chart = server.place / f"{scheme}.png"
    run = ("-cnum", 2, "--rate", 200, "--seconds", 0.5, "--json", "--plot", chart)
    done = loadtest(server, scheme, *run)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["answered"], said["failed"], said["open_loop"]["unsent"]) == (100, {}, 0)
    assert (said["model"], said["api"], said["connections"], said["batch"]) == ("m", "v2", 2, 1)
    assert said["queries_per_second"] == pytest.approx(100 / said["seconds"])
    latency = said["latency_ms"]
    order = [latency[name] for name in ("min", "p50", "p90", "p99", "p99.9", "max")]
    assert order == sorted(order)
    assert 0 < latency["min"] <= latency["mean"] <= latency["max"]
    with Image.open(io.BytesIO(chart.read_bytes())) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200
    assert len(np.unique(pixels)) > 10  # lines and letters, and no blank page


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_what_the_server_refuses_is_counted_by_code(server, scheme):
    run = ("-cnum", 4, "-loop", 25, "--warm-up", 0, "--json")
    done = loadtest(server, scheme, *run, model="limited")
    assert done.returncode == 7
    said = json.loads(done.stdout)
    ((code, failed),) = said["failed"].items()
    assert code == ("HTTP 429" if scheme == "https" else "RESOURCE_EXHAUSTED")
    assert said["answered"] + failed == 100
    assert 0 < said["answered"] < 100
    assert "queries were not answered" in done.stderr


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_without_a_certificate_there_is_no_load(server, scheme):
    before = counted(server)
    done = loadtest(server, scheme, "-loop", 1, "--timeout", 20, identified=False)
    assert done.returncode == 7
    assert done.stdout == ""
    assert counted(server) == before


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_without_tls_it_says_that_the_server_has_it(server, scheme):
    done = loadtest(server, scheme, "-loop", 1, "--timeout", 20)
    assert (done.returncode, done.stdout) == (7, "")
    assert f"It speaks TLS: {scheme}s://localhost:" in done.stderr
