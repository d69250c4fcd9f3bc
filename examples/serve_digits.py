"""The sealed model behind a port, for clients that know nothing of it; a part of the demo.

``serve`` makes a CA and certificates, starts ``strongroom serve`` with mutual TLS on any free ports, and
asks it as others do: curl speaks the API of TensorFlow Serving, Triton's client the Open Inference Protocol
over gRPC. Then it puts a damaged version into the directory of versions, which replaces nothing, and loads
the server with ``strongroom loadtest``, whose chart it leaves behind.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from telling import PROGRAM, claim, console, run, show, step

CONNECTIONS, LOOPS = 4, 100
START_SECONDS = 60


class Server:
    """The server while it runs: ports, and what it logs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        listening = self.wait_for(lambda one: one["event"] == "listening")
        self.rest, self.grpc = listening["rest_port"], listening["grpc_port"]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of the log that is it."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            for line in self._log.read_text().splitlines():
                if line.endswith("}") and wanted(found := json.loads(line)):
                    return found
            time.sleep(0.05)
        raise SystemExit(f"it did not come: {self._log.read_text()}")

    def wait_for_version(self, number: int, *states: str) -> dict[str, Any]:
        return self.wait_for(
            lambda one: (
                one["event"] == "model"
                and (one["version"], one["state"]) in [(number, state) for state in states]
            )
        )

    def stop(self) -> int:
        """Its exit code, after an orderly end."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


@contextmanager
def running(log: Path, *words: str | Path) -> Iterator[Server]:
    show("strongroom", "serve", *words, "&")
    with log.open("wb") as output:
        process = subprocess.Popen([PROGRAM, "serve", *map(str, words)], stderr=output)
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def serve(folder: Path, plain: Path, key: Path, images: np.ndarray, expected: np.ndarray) -> None:
    """Everything, in ``folder``, which must not be there.

    Args:
        plain: the model of ONNX.
        images, expected: digits, and which ones the plain model takes them for.
    """
    folder.mkdir()
    pki, versions = folder / "pki", folder / "versions"

    step("Certificates for mutual TLS; the key of the server is sealed, too")
    run("pki", "init", pki, "--quiet")
    run("pki", "server", pki, "localhost", "--quiet")
    done = run("pki", "client", pki, "camera-1", "--quiet")
    claim("there is a CA, a server and a client", done.returncode == 0)
    sealed_key = pki / "server.key.sealed"
    done = run("seal", pki / "server.key", "-o", sealed_key, "-k", key, "--quiet")
    (pki / "server.key").unlink()
    claim("the key of the server is on the disk as a sealed file alone", done.returncode == 0)

    step("Serve the sealed model over two protocols")
    (versions / "1").mkdir(parents=True)
    run("seal", plain, "-o", versions / "1" / "digits.sealed", "-k", key, "--quiet")
    words = ["--tls-cert", pki / "server.pem", "--tls-key", sealed_key, "--client-ca", pki / "ca.pem"]
    ports = ["--rest-port", "0", "--grpc-port", "0", "--poll", "0.2", "--drain-seconds", "0"]
    with running(folder / "serve.log", f"digits={versions}", "-k", key, *words, *ports) as server:
        server.wait_for_version(1, "AVAILABLE")
        console.print(f"it answers at port {server.rest} (REST) and {server.grpc} (gRPC)")
        ask(server, pki, images, expected)
        replace(server, versions, images[:1], pki)
        load(server, pki, folder / "latency.png")
        claim("SIGTERM ends it in order", server.stop() == 0)


def ask(server: Server, pki: Path, images: np.ndarray, expected: np.ndarray) -> None:
    """The same digits over both, and what becomes of who has no certificate."""
    step("Ask it with clients that are there already")
    digits = pki.parent / "digits.json"
    digits.write_text(json.dumps({"instances": images.tolist()}))
    answer = json.loads(by_curl(server, pki, "/v1/models/digits:predict", digits))
    found = np.array(answer["predictions"]).argmax(1)
    console.print(f"curl: {' '.join(map(str, found[:20]))} …")
    claim(f"the API of TensorFlow Serving: all {len(images)} as predicted", same(found, expected))

    found = by_triton(server, pki, images).argmax(1)
    console.print(f"tritonclient: {' '.join(map(str, found[:20]))} …")
    claim(f"the Open Inference Protocol: all {len(images)} as predicted", same(found, expected))

    try:
        context = ssl.create_default_context(cafile=pki / "ca.pem")
        connection = http.client.HTTPSConnection("localhost", server.rest, timeout=30, context=context)
        connection.request("GET", "/v1/models/digits")
        connection.getresponse()
        refused = False
    except (ssl.SSLError, ConnectionError):
        refused = True
    finally:
        connection.close()
    claim("who shows no certificate of the CA gets no answer", refused)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.array_equal(found, expected))


def by_curl(server: Server, pki: Path, path: str, body: Path) -> bytes:
    """What the server answers to a file; by Python, where there is no curl."""
    certificate, key = pki / "camera-1.pem", pki / "camera-1.key"
    url = f"https://localhost:{server.rest}{path}"
    words = ["--cacert", pki / "ca.pem", "--cert", certificate, "--key", key, "-d", f"@{body}", url]
    if shutil.which("curl"):
        show("curl", *words)
        command = ["curl", "--silent", "--show-error", *map(str, words)]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    console.print("(There is no curl here; Python asks instead.)")
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.load_cert_chain(certificate, key)
    connection = http.client.HTTPSConnection("localhost", server.rest, timeout=60, context=context)
    try:
        connection.request("POST", path, body.read_bytes())
        return connection.getresponse().read()
    finally:
        connection.close()


def by_triton(server: Server, pki: Path, images: np.ndarray) -> np.ndarray:
    show(
        f"python -c 'tritonclient.grpc.InferenceServerClient(\"localhost:{server.grpc}\", ssl=True, …)'"
    )
    client = triton.InferenceServerClient(
        f"localhost:{server.grpc}",
        ssl=True,
        root_certificates=str(pki / "ca.pem"),
        private_key=str(pki / "camera-1.key"),
        certificate_chain=str(pki / "camera-1.pem"),
    )
    try:
        inputs = triton.InferInput("images", images.shape, "FP32")
        inputs.set_data_from_numpy(images)
        answer = client.infer("digits", [inputs])
        (output,) = answer.get_response().outputs
        return answer.as_numpy(output.name)
    finally:
        client.close()


def replace(server: Server, versions: Path, image: np.ndarray, pki: Path) -> None:
    step("Somebody puts in a version that is damaged, and then a good one")
    good = (versions / "1" / "digits.sealed").read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    put(versions, 2, bytes(bad))
    said = server.wait_for_version(2, "END")
    console.print(said["message"], markup=False, soft_wrap=True)
    claim("it is refused, and says why", said["code"] == "DATA_LOSS")
    claim("the version before goes on answering", by_triton(server, pki, image).shape == (1, 10))
    put(versions, 3, good)
    server.wait_for_version(3, "AVAILABLE")
    server.wait_for_version(1, "END")
    claim("the good one takes its place", by_triton(server, pki, image).shape == (1, 10))


def put(versions: Path, number: int, content: bytes) -> None:
    """Written under another name and renamed: what is seen is whole."""
    folder = versions / f".{number}"
    folder.mkdir()
    (folder / "digits.sealed").write_bytes(content)
    folder.rename(versions / str(number))


def load(server: Server, pki: Path, chart: Path) -> None:
    step("How fast it answers, with mutual TLS, on the machine that asks, too")
    certificates = ["-ca", pki / "ca.pem", "-crt", pki / "camera-1.pem", "-key", pki / "camera-1.key"]
    loops = ["-cnum", str(CONNECTIONS), "-loop", str(LOOPS), "-q"]
    for url in (f"https://localhost:{server.rest}", f"grpcs://localhost:{server.grpc}"):
        plot = ["--plot", chart] if url.startswith("grpcs") else []
        words = ["loadtest", url, "--model", "digits", "--random", *certificates, *loops, *plot]
        done = run(*words)
        answered = f"{CONNECTIONS * LOOPS} answered, 0 failed" in done.stdout
        claim(f"{CONNECTIONS * LOOPS} queries over {url.split(':')[0]}, none failed", answered)
    claim(f"the chart is in {chart}", chart.stat().st_size > 10_000)
