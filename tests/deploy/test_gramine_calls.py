"""``strongroom serve`` with the system calls that Gramine has: strace answers all others as Gramine does."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import strongroom

# Those that programs are known to try, by the list in Gramine's documentation of its features ("not
# implemented"), and eventfd2, which needs sys.insecure__allow_eventfd. Of madvise, some kinds are missing.
MISSING = [
    *("memfd_create", "madvise", "mremap", "statx", "renameat2", "getrusage", "times", "membarrier"),
    *("inotify_init1", "timerfd_create", "signalfd4", "eventfd2", "io_uring_setup", "splice", "linkat"),
    *(
        "copy_file_range",
        "seccomp",
        "setsid",
        "utimensat",
        "flock",
        "preadv2",
        "pwritev2",
        "pidfd_open",
    ),
    *("close_range", "clone3", "faccessat2", "openat2", "epoll_pwait2", "prctl", "capget", "symlink"),
    *("rseq", "userfaultfd", "process_vm_readv", "perf_event_open", "get_mempolicy", "set_mempolicy"),
]
WAIT = 120


@pytest.fixture
def model(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [onnx.helper.make_tensor_value_info("x", kind, [None, 3])],
        [onnx.helper.make_tensor_value_info("y", kind, [None, 3])],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 9
    onnx.save(made, tmp_path / "net.onnx")
    key = bytes(range(32))
    (tmp_path / "key.txt").write_bytes(base64.urlsafe_b64encode(key))
    strongroom.seal(tmp_path / "net.onnx", tmp_path / "net.sealed", key=key)
    return tmp_path


def test_a_model_is_served(model: Path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    calls = ",".join(MISSING)
    log = model / "serve.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [
                *(strace, "-f", "--seccomp-bpf", "-qq", "-o", model / "calls.log"),
                *("-e", f"trace={calls}", "-e", f"inject={calls}:error=ENOSYS"),
                *(sys.executable, "-m", "strongroom", "serve", "net=net.sealed", "-k", "key.txt"),
                *("--rest-port", "0", "--grpc-port", "0"),
            ],
            cwd=model,
            stderr=written,
        )
    try:
        server = _listening(process, log)
        asked = urllib.request.Request(
            f"http://127.0.0.1:{server['rest_port']}/v1/models/net:predict",
            json.dumps({"instances": [[1, 2, 3]]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=WAIT) as answer:
            assert json.load(answer) == {"predictions": [[2.0, 4.0, 6.0]]}
        assert _by_grpc(server["grpc_port"]) == [2.0, 4.0, 6.0]
    finally:
        # strace hands no signal on: the server is its child.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for one in children:
            subprocess.run(["kill", f"-{signal.SIGTERM}", one], check=False)
        process.wait(WAIT)
    assert process.returncode == 0, log.read_text()
    tried = {line.split("(")[0].split()[-1] for line in (model / "calls.log").read_text().splitlines()}
    assert {"memfd_create", "eventfd2", "madvise"} <= tried


def _listening(process, log: Path):
    end = time.monotonic() + WAIT
    server = None
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        for line in log.read_text().splitlines():
            said = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if said.get("event") == "listening":
                server = said
            if said.get("state") == "AVAILABLE" and server is not None:
                return server
            assert said.get("state") != "END", line
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _by_grpc(port: int) -> list[float]:
    grpcclient = pytest.importorskip("tritonclient.grpc")
    import numpy as np

    client = grpcclient.InferenceServerClient(f"127.0.0.1:{port}")
    given = grpcclient.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
    try:
        return client.infer("net", [given], client_timeout=WAIT).as_numpy("y")[0].tolist()
    finally:
        client.close()
