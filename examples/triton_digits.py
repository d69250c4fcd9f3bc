"""An unchanged Triton serves a sealed model: by the repository agent, by ``strongroom run``, and by a mount.

    python examples/triton_digits.py [--directory .demo-triton]      # or: make demo-triton

Trains the network of digits.py, seals it with a configuration of Triton, builds the agent, and asks a real
tritonserver, that of nvidia-pytriton, for digits that the network has not seen. Its Python backend runs the
model with ONNX Runtime. Then a bit is flipped, which leaves the version that is served; and the same server
reads the model from a view of it that nobody else has, and from a mount.
Exits with 1 if anything is not as it says.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from digits import export, flip, train
from telling import PROGRAM, claim, console, made_anew, result, run, show, step
from tritonclient.utils import InferenceServerException

from strongroom.mount.fuse import available

ENVIRONMENT = Path(__file__).parents[1] / ".venv-triton"
SECONDS = 120
MEMORY = Path("/dev/shm")

MODEL = """
import os, onnxruntime, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "digits.onnx"))

    def execute(self, requests):
        images = [utils.get_input_tensor_by_name(one, "images").as_numpy() for one in requests]
        found = [self.session.run(None, {"images": one})[0] for one in images]
        return [utils.InferenceResponse([utils.Tensor("digits", one)]) for one in found]
"""

CONFIG = """
name: "digits"
backend: "python"
max_batch_size: 0
input [ { name: "images", data_type: TYPE_FP32, dims: [ -1, 1, 8, 8 ] } ]
output [ { name: "digits", data_type: TYPE_FP32, dims: [ -1, 10 ] } ]
"""

AGENT = """
model_repository_agents {
  agents [ { name: "strongroom" parameters { key: "key" value: "KEY" } } ]
}
"""


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A tritonserver while it runs."""

    def __init__(self, folder: Path, repository: str, words: list[str], before: list[str]) -> None:
        packages = next(ENVIRONMENT.glob("lib/python3.*/site-packages"))
        server = packages / "pytriton" / "tritonserver"
        backend = folder / "backends" / "python"
        shutil.copytree(server / "backends" / "python", backend, dirs_exist_ok=True)
        version = packages.parent.name.removeprefix("python")
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        libraries = f"{sys.base_prefix}/lib:{packages / 'nvidia_pytriton.libs'}"
        path = f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}"
        self.log = folder / "triton.log"
        port = free_port()
        words = [f"--model-repository={repository}", "--model-control-mode=explicit", *words]
        show(*before, "tritonserver", *words, "&")
        words += [f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}"]
        words += ["--allow-http=false", "--allow-metrics=false"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, str(server / "bin" / "tritonserver"), *words],
                stdout=log,
                stderr=log,
                env=os.environ | {"LD_LIBRARY_PATH": libraries, "PATH": path},
            )
        self.client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def wait(self) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.client.is_model_ready("digits"):
                    return
            except InferenceServerException:
                pass
            time.sleep(0.1)
        raise SystemExit(f"it did not start: {self.log.read_text()}")

    def ask(self, images: np.ndarray) -> np.ndarray:
        tensor = triton.InferInput("images", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        return self.client.infer("digits", [tensor]).as_numpy("digits").argmax(1)


@contextmanager
def running(folder: Path, repository: str, *words: str, before: list[str]) -> Iterator[Server]:
    server = Server(folder, repository, list(words), before)
    try:
        server.wait()
        yield server
    finally:
        server.client.close()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(SECONDS)


def said(server: Server, about: str) -> str:
    """The last line of the log with this in it."""
    return next(line for line in reversed(server.log.read_text().splitlines()) if about in line)


def lay_out(folder: Path, key: Path, onnx: Path) -> None:
    """The model as Triton wants it, with the agent in its configuration, and without."""
    for name, more in (("plain", AGENT.replace("KEY", str(key.absolute()))), ("bare", "")):
        model = folder / name / "digits"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG + more)
        (model / "1" / "model.py").write_text(MODEL)
        shutil.copy(onnx, model / "1" / "digits.onnx")


def by_the_agent(folder: Path, key: Path, images: np.ndarray, expected: np.ndarray) -> None:
    step("Seal the model into a model repository, and build the agent")
    models, agents = folder / "models", folder / "agents"
    models.mkdir()
    sealing = ["-k", key, "--clear", "config.pbtxt", "--quiet"]
    done = run("seal", folder / "plain" / "digits", "-o", models / "digits", *sealing)
    claim("the model is sealed", done.returncode == 0)
    claim("the agent is built", run("triton", "install", agents).returncode == 0)

    step("Triton serves it")
    before = set(MEMORY.glob("strongroom-triton-*"))
    words = (f"--repoagent-directory={agents}", "--load-model=digits")
    with running(folder, str(models), *words, before=[]) as server:
        console.print(said(server, "strongroom: "), markup=False, soft_wrap=True)
        same = np.array_equal(server.ask(images), expected)
        claim(f"{len(images)} unseen digits, the same predictions as the plain network", same)
        left = set(MEMORY.glob("strongroom-triton-*")) - before
        claim("once it was loaded, the plaintext had gone from /dev/shm", not left)

        step("Somebody flips one bit of the weights, and Triton is asked to load them")
        victim = models / "digits" / "1" / "digits.onnx.sealed"
        flip(victim, victim.stat().st_size // 2)
        try:
            server.client.load_model("digits")
            claim("Triton refuses the load", False)
        except InferenceServerException as error:
            claim(f"Triton refuses the load: {error.message()}", True)
        reason = said(server, "Poll failed").rstrip('"')
        claim(f"its log says why: {reason[reason.index('strongroom') :]}", "segment" in reason)
        same = np.array_equal(server.ask(images), expected)
        claim("the version of before still answers", same)


def by_a_view(folder: Path, key: Path, images: np.ndarray, expected: np.ndarray) -> None:
    step("Triton without an agent, on a view of the sealed model that nobody else has")
    sealed = folder / "digits.sealed"
    run("seal", folder / "bare" / "digits", "-o", sealed, "-k", key, "--quiet")
    before = [str(PROGRAM), "run", "--model", f"digits={sealed}", "-k", str(key), "--"]
    with running(folder, "{models}", "--load-model=digits", before=before) as server:
        same = np.array_equal(server.ask(images), expected)
        claim(f"{len(images)} unseen digits, the same predictions as the plain network", same)


def by_a_mount(folder: Path, key: Path, images: np.ndarray, expected: np.ndarray) -> None:
    step("Triton without an agent, on a mount of the sealed model")
    if problem := available():
        console.print(f"FUSE cannot be used here: {problem}. Left out.", markup=False)
        return
    sealed, shown, log = folder / "digits.sealed", folder / "mounted", folder / "mount.log"
    shown.mkdir()
    words = (f"digits={sealed}", shown, "-k", key)

    def mount() -> bool:
        return run("mount", *words, "--background", "--log-file", log).returncode == 0

    def unmount() -> None:
        show("umount", shown)
        helper = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*helper, str(shown)], check=False)

    claim("the model is mounted", mount())
    try:
        with running(folder, str(shown), "--load-model=digits", before=[]) as server:
            same = np.array_equal(server.ask(images), expected)
            claim(f"{len(images)} unseen digits, the same predictions as the plain network", same)

            step("Somebody flips one bit of the weights, and they are mounted and loaded again")
            unmount()
            victim = sealed / "1" / "digits.onnx.sealed"
            flip(victim, victim.stat().st_size // 2)
            claim("the model is mounted: what nobody reads is not decrypted", mount())
            try:
                server.client.load_model("digits")
                claim("Triton refuses the load", False)
            except InferenceServerException as error:
                claim(f"Triton refuses the load: {error.message().splitlines()[0]}", True)
            reason = log.read_text().rpartition(" ERROR ")[2].strip()
            claim(f"the log of the mount says why: {reason}", "segment" in reason)
            same = np.array_equal(server.ask(images), expected)
            claim("the version of before still answers", same)
    finally:
        unmount()


def main() -> int:
    folder = made_anew("An unchanged Triton serves a sealed model.", ".demo-triton").absolute()
    key = folder / "key.txt"

    step("Train on handwritten digits")
    network, images, _ = train()
    export(network, folder / "exported")
    run("keygen", "-o", key)
    lay_out(folder, key, folder / "exported" / "digits.onnx")
    with torch.inference_mode():
        expected = network(images).argmax(1).numpy()
    by_the_agent(folder, key, images.numpy(), expected)
    by_a_view(folder, key, images.numpy(), expected)
    by_a_mount(folder, key, images.numpy(), expected)
    return result()


if __name__ == "__main__":
    sys.exit(main())
